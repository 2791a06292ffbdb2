"""The worker: claims runs while it has free slots, hands them to the executor, and passes cancels on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from runstone.broker import Hint
from runstone.clock import Clock
from runstone.commands import CANCEL_DEADLINE_S, claim_runs, end_orphans
from runstone.errors import StoreFailed
from runstone.ids import new_id
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.runtime.breakers import Breakers
from runstone.runtime.definitions import Agents
from runstone.runtime.executor import Executor
from runstone.runtime.registry import Registry
from runstone.runtime.watchdog import Watchdog
from runstone.service import Tasks, every
from runstone.store import RunRow

logger = structlog.get_logger(__name__)

POLL_S = 2.0  # how late a claim or a cancel may be when its hint was lost
_CLAIM_MAX = 100  # runs a transaction, so that a long queue does not hold up the appends
_SWEEP_S = 5.0


class Worker:
    """One per process. `start` ends what a dead process left under way, then takes up the queue."""

    def __init__(
        self,
        log: Log,
        agents: Agents,
        breakers: Breakers,
        clock: Clock,
        metrics: Metrics,
        *,
        slots: int,
        debug: bool,
    ) -> None:
        self.id = new_id("wrk")
        self.registry = Registry()
        self._log = log
        self._agents = agents
        self._clock = clock
        self._metrics = metrics
        self._slots = slots
        self._runs = Tasks("run")
        self._services = Tasks("worker", on_crash=log.crashed)
        self._work = asyncio.Event()
        self._executor = Executor(log, self.registry, breakers, clock, metrics, Tasks("agent"), debug=debug)
        self._watchdog = Watchdog(metrics)

    async def start(self) -> None:
        await self._end_orphans()
        self._log.listen(self._hinted)
        self._watchdog.start()
        self._work.set()
        self._services.run(self._claim_loop(), "claim")
        self._services.run(every(POLL_S, self._poll), "poll")
        self._services.run(every(_SWEEP_S, self._sweep), "sweep")

    async def stop(self) -> None:
        """Stops claiming, keeps what the runs have said, and lets go of them; safe twice."""
        await self._services.stop()
        self.registry.stop_all("shutdown")
        await self._runs.wait()
        await self._executor.stop()
        self._watchdog.stop()

    async def _end_orphans(self) -> None:
        while ended := await self._log.append(end_orphans(_CLAIM_MAX)):
            logger.warning("ended runs that a dead process left under way", runs=len(ended))

    def _hinted(self, hint: Hint) -> None:
        if hint.about == "cancel":
            self.registry.cancel(hint.id)
        elif hint.about == "ended":
            self._stop_if_running(hint.id)
            self._work.set()  # there may be room for the next run of its thread
        elif hint.about == "work":
            self._work.set()

    def _stop_if_running(self, run_id: str) -> None:
        """A run that was ended over its agent's head, as by the end of its thread."""
        running = self.registry.get(run_id)
        if running is not None and not running.task.done():
            running.stop("fenced")

    async def _claim_loop(self) -> None:
        names = self._agents.names()
        while True:
            await self._work.wait()
            self._work.clear()
            while (free := self._slots - len(self._runs)) > 0 and names:
                wanted = min(free, _CLAIM_MAX)
                claimed: list[RunRow] = await self._log.append(claim_runs(names, wanted, self.id))
                for row in claimed:
                    self._runs.run(self._run(row), row.run_id)
                if len(claimed) < wanted:
                    break

    async def _run(self, row: RunRow) -> None:
        try:
            await self._executor.execute(self._agents.get(row.agent), row)
        finally:
            self._work.set()  # a slot is free

    async def _poll(self) -> None:
        """Finds what lost hints did not say."""
        self._work.set()
        with suppress(StoreFailed):
            under_way = [running.run_id for running in self.registry if running.completed is None]
            for run_id, why in (await self._log.to_stop(under_way)).items():
                if why == "cancel":
                    self.registry.cancel(run_id)
                else:
                    self._stop_if_running(run_id)
            statuses = await self._log.rows.statuses()
            for status in ("queued", "running", "waiting"):
                self._metrics.runs.labels(status=status).set(statuses.get(status, 0))

    async def _sweep(self) -> None:
        for running in self.registry.clean_up(self._clock.monotonic(), CANCEL_DEADLINE_S):
            logger.warning("an agent still runs after the end of its run", run=running.run_id)
            running.task.cancel()
