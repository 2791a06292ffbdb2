"""An ordeal: a server is put to work, watched and killed, again and again; after each restart its log is held
against everything that anyone was shown.
"""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import apsw
import httpx2
import msgspec
from msgspec import Raw

from tests.support.forked import DiedAtStart, ForkedServer
from tests.support.history import History, RunHistory, Violation, runs_of
from tests.support.watchers import GONE, SocketWatcher, StreamWatcher, attach, detach

Failpoints: TypeAlias = "dict[str, tuple[int, int]]"  # by name: the passage that kills, at least and at most

LINGER_S = 0.2  # the most that a server lives when nothing is aimed
DRAIN_S = 0.8  # the most that it has to end by itself
LATE_S = 20.0  # when it ends by itself or not at all
SETTLE_S = 20.0

_SOCKETS = 2  # watchers of everything; each thread has a stream of its own besides


class Started(msgspec.Struct):
    """A run that was asked for."""

    body: dict[str, Any]
    thread_id: str
    run_id: str = ""  # once the answer has come
    cancel: bool = False  # a cancel was acknowledged


class _Events(msgspec.Struct):
    events: list[Raw]
    next_after: int
    head: int


class Ordeal:
    """What is done in each life of the server, and what more must hold, stands in the subclasses.

    What it decides follows from its dice and from the number of the life, so that the decisions of a seed are always
    the same; when exactly a kill lands, and so how far things get, the machine decides.
    """

    probe: dict[str, Any]  # a run that ends at once
    aimed_s = 0.8  # how long a failpoint has, before the kill comes anyway
    drain_share = 0.0  # of the lives, those that end by SIGTERM; some of them are killed meanwhile

    def __init__(
        self, server: ForkedServer, dice: random.Random, failpoints: Failpoints, *, aim_share: float, **environment: str
    ) -> None:
        self.server = server
        self.history = History()
        self.kills = self.aimed = self.died_at_start = self.drained = 0
        self.died: dict[str, int] = defaultdict(int)  # by failpoint: how often it was there that it died
        self.taken_up: set[tuple[str, int]] = set()  # attempts that followed another
        self._seed = dice.getrandbits(64)
        self._dice = dice  # of the life that it has now
        self._failpoints = failpoints
        self._aim_share = aim_share
        self._environment = environment
        self._runs: list[Started] = []
        self._unanswered: list[Started] = []
        self._threads: dict[str, None] = {}  # those that are watched, in order
        self._done: dict[str, int] = {}  # threads whose runs have all ended: their heads
        self._sockets = [SocketWatcher(self.history, f"socket {number}") for number in range(_SOCKETS)]
        self._streams: dict[str, StreamWatcher] = {}
        self._client = httpx2.AsyncClient(trust_env=False, timeout=30, limits=httpx2.Limits(max_connections=None))

    def account(self) -> str:
        """What it came to, for people."""
        return (
            f"{self.kills} kills, {self.aimed} aimed, {self.died_at_start} at start, {dict(self.died)} there; "
            f"{self.drained} ended by themselves; "
            f"{self.history.shown} events shown, {len(self.taken_up)} attempts after others"
        )

    # --- what the subclasses say -------------------------------------------------------------------------

    async def _put_to_work(self) -> None:
        """At the beginning of a life."""
        raise NotImplementedError

    async def _interfere(self) -> None:
        """Every now and then while it lives."""
        raise NotImplementedError

    async def _hurry(self) -> None:
        """Once, at the end: so that every run ends."""

    def _armed(self, name: str, passage: int) -> dict[str, str]:
        """The environment in which a server dies there."""
        return {"RUNSTONE_FAILPOINTS": f"{name}=kill:{passage}"}

    def _before_logs(self) -> None:
        """Right before the logs are read."""

    def _check_run(self, run: Started, told: RunHistory) -> None:
        """What must hold of a run beyond what holds of all, whether it has ended or not."""
        raise NotImplementedError

    def _check_thread(self, thread_id: str, log: list[bytes], runs: dict[str, RunHistory]) -> None:
        """What must hold of a thread as a whole."""

    def _check_file(self) -> None:
        """At the end: what only the file can tell."""

    def _keeps(self, thread_id: str) -> bool:
        """Whether more is to happen in a thread whose runs have all ended."""
        return False

    async def run(self, kills: int) -> None:
        """That many kills, then an end in peace; raises Violation."""
        try:
            while self.kills < kills:
                await self._round()
            await self._finish()
        finally:
            await self._client.aclose()
        check_file(self.server.database)
        check_store(self.server.store_url)

    # --- one life of the server --------------------------------------------------------------------------

    async def _round(self) -> None:
        self._dice = random.Random(f"{self._seed} life {self.kills}")
        aim = self._dice.choice(sorted(self._failpoints)) if self._dice.random() < self._aim_share else ""
        armed = self._armed(aim, self._dice.randint(*self._failpoints[aim])) if aim else {}
        linger_s = self._dice.uniform(0, LINGER_S)
        drain_s = self._dice.uniform(0, DRAIN_S) if self._dice.random() < self.drain_share else None
        if aim == "released":
            drain_s = LATE_S
        if not await self._start(armed):
            self.died[aim] += 1
            return
        watching: list[asyncio.Task[None]] = []
        try:
            await self._check()
            await self._put_to_work()
            watching = await attach(self._watchers(), self.server.url)
            await self._live(watching, linger_s if aim in {"", "released"} else self.aimed_s)
        except GONE:
            pass  # it died by a failpoint before the kill
        by_itself = self.server.gone
        code = await asyncio.to_thread(self.server.kill if drain_s is None else partial(self.server.drain, drain_s))
        self.drained += code == 0
        if code != -signal.SIGKILL and (code != 0 or drain_s is None):
            raise Violation(f"the server ended with {code}:\n{self.server.log.read_text()[-4000:]}")
        self.kills += 1
        self.aimed += bool(aim)
        self.died[aim] += by_itself or aim == "released"
        await asyncio.gather(*watching)
        self._retire()

    async def _start(self, armed: dict[str, str]) -> bool:
        try:
            await asyncio.to_thread(self.server.start, **self._environment, **armed)
        except DiedAtStart:
            self.kills += 1
            self.aimed += 1
            self.died_at_start += 1
            return False
        return True

    async def _live(self, watching: list[asyncio.Task[None]], seconds: float) -> None:
        """Until the time is over, or the server is gone; with a new command now and then."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (left := end - loop.time()) > 0:
            done, _ = await asyncio.wait(watching, timeout=min(left, 0.05), return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            await self._interfere()

    # --- work --------------------------------------------------------------------------------------------

    async def _begin(self, body: dict[str, Any], thread_id: str = "") -> str:
        """Starts a run in a thread, or in a new one; returns the thread. The body has keys."""
        run = Started(body, thread_id)
        self._unanswered.append(run)
        await self._ask(run)
        return run.thread_id

    async def _ask(self, run: Started) -> None:
        """Starts it; or finds it, if it was started by a request whose answer was lost."""
        where = f"threads/{run.thread_id}/runs" if run.thread_id else "runs"
        answer = await self._client.post(f"{self.server.url}/v1/{where}", json=run.body)
        if answer.status_code not in {200, 201}:
            raise Violation(f"{run.body} was answered {answer.status_code}: {answer.text}")
        made = answer.json()
        self._unanswered.remove(run)
        run.run_id, run.thread_id = made["run_id"], made["thread_id"]
        self._runs.append(run)
        self._threads[run.thread_id] = None
        self._done.pop(run.thread_id, None)

    def _watchers(self) -> list[SocketWatcher | StreamWatcher]:
        for socket in self._sockets:
            socket.watch(self._threads)
        for thread_id in self._threads:
            if thread_id not in self._streams:
                stream = self._streams[thread_id] = StreamWatcher(self.history, f"stream of {thread_id}", self._client)
                stream.watch([thread_id])
        return [*self._sockets, *self._streams.values()]

    def _retire(self) -> None:
        """Threads in which nothing will happen any more, and whose every watcher has seen it all, are let go."""
        for thread_id, head in list(self._done.items()):
            watchers = self._watchers()
            if self._keeps(thread_id) or any(
                watcher.places[thread_id].cursor < head for watcher in watchers if thread_id in watcher.places
            ):
                continue
            for socket in self._sockets:
                socket.unwatch([thread_id])
            del self._streams[thread_id], self._threads[thread_id], self._done[thread_id]
            self.history.forget(thread_id)
            self._runs = [run for run in self._runs if run.thread_id != thread_id]

    # --- what must hold after a restart --------------------------------------------------------------------

    async def _check(self) -> None:
        for run in list(self._unanswered):
            await self._ask(run)
        worker = await self._worker()
        self._before_logs()
        for thread_id in list(self._threads):
            log = await self._log(thread_id)
            self.history.compare(thread_id, log)
            runs = runs_of(log)
            for run in self._runs:
                if run.thread_id == thread_id:
                    if run.run_id not in runs:
                        raise Violation(f"{run.run_id} was acknowledged and is not in the log")
                    self._check_start(run, runs, worker)
                    self._check_run(run, runs[run.run_id])
            self._check_thread(thread_id, log, runs)
            self.taken_up |= {
                (told.run_id, attempt) for told in runs.values() for attempt in range(2, told.attempt + 1)
            }
            unfinished = [
                run_id for run_id, run in runs.items() if run.end is None and "parent_run_id" not in run.queued
            ]
            if unfinished:
                await self._started(unfinished[0])
            else:
                self._done[thread_id] = len(log)
                await self._check_messages(thread_id, runs)

    def _check_start(self, run: Started, runs: dict[str, RunHistory], worker: str) -> None:
        """A root run is the living worker's, or nobody's: waiting for people, or for its turn."""
        told = runs[run.run_id]
        family = [other for other in runs.values() if other.queued.get("root_run_id") == run.run_id]
        if run.cancel and not told.cancelled:
            raise Violation(f"the cancel of {run.run_id} was acknowledged and is not in the log")
        if told.end is None and told.worker not in {None, worker} and not any(member.waiting for member in family):
            raise Violation(f"{run.run_id} was left under way by a dead worker")
        if told.end is not None and told.end.type == "agent_failed":
            self._check_failure(told, told.end.data["error"], worker)

    def _check_failure(self, told: RunHistory, error: dict[str, Any], worker: str) -> None:
        """Only a kill makes these runs fail: the first one, or the last one that it may live through."""
        if told.worker == worker:
            raise Violation(f"{told.run_id} failed, and its worker, {worker}, was not killed: {error}")
        if told.queued["on_crash"] == "fail":
            expected, attempts = ("WorkerLost", True), 1
        else:
            expected, attempts = ("MaxAttempts", False), told.queued["max_attempts"]
        if ((error["type"], error["retryable"]), told.attempt) != (expected, attempts):
            raise Violation(f"{told.run_id} failed in attempt {told.attempt}: {error}")
        if told.left != ["lost"] * (attempts - 1):
            raise Violation(f"the attempts of {told.run_id} were {told.left}")

    async def _check_messages(self, thread_id: str, runs: dict[str, RunHistory]) -> None:
        page = await self._get(f"threads/{thread_id}/messages?limit=1000&role=assistant&superseded=true&children=true")
        shown = {message["message_id"]: (message["content"], message["status"]) for message in page["messages"]}
        told = {
            message_id: (text, run.status[message_id])
            for run in runs.values()
            for message_id, text in run.messages.items()
        }
        if page["next_cursor"] is None and shown != told:
            raise Violation(f"the messages of {thread_id} are\n{shown}\nand its log says\n{told}")

    async def _worker(self) -> str:
        """The living worker's id, from a run that has just ended."""
        made = (await self._client.post(f"{self.server.url}/v1/runs", json=self.probe)).json()
        run = await self._ended(made["run_id"])
        if run["status"] != "completed":
            raise Violation(f"a new run does not complete: {run}")
        worker = runs_of(await self._log(made["thread_id"]))[made["run_id"]].worker
        assert worker is not None
        return worker

    async def _ended(self, run_id: str) -> Any:
        end = asyncio.get_running_loop().time() + SETTLE_S
        while True:
            run = await self._get(f"runs/{run_id}?wait_s=1")
            if run["ended_at"] is not None or asyncio.get_running_loop().time() > end:
                return run

    async def _started(self, run_id: str) -> None:
        """The first unfinished run of a thread does not stay in the queue."""
        end = asyncio.get_running_loop().time() + SETTLE_S
        while (await self._get(f"runs/{run_id}"))["status"] == "queued":
            if asyncio.get_running_loop().time() > end:
                raise Violation(f"{run_id} is next and is not started")
            await asyncio.sleep(0.01)

    async def _log(self, thread_id: str) -> list[bytes]:
        log: list[bytes] = []
        while True:
            answer = await self._client.get(
                f"{self.server.url}/v1/threads/{thread_id}/events", params={"after": len(log), "limit": 1000}
            )
            answer.raise_for_status()
            page = msgspec.json.decode(answer.content, type=_Events)
            log += [bytes(event) for event in page.events]
            if page.next_after >= page.head:
                return log

    async def _get(self, path: str) -> Any:
        answer = await self._client.get(f"{self.server.url}/v1/{path}")
        answer.raise_for_status()
        return answer.json()

    # --- the end -------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        await self._start({})
        await self._check()
        await self._hurry()
        for run in self._runs:
            if (await self._ended(run.run_id))["ended_at"] is None:
                raise Violation(f"{run.run_id} does not end")
        watching = await attach(self._watchers(), self.server.url)
        await detach(watching)
        await self._check()
        for watcher in self._watchers():
            for place in watcher.places.values():
                if place.cursor != self._done[place.thread_id]:
                    raise Violation(f"{watcher.name} stands at {place.cursor} of {self._done[place.thread_id]}")
        await asyncio.to_thread(self.server.kill)


def check_store(url: str) -> None:
    """`runstone verify`, while nobody serves the store."""
    command = [sys.executable, "-m", "runstone", "verify", "--store", url]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise Violation(f"runstone verify exits {done.returncode}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")


def check_file(database: Path) -> None:
    """The file itself, while nobody serves it."""
    connection = apsw.Connection(str(database))
    try:
        if (found := connection.execute("PRAGMA integrity_check").get) != "ok":
            raise Violation(f"integrity_check: {found}")
        if found := connection.execute("PRAGMA foreign_key_check").get:
            raise Violation(f"foreign_key_check: {found}")
        first, last, number = connection.execute("SELECT min(pos), max(pos), count(*) FROM events").get
        if (first, last) != (1, number):
            raise Violation(f"pos goes from {first} to {last}, over {number} events")
    finally:
        connection.close()
