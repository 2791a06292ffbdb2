"""SIGTERM: everybody is told, what was said is kept, and the process ends in time, whatever its agents do."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from runstone.clock import SystemClock
from runstone.stores.sqlite import SqliteStore
from runstone.views import ThreadRef
from tests.support.history import History, runs_of
from tests.support.live import Live
from tests.support.ordeal import check_store
from tests.support.server import ServerProcess
from tests.support.watchers import SocketWatcher, StreamWatcher, attach

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SHUTDOWN_S = 25.0  # what is promised for the worst case
GRACE_S = 0.5  # what runs have to end, where the test is of those that do not
QUICK_S = 6.0  # when nothing stands in the way, on a busy machine
HURRY_S = 12.0  # after a second signal, likewise


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "tests.support.hardy:app")
    yield process
    process.kill()


@asynccontextmanager
async def live(server: ServerProcess, grace_s: float = GRACE_S, **environment: str) -> AsyncIterator[Live]:
    server.start(RUNSTONE_GRACE_S=str(grace_s), **environment)
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as http:
        yield Live(http, server.port)


async def ended(server: ServerProcess, *signals_at: float) -> tuple[int, float]:
    """SIGTERM at each of these seconds; the exit code, and how long it took from the first on."""
    started = time.monotonic()
    for at in signals_at or (0.0,):
        await asyncio.sleep(max(started + at - time.monotonic(), 0))
        os.kill(server.pid, signal.SIGTERM)
    code = await asyncio.to_thread(server.wait, 60)
    took = time.monotonic() - started
    server.kill()  # it is gone; this closes its pipe
    return code, took


async def said(live: Live, run: dict[str, Any], text: str) -> None:
    """Until the run has said that."""
    async with asyncio.timeout(20):
        while True:
            page = await live.http.get(f"/v1/threads/{run['thread_id']}/messages", params={"role": "assistant"})
            if any(text in message["content"] for message in page.json()["messages"]):
                return


async def asked(live: Live, run: dict[str, Any]) -> dict[str, Any]:
    """What the run asks, once it does."""
    async with asyncio.timeout(20):
        while True:
            found = (await live.http.get("/v1/approvals", params={"run_id": run["run_id"]})).json()["approvals"]
            if found:
                return dict(found[0])


async def kept(server: ServerProcess, thread_id: str) -> list[bytes]:
    """The thread's log, from the file of a server that is gone."""
    store = SqliteStore(server.store_url, SystemClock())
    await store.open()
    try:
        found: list[bytes] = []
        thread = ThreadRef(thread_id, "local")
        while page := (await store.events(thread, after=len(found), limit=1000, bytes_max=1 << 20)).events:
            found += [event.wire for event in page]
        return found
    finally:
        await store.close()


class Audience:
    """Clients that are attached to threads by WebSocket and by SSE, and come back after each restart."""

    def __init__(self, live: Live, threads: list[str]) -> None:
        self.history = History()
        self.socket = SocketWatcher(self.history, "socket")
        self.streams = [StreamWatcher(self.history, f"stream of {thread_id}", live.http) for thread_id in threads]
        self.socket.watch(threads)
        for stream, thread_id in zip(self.streams, threads, strict=True):
            stream.watch([thread_id])

    async def attach(self, server: ServerProcess) -> list[asyncio.Task[None]]:
        return await attach([self.socket, *self.streams], server.url)

    def has_seen(self, thread_id: str, log: list[bytes]) -> None:
        """Every event once, and in order: each client took 1, 2, 3 … and stands at the end of the log."""
        self.history.compare(thread_id, log)
        places = [watcher.places[thread_id] for watcher in (self.socket, *self.streams) if thread_id in watcher.places]
        assert [place.cursor for place in places] == [len(log)] * 2


async def test_what_does_not_end_in_time_is_released_and_attached_clients_come_through_the_restart(
    server: ServerProcess,
) -> None:
    async with live(server) as one:
        running = [
            await one.start("worker", {"tag": f"r{number}x", "words": 10_000, "messages": 1}) for number in range(3)
        ]
        queued = [
            await one.start("worker", {"tag": "q", "words": 5, "messages": 1}, run["thread_id"]) for run in running
        ]
        audience = Audience(one, [run["thread_id"] for run in running])
        watching = await audience.attach(server)
        waiting = asyncio.create_task(one.http.get(f"/v1/runs/{running[0]['run_id']}?wait_s=60"))
        for run in running:
            await said(one, run, "x20")
        code, took = await ended(server)
        assert code == 0, server.log.read_text()
        assert GRACE_S < took < QUICK_S
        await asyncio.gather(*watching)
        assert (await waiting).status_code in {200, 503}
    assert audience.socket.closed_with == [1012]
    assert [stream.closed_with for stream in audience.streams] == [["restarting"]] * 3
    assert "Traceback" not in server.log.read_text()

    async with live(server) as two:
        for stream in audience.streams:
            stream.use(two.http)
        watching = await audience.attach(server)
        for run, next_run in zip(running, queued, strict=True):
            assert (await two.ended(next_run))["status"] == "completed"
            log = await two.log(run["thread_id"])
            told = runs_of(log)[run["run_id"]]
            assert told.end is not None
            assert (told.end.type, told.attempt, told.left) == ("agent_completed", 2, ["released"])
            assert [*told.status.values()] == ["superseded", "completed"]
            before, after = told.messages.values()
            assert after.startswith(before)
            assert "x20" in before
        assert (await ended(server))[0] == 0
        await asyncio.gather(*watching)
        for run in running:
            audience.has_seen(run["thread_id"], await kept(server, run["thread_id"]))
    check_store(server.store_url)


async def test_what_ends_in_time_ends_and_its_clients_see_it(server: ServerProcess) -> None:
    async with live(server, grace_s=15) as one:
        run = await one.start("worker", {"tag": "r0x", "words": 1000, "messages": 1})
        audience = Audience(one, [run["thread_id"]])
        watching = await audience.attach(server)
        await said(one, run, "x20")
        code, took = await ended(server)
        assert code == 0, server.log.read_text()
        assert took < 15
        await asyncio.gather(*watching)
    assert audience.socket.closed_with == [1012]
    log = await kept(server, run["thread_id"])
    told = runs_of(log)[run["run_id"]]
    assert told.end is not None
    assert (told.end.type, told.attempt) == ("agent_completed", 1)
    audience.has_seen(run["thread_id"], log)


@pytest.mark.parametrize(("failpoint", "reason"), [("", "lost"), ("released=kill:1", "released")])
async def test_a_kill_in_the_drain_is_no_worse_than_any_kill(
    server: ServerProcess, failpoint: str, reason: str
) -> None:
    async with live(server, grace_s=0.2 if failpoint else 15, RUNSTONE_FAILPOINTS=failpoint) as one:
        run = await one.start("worker", {"tag": "r0x", "words": 12_000, "messages": 1})
        audience = Audience(one, [run["thread_id"]])
        watching = await audience.attach(server)
        await said(one, run, "x20")
        os.kill(server.pid, signal.SIGTERM)
        while not failpoint and (await one.http.get("/readyz")).status_code == 200:
            pass  # the drain has not begun
        if not failpoint:
            os.kill(server.pid, signal.SIGKILL)
        assert await asyncio.to_thread(server.wait, 20) == -signal.SIGKILL
        await asyncio.gather(*watching)
        server.kill()  # it is gone; this closes its pipe
    async with live(server) as two:
        audience.streams[0].use(two.http)
        watching = await audience.attach(server)
        assert (await two.ended(run))["status"] == "completed"
        assert (await ended(server))[0] == 0
        await asyncio.gather(*watching)
    log = await kept(server, run["thread_id"])
    told = runs_of(log)[run["run_id"]]
    assert (told.attempt, told.left) == (2, [reason])
    audience.has_seen(run["thread_id"], log)
    check_store(server.store_url)


async def test_a_run_that_waits_for_people_is_not_waited_for_and_goes_on_when_they_answer(
    server: ServerProcess,
) -> None:
    async with live(server, grace_s=15) as one:
        run = await one.start("asker", {})
        approval = await asked(one, run)
        code, took = await ended(server)
        assert code == 0, server.log.read_text()
        assert took < QUICK_S
    async with live(server, grace_s=15) as two:
        assert (await two.http.get(f"/v1/runs/{run['run_id']}")).json()["status"] == "waiting"
        await two.post(f"/v1/approvals/{approval['approval_id']}", decision="approve")
        found = await two.ended(run)
        assert (found["status"], found["output"]) == ("completed", "approved")
        told = runs_of(await two.log(run["thread_id"]))[run["run_id"]]
        assert (told.attempt, told.left, [*told.approvals.values()]) == (2, ["released"], ["approved"])


async def test_a_server_with_nothing_to_do_ends_at_once(server: ServerProcess) -> None:
    async with live(server):
        code, took = await ended(server)
    assert code == 0
    assert took < QUICK_S


async def test_a_cancel_that_was_asked_for_before_is_the_end_that_the_next_start_finds(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("mule", {})
        await said(one, run, "before")
        await one.post(f"/v1/runs/{run['run_id']}/cancel", reason="enough")
        server.kill()
    async with live(server) as two:
        found = await two.ended(run)
        assert found["status"] == "cancelled"
        end = runs_of(await two.log(run["thread_id"]))[run["run_id"]].end
        assert end is not None
        assert end.data["reason"] == "enough"


async def test_an_agent_that_ignores_its_cancel_does_not_keep_the_server(server: ServerProcess) -> None:
    async with live(server, grace_s=3) as one:
        run = await one.start("mule", {})
        await said(one, run, "before")
        code, took = await ended(server)
    assert code == 0, server.log.read_text()
    assert took < SHUTDOWN_S - 7  # of the default grace
    assert "cannot be listened on" not in server.log.read_text()


async def test_a_second_signal_hurries(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("mule", {})
        await said(one, run, "before")
        code, took = await ended(server, 0.0, 0.2)
    assert code in {0, 1}, server.log.read_text()
    assert took < HURRY_S
    assert "cannot be listened on" not in server.log.read_text()
    assert code == 0 or "Nothing acknowledged is lost" in server.log.read_text()


async def test_a_tool_in_a_thread_does_not_keep_the_server(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("patient", {"seconds": 90})
        await said(one, run, "before")
        code, took = await ended(server)
    assert code == 0, server.log.read_text()
    assert took < SHUTDOWN_S
    async with live(server) as two:
        assert (await two.ended(run))["error"]["type"] == "ActionInterrupted"
        (action,) = (await two.http.get(f"/v1/threads/{run['thread_id']}/actions")).json()["actions"]
        assert action["status"] == "interrupted"


async def test_an_agent_that_holds_the_loop_for_a_while_delays_the_end_and_is_named(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("blocker", {"seconds": 4})
        await asyncio.sleep(1)  # nothing in the server can say that it is held
        code, took = await ended(server)
    assert code == 0, server.log.read_text()
    assert took < 4 + QUICK_S
    assert "blocker" in server.log.read_text()
    async with live(server) as two:
        assert (await two.ended(run))["status"] in {"completed", "failed"}
        await said(two, run, "before")


@pytest.mark.torture
async def test_an_agent_that_holds_the_loop_for_ever_does_not_keep_a_server_that_nobody_hurries(
    server: ServerProcess,
) -> None:
    async with live(server) as one:
        await one.start("blocker", {"seconds": 3600})
        await asyncio.sleep(1)
        code, took = await ended(server)
    assert code == 1
    assert SHUTDOWN_S - 1 < took < SHUTDOWN_S + 2


async def test_an_agent_that_holds_the_loop_for_ever_does_not_keep_the_server(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("blocker", {"seconds": 3600})
        await asyncio.sleep(1)
        code, took = await ended(server, 0.0, 1.0)
    assert code == 1
    assert took < HURRY_S
    assert "blocker" in server.log.read_text()
    assert "the shutdown did not end in time" in server.log.read_text()
    async with live(server) as two:
        assert (await two.ended(run))["error"]["type"] == "WorkerLost"
