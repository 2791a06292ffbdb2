"""Finds dead workers: no clocks are compared, only how long a beat has stood still by one's own."""

from __future__ import annotations

import structlog

from runstone.clock import Clock
from runstone.commands import bury
from runstone.log import Log

logger = structlog.get_logger(__name__)


class Leases:
    """What one observer has seen of the others' beats."""

    def __init__(self, log: Log, clock: Clock, lease_s: float) -> None:
        self._log = log
        self._clock = clock
        self._lease_s = lease_s
        self._seen: dict[str, tuple[int, float]] = {}  # by worker: its beat, and when it was new here

    async def bury_dead(self, *, but: str) -> list[str]:
        """Buries the workers whose beat has not moved for a lease; their ids."""
        beats = await self._log.beats()
        now = self._clock.monotonic()
        self._seen = {
            worker: seen if (seen := self._seen.get(worker)) is not None and seen[0] == beat else (beat, now)
            for worker, beat in beats.items()
            if worker != but
        }
        buried = []
        for worker, (beat, since) in self._seen.items():
            if now - since >= self._lease_s and await self._log.append(bury(worker, beat)):
                logger.warning("a worker is dead: its runs may be claimed", worker=worker, silent_s=round(now - since))
                buried.append(worker)
        return buried
