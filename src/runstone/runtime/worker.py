"""The worker: shows that it lives, claims runs while it has free slots, and passes cancels and answers on."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import structlog

from runstone.broker import Hint
from runstone.clock import Clock
from runstone.commands import (
    CANCEL_DEADLINE_S,
    Claimed,
    beat,
    claim_runs,
    end_stopping,
    expire_approvals,
    release_runs,
)
from runstone.errors import StaleWorker, StoreFailed
from runstone.failpoints import hit
from runstone.ids import new_id
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.runtime.answers import Answers
from runstone.runtime.breakers import Breakers
from runstone.runtime.definitions import Agents
from runstone.runtime.executor import Executor
from runstone.runtime.lease import Leases
from runstone.runtime.registry import Registry
from runstone.runtime.watchdog import Watchdog
from runstone.service import Tasks, every

logger = structlog.get_logger(__name__)

POLL_S = 2.0  # how late a claim, a cancel or an answer may be when its hint was lost
BEATS_A_LEASE = 5  # one that is late is no death
_CLAIM_MAX = 100  # runs a transaction, so that a long queue does not hold up the appends
_SWEEP_S = 5.0


class Worker:
    """One per process. `start` registers it, and takes up what waits and what nobody owns."""

    def __init__(
        self,
        log: Log,
        agents: Agents,
        breakers: Breakers,
        clock: Clock,
        metrics: Metrics,
        *,
        slots: int,
        lease_s: float,
        grace_s: float,
        debug: bool,
    ) -> None:
        self.id = new_id("wrk")
        self.registry = Registry()
        self.draining = False
        self._registered = False
        self._log = log
        self._agents = agents
        self._clock = clock
        self._metrics = metrics
        self._slots = slots
        self._lease_s = lease_s
        self._grace_s = grace_s
        self._waiting = 0  # runs under way that wait for people: they take no slot
        self._runs = Tasks("run")
        self._services = Tasks("worker", on_crash=log.crashed)
        self._work = asyncio.Event()
        self._answers = Answers(log)
        self._leases = Leases(log, clock, lease_s)
        self._executor = Executor(
            log, agents, self.registry, breakers, self._answers, clock, metrics, Tasks("agent"), debug=debug
        )
        self._watchdog = Watchdog(metrics)

    async def start(self) -> None:
        await self._log.append(beat(self.id, first=True))
        self._registered = True
        self._log.listen(self._hinted)
        self._watchdog.start()
        self._work.set()
        self._services.run(self._claim_loop(), "claim")
        self._services.run(self._answers.serve(), "answers")
        self._services.run(every(self._lease_s / BEATS_A_LEASE, self._beat), "beat")
        self._services.run(every(POLL_S, self._poll), "poll")
        self._services.run(every(_SWEEP_S, self._sweep), "sweep")

    async def drain(self) -> None:
        """Claims no more, gives the runs under way a time to end, and lets go of the rest for the next worker.

        Those that wait for people are not waited for.
        """
        self.draining = True
        self._work.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._grace_s):
                while len(self._runs) > self._waiting:
                    self._work.clear()
                    await self._work.wait()
        await self._release()

    async def stop(self) -> None:
        """Lets go of the runs; safe twice, and before `start`."""
        self.draining = True
        await self._services.stop()
        await self._release()
        await self._runs.wait()
        await self._executor.stop()
        self._watchdog.stop()

    async def _release(self) -> None:
        if self._registered:
            self._registered = False
            with suppress(StoreFailed):
                await self._log.append(release_runs(self.id))  # fenced first, then cancelled
            hit("released")
        self.registry.stop_all("released")

    def _hinted(self, hint: Hint) -> None:
        if hint.about == "cancel":
            self.registry.cancel(hint.id)
        elif hint.about == "answer":
            self._answers.hinted(hint.id)
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
        while not self.draining:
            await self._work.wait()
            self._work.clear()
            with suppress(StaleWorker):  # the next beat says so, too, and begins anew
                while await self._claim():
                    pass

    async def _claim(self) -> bool:
        """Claims what there is and fits; whether there may be more."""
        names = self._agents.names()
        free = self._slots - (len(self._runs) - self._waiting)
        if free <= 0 or not names or self.draining:
            return False
        wanted = min(free, _CLAIM_MAX)
        started: list[Claimed]
        started, found = await self._log.append(claim_runs(names, wanted, self.id))
        if started:
            hit("claimed")
        for claimed in started:
            self.registry.expect(claimed.run.run_id)
            self._runs.run(self._run(claimed), claimed.run.run_id)
        return bool(found == wanted)

    async def _run(self, claimed: Claimed) -> None:
        try:
            await self._executor.execute(claimed, self._waits)
        finally:
            self.registry.complete(claimed.run.run_id, self._clock.monotonic())
            self._work.set()  # a slot is free

    def _waits(self, waiting: bool) -> None:
        self._waiting += 1 if waiting else -1
        self._work.set()

    async def _beat(self) -> None:
        """Shows that this worker lives, and looks for those that no longer do."""
        if not self._registered:
            return  # it has taken its leave
        try:
            await self._log.append(beat(self.id))
        except StaleWorker:
            await self._begin_anew()
        if await self._leases.bury_dead(but=self.id):
            self._work.set()

    async def _begin_anew(self) -> None:
        """After it was taken for dead; unless it took its leave while it beat."""
        if not self._registered:
            return
        logger.warning("this worker was taken for dead: it stops its runs and begins anew", worker=self.id)
        self.registry.stop_under_way("fenced")
        self.id = new_id("wrk")
        await self._log.append(beat(self.id, first=True))

    async def _poll(self) -> None:
        """Finds what lost hints did not say, and what no event begins: times that are over."""
        self._work.set()
        self._answers.hinted_all()
        with suppress(StoreFailed):
            under_way = [running.run_id for running in self.registry if running.completed is None]
            for run_id, why in (await self._log.to_stop(under_way)).items():
                if why == "cancel":
                    self.registry.cancel(run_id)
                else:
                    self._stop_if_running(run_id)
            for over in (expire_approvals, end_stopping):
                while len(await self._log.append(over(_CLAIM_MAX))) == _CLAIM_MAX:
                    pass
            statuses = await self._log.rows.statuses()
            for status in ("queued", "running", "waiting"):
                self._metrics.runs.labels(status=status).set(statuses.get(status, 0))

    async def _sweep(self) -> None:
        for running in self.registry.clean_up(self._clock.monotonic(), CANCEL_DEADLINE_S):
            logger.warning("an agent still runs after the end of its run", run=running.run_id)
            running.task.cancel()
