"""Brings people's decisions to the attempts that wait for them."""

from __future__ import annotations

import asyncio

from runstone.log import Log
from runstone.store import RecordedApproval


class Answers:
    """A hint says which run has one; a look at the log every few seconds finds what lost hints did not say."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._waiting: dict[str, dict[str, asyncio.Future[RecordedApproval]]] = {}  # by run, by approval
        self._hinted: set[str] = set()
        self._look = asyncio.Event()

    async def wait(self, run_id: str, approval_id: str) -> RecordedApproval:
        """The approval, once it is decided."""
        decided: asyncio.Future[RecordedApproval] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(run_id, {})[approval_id] = decided
        self.hinted(run_id)  # it may have been decided already
        try:
            return await decided
        finally:
            of_run = self._waiting[run_id]
            del of_run[approval_id]
            if not of_run:
                del self._waiting[run_id]

    def hinted(self, run_id: str) -> None:
        """An approval of the run was decided."""
        if run_id in self._waiting:
            self._hinted.add(run_id)
            self._look.set()

    def hinted_all(self) -> None:
        """Any of them may have been."""
        self._hinted.update(self._waiting)
        if self._hinted:
            self._look.set()

    async def serve(self) -> None:
        """Runs until it is cancelled."""
        while True:
            await self._look.wait()
            self._look.clear()
            hinted, self._hinted = self._hinted, set()
            asked = [approval_id for run_id in hinted for approval_id in self._waiting.get(run_id, ())]
            if not asked:
                continue
            for approval in await self._log.resolved(asked):
                self._settle(approval)

    def _settle(self, approval: RecordedApproval) -> None:
        decided = self._waiting.get(approval.run_id, {}).get(approval.approval_id)
        if decided is not None and not decided.done():
            decided.set_result(approval)
