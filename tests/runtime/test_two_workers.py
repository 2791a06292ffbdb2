"""Two workers in one process on one log: one freezes, is overtaken, and wakes up to find that nothing is its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from runstone import Run, Runstone, values
from runstone import commands as c
from runstone.brokers.local import LocalBroker
from runstone.clock import SystemClock
from runstone.errors import StaleAttempt, StaleWorker
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.runtime.breakers import Breakers
from runstone.runtime.worker import Worker
from runstone.states import TERMINAL_EVENTS
from runstone.store import RunRow
from runstone.stores.sqlite import SqliteStore
from runstone.views import ThreadRef
from tests.stores.making import new_run, shown

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

LEASE_S = 1.0
WAIT_S = 30.0


class Stage:
    """A log, and workers on it."""

    def __init__(self, log: Log, app: Runstone, metrics: Metrics) -> None:
        self.log = log
        self._app = app
        self._metrics = metrics
        self.workers: list[Worker] = []

    async def worker(self) -> Worker:
        clock = SystemClock()
        breakers = Breakers(clock, self._metrics, failures=5, recovery_s=30)
        worker = Worker(
            self.log,
            self._app.agents,
            breakers,
            clock,
            self._metrics,
            slots=10,
            lease_s=LEASE_S,
            grace_s=0,
            debug=True,
        )
        await worker.start()
        self.workers.append(worker)
        return worker

    async def started(self, agent: str) -> RunRow:
        made = await self.log.append(c.start_run("alice", new_run(agent=agent)))
        row = await self.log.run_row(made.id)
        assert row is not None
        return row

    async def until(self, run: RunRow, *types: str) -> list[dict[str, Any]]:
        """The thread's events, once one of these types of the run is there."""
        async with asyncio.timeout(WAIT_S):
            woken = asyncio.Event()
            thread = ThreadRef(run.thread_id, run.user_id)
            found: list[dict[str, Any]] = []
            async with self.log.tail(thread, after=0, wake=woken.set) as tail:
                while True:
                    while tail.behind:
                        found += [shown(event) for event in (await tail.read()).events]
                    if any(event["type"] in types and event.get("run_id") == run.run_id for event in found):
                        return found
                    await woken.wait()
                    woken.clear()


@asynccontextmanager
async def stage(folder: Path, app: Runstone) -> AsyncIterator[Stage]:
    metrics, clock = Metrics(), SystemClock()
    log = Log(SqliteStore(f"sqlite:///{folder}/runs.db", clock), LocalBroker(), clock, metrics)
    await log.start()
    found = Stage(log, app, metrics)
    try:
        yield found
    finally:
        for worker in found.workers:
            await worker.stop()
        await log.stop()


async def freeze(worker: Worker) -> None:
    """It claims, beats and looks no more, as if its machine stood still; its agents wait where they are."""
    await worker._services.stop()
    worker._log._listeners.remove(worker._hinted)


async def test_a_worker_that_is_overtaken_wakes_up_to_refusals_and_its_agent_is_stopped(tmp_path: Path) -> None:
    waking, told = asyncio.Event(), asyncio.Queue[str]()

    @(app := Runstone()).agent
    async def sleeper(run: Run) -> int:
        await run.say(f"attempt {run.attempt}")
        if run.attempt == 1:
            try:
                await waking.wait()
                await run.say("I am back")
            except BaseException as error:
                told.put_nowait(type(error).__name__)
                raise
        return run.attempt

    async with stage(tmp_path, app) as place:
        first = await place.worker()
        run = await place.started("sleeper")
        await place.until(run, "message_completed")
        await freeze(first)
        second = await place.worker()
        events = await place.until(run, *TERMINAL_EVENTS)

        with pytest.raises(StaleWorker):
            await place.log.append(c.beat(first.id))
        with pytest.raises(StaleWorker):
            await place.log.append(c.claim_runs(app.agents.names(), 5, first.id))
        with pytest.raises(StaleAttempt):
            await place.log.append(c.end_run(run.run_id, c.Completed(values.raw(1)), c.Fence(1, 1)))
        waking.set()
        assert await asyncio.wait_for(told.get(), WAIT_S) in {"StaleAttempt", "CancelledError"}
        running = first.registry.get(run.run_id)
        assert running is None or running.task.done() or running.stop_reason == "fenced"

        after = await place.until(run, *TERMINAL_EVENTS)
        assert after == events, "nothing was added by the one that woke up"
        kinds = [(event["type"], event.get("attempt")) for event in events if event.get("run_id")]
        assert kinds == [
            ("run_queued", None),
            ("agent_started", 1),
            ("message_started", 1),
            ("message_delta", 1),
            ("message_completed", 1),
            ("attempt_superseded", None),
            ("agent_started", 2),
            ("message_started", 2),
            ("message_delta", 2),
            ("message_completed", 2),
            ("agent_completed", 2),
        ]
        assert [event["data"]["worker"] for event in events if event["type"] == "agent_started"] == [
            first.id,
            second.id,
        ]


async def test_a_worker_that_was_buried_stops_its_runs_and_goes_on_under_another_name(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    @(app := Runstone()).agent
    async def patient(run: Run) -> int:
        if run.attempt == 1:
            try:
                await asyncio.sleep(3600)
            finally:
                stopped.set()
        return run.attempt

    async with stage(tmp_path, app) as place:
        worker = await place.worker()
        run = await place.started("patient")
        await place.until(run, "agent_started")
        name = worker.id
        assert await place.log.append(c.bury(name, (await place.log.beats())[name]))
        await asyncio.wait_for(stopped.wait(), WAIT_S)
        events = await place.until(run, *TERMINAL_EVENTS)
        assert worker.id != name
        assert events[-1]["data"]["output"] == 2
        assert [event["data"]["worker"] for event in events if event["type"] == "agent_started"] == [name, worker.id]


async def test_what_one_worker_releases_another_goes_on_with(tmp_path: Path) -> None:
    @(app := Runstone()).agent
    async def moves(run: Run) -> int:
        if run.attempt == 1:
            await asyncio.sleep(3600)
        return run.attempt

    async with stage(tmp_path, app) as place:
        first = await place.worker()
        run = await place.started("moves")
        await place.until(run, "agent_started")
        await place.worker()
        await first.stop()
        events = await place.until(run, *TERMINAL_EVENTS)
        (superseded,) = [event["data"] for event in events if event["type"] == "attempt_superseded"]
        assert superseded == {"attempt": 1, "reason": "released", "messages": []}
        assert events[-1]["data"]["output"] == 2


async def test_two_workers_share_the_queue_and_run_everything_once(tmp_path: Path) -> None:
    ran: list[str] = []

    @(app := Runstone()).agent
    async def counts(run: Run) -> None:
        ran.append(run.id)
        await asyncio.sleep(0)

    async with stage(tmp_path, app) as place:
        await place.worker()
        await place.worker()
        runs = [await place.started("counts") for _ in range(200)]
        for run in runs:
            events = await place.until(run, *TERMINAL_EVENTS)
            assert [event["type"] for event in events if event["type"] in TERMINAL_EVENTS] == ["agent_completed"]
        assert sorted(ran) == sorted(run.run_id for run in runs)
        workers = {
            event["data"]["worker"]
            for run in runs
            for event in await place.until(run, "agent_started")
            if event["type"] == "agent_started"
        }
        assert len(workers) == 2, "both had some"
