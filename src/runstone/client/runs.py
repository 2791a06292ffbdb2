"""A run as its caller holds it: wait for it, follow it, stop it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from urllib.parse import quote

from runstone import values
from runstone.client.answers import listing, resource
from runstone.client.http import Http
from runstone.client.stream import EventStream
from runstone.limits import WAIT_S_MAX
from runstone.resources import Approval, Run
from runstone.states import ApprovalStatus

POLL_S = 0.1  # between two waits for the end: a server that is stopping answers them at once


class RunHandle:
    """A run, by its id. The run goes on whether or not anyone holds a handle."""

    def __init__(self, http: Http, run_id: str, latest: Run | None = None) -> None:
        self.run_id = run_id
        self.latest = latest  # the run as this handle saw it last
        self._http = http
        self._path = f"/v1/runs/{quote(run_id, safe='')}"

    def __repr__(self) -> str:
        return f"<RunHandle {self.run_id}{'' if self.latest is None else ' ' + self.latest.status}>"

    @property
    def thread_id(self) -> str:
        """Known of a run that this handle started, refreshed or waited for; else RuntimeError."""
        if self.latest is None:
            raise RuntimeError(f"The thread of {self.run_id} is not known yet: `await run.refresh()` first.")
        return self.latest.thread_id

    @property
    def interrupted(self) -> list[str]:
        """The runs that this one interrupts, where it was started with `on_busy="interrupt"`."""
        return [] if self.latest is None else list(self.latest.interrupted or ())

    async def refresh(self) -> Run:
        """The run as it is now."""
        return await self._look(wait_s=0)

    async def result(self, timeout_s: float | None = None) -> Run:
        """The run once it has ended, however it ended. Raises TimeoutError; the run goes on."""
        async with asyncio.timeout(timeout_s):
            while True:
                run = await self._look(wait_s=WAIT_S_MAX)
                if run.ended:
                    return run
                await asyncio.sleep(POLL_S)

    def events(self, after: int = 0, types: Collection[str] | None = None) -> EventStream:
        """The events of the run and its children, up to its end, which `types` never hides."""
        return EventStream(self._http, f"{self._path}/events", after=after, types=types, run_id=self.run_id)

    async def approvals(self, status: ApprovalStatus | None = None) -> list[Approval]:
        """All that the run and its children asked people, oldest first; `client.approve` and the like decide it."""
        params = {"run_id": self.run_id} | ({} if status is None else {"status": status})
        return await listing(self._http, Approval, "approvals", "/v1/approvals", params)

    async def cancel(self, reason: str | None = None) -> Run:
        """Asks the run to stop, and returns at once: `result` waits for the end. Safe to repeat."""
        body = values.encode({} if reason is None else {"reason": reason})
        return self._saw(await self._http.request("POST", f"{self._path}/cancel", body=body))

    async def _look(self, wait_s: float) -> Run:
        params = {"wait_s": wait_s}
        return self._saw(await self._http.request("GET", self._path, params=params, wait_s=wait_s))

    def _saw(self, answer: bytes) -> Run:
        run = resource(self._http, Run, answer)
        # Only the answer to the start says whom it interrupted.
        self.latest = run.model_copy(update={"interrupted": self.interrupted or run.interrupted})
        return self.latest
