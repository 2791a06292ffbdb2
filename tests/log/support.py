"""A log on a real store whose commits a test can hold, count and break, and brokers that misbehave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from runstone import commands as c
from runstone import events as e
from runstone.broker import Broker, Hint
from runstone.brokers.local import LocalBroker
from runstone.clock import SystemClock
from runstone.log import Log, Outbox
from runstone.metrics import Metrics
from runstone.store import Committed, Entry, RunRow
from runstone.stores.sqlite import SqliteStore
from runstone.views import ThreadRef
from tests.stores.making import AGENTS, new_run


class HeldStore(SqliteStore):
    """The real store; `hold` keeps commits waiting, `fault` is raised instead of the next one."""

    def __init__(self, url: str) -> None:
        super().__init__(url, SystemClock())
        self.batches: list[list[Entry]] = []
        self.entered = asyncio.Event()  # a commit was asked for
        self.faults: list[Exception] = []
        self._gate = asyncio.Event()
        self._gate.set()

    def hold(self) -> None:
        self.entered.clear()
        self._gate.clear()

    def release(self) -> None:
        self._gate.set()

    async def commit(self, batch: Sequence[Entry]) -> Committed:
        self.batches.append(list(batch))
        self.entered.set()
        await self._gate.wait()
        if self.faults:
            raise self.faults.pop(0)
        return await super().commit(batch)


class Lossy(LocalBroker):
    """Drops every hint."""

    def publish(self, hint: Hint) -> None:
        pass


class Doubling(LocalBroker):
    """Says everything twice."""

    def publish(self, hint: Hint) -> None:
        super().publish(hint)
        super().publish(hint)


class Late(LocalBroker):
    """Says everything in the wrong order, and late."""

    def __init__(self) -> None:
        super().__init__()
        self._kept: list[Hint] = []

    def publish(self, hint: Hint) -> None:
        self._kept.insert(0, hint)
        if len(self._kept) >= 5:
            kept, self._kept = self._kept, []
            for late in kept:
                super().publish(late)


class Recording(LocalBroker):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.hints: list[Hint] = []

    def publish(self, hint: Hint) -> None:
        self.hints.append(hint)
        super().publish(hint)


class Place:
    """A log and its store, with short words for what tests do over and over."""

    def __init__(self, log: Log, store: HeldStore, metrics: Metrics) -> None:
        self.log = log
        self.store = store
        self.metrics = metrics

    async def run(self, thread: ThreadRef | None = None) -> tuple[RunRow, Outbox]:
        """A run under way, in a new thread if none is given, and where it says what it says."""
        made = await self.log.append(
            c.start_run("alice", new_run(), thread_id=None if thread is None else thread.thread_id)
        )
        await self.log.append(c.beat("worker", first=True))
        started, _ = await self.log.append(c.claim_runs(AGENTS, 1000, "worker"))
        row: RunRow = next(claimed.run for claimed in started if claimed.run.run_id == made.id)
        return row, self.log.outbox(row, row.attempt)

    async def stored(self, thread: ThreadRef, *types: str) -> list[e.Event]:
        """What the store holds of a thread, of these types or of all."""
        found: list[e.Event] = []
        while True:
            after = found[-1].seq if found else 0
            page = await self.store.events(thread, after=after, limit=1000, bytes_max=1 << 20)
            if not page.events:
                return [event for event in found if not types or event.type in types]
            found += page.events

    def buffered_bytes(self) -> float:
        value = self.metrics.registry.get_sample_value("runstone_buffer_bytes")
        return -1.0 if value is None else value


@asynccontextmanager
async def opened(folder: Path, broker: Broker | None = None) -> AsyncIterator[Place]:
    store = HeldStore(f"sqlite:///{folder}/runs.db")
    metrics = Metrics()
    log = Log(store, broker or LocalBroker(), SystemClock(), metrics)
    await log.start()
    try:
        yield Place(log, store, metrics)
    finally:
        store.release()
        await log.stop()


def draft(row: RunRow, data: e.Data, attempt: int = 1) -> e.Draft:
    return e.Draft(data=data, run_id=row.run_id, attempt=attempt)


class Reader:
    """Follows a thread to its end, as a connection would: reads when it was woken, and else waits."""

    def __init__(self, log: Log, thread: ThreadRef, after: int = 0) -> None:
        self._log = log
        self._thread = thread
        self._after = after
        self._woken = asyncio.Event()
        self.events: list[e.Event] = []
        self.subscribed = asyncio.Event()

    async def read_to(self, seq: int, limit: int = 1000) -> list[e.Event]:
        """All events up to a seq."""
        async with self._log.tail(self._thread, after=self._after, wake=self._woken.set) as tail:
            self.subscribed.set()
            while tail.cursor < seq:
                if not tail.behind:
                    self._woken.clear()
                    await self._woken.wait()
                page = await tail.read(limit)
                self.events += page.events
        return self.events


def seqs(events: Sequence[e.Event]) -> list[int]:
    return [event.seq for event in events]


async def soon(condition: Callable[[], Any], *, turns: int = 10_000) -> None:
    """Returns when the condition holds: other tasks get their turns until it does."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not come about")


async def stays_waiting(task: asyncio.Task[Any], turns: int = 50) -> bool:
    """Whether a task still waits after everything else had many turns."""
    for _ in range(turns):
        await asyncio.sleep(0)
    return not task.done()


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels a task that a test has no more use for."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
