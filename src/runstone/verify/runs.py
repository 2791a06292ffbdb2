"""An unfinished run, and whether what happens to it may happen."""

from __future__ import annotations

from collections.abc import Iterator

from runstone import events as e
from runstone import states
from runstone.states import Status
from runstone.verify.findings import Check

_MOVES = frozenset(kind for moves in states.TRANSITIONS.values() for kind in moves)


class UnfinishedRun:
    """What must be remembered of a run until its end."""

    def __init__(self, run_no: int, run_id: str | None) -> None:
        self.run_no = run_no
        self.run_id = run_id or f"run_no {run_no}"
        self.has_row = run_id is not None
        self.status: Status | None = None
        self.attempt = 0
        self.parent_run_id: str | None = None
        self.messages: set[str] = set()  # that have not ended
        self.superseded: set[str] = set()  # that had not ended when a later attempt began
        self.actions: set[str] = set()  # that have not ended
        self.ended_messages: dict[str, str] = {}  # with their status: a later attempt may supersede them
        self._approvals: set[str] = set()  # open ones
        self._cancelling = False

    def event(self, data: e.Data, attempt: int | None) -> Iterator[tuple[Check, str]]:
        """What is wrong with the next event of the run, by what came before."""
        kind = e.TYPE_OF[type(data)]
        if isinstance(data, e.AgentStarted):
            if attempt != self.attempt + 1:
                yield "attempt", f"attempt {attempt} starts, expected attempt {self.attempt + 1}"
            self.attempt = attempt or self.attempt + 1
        elif attempt is not None and attempt != self.attempt:
            yield "attempt", self.stale(kind, attempt)
        if kind in _MOVES:
            yield from self._move(kind, data)
        elif self.status is None and kind != "user_message":
            yield "run", f"{kind} before the run is queued, expected run_queued"
        if kind in states.TERMINAL_EVENTS:
            yield from self._end(kind)
        if isinstance(data, e.CancelRequested):
            self._cancelling = True
        elif isinstance(data, e.RunQueued):
            self.parent_run_id = data.parent_run_id or None

    def stale(self, kind: str, attempt: int | None) -> str:
        return f"{kind} of attempt {attempt}, expected attempt {self.attempt}"

    def _move(self, kind: str, data: e.Data) -> Iterator[tuple[Check, str]]:
        target = states.after(self.status, kind)
        if target is None:
            may = ", ".join(states.TRANSITIONS[self.status]) or "nothing"
            yield "run", f"{kind} while the run is {self.status or 'not queued'}, expected one of: {may}"
            target = next(moves[kind] for moves in states.TRANSITIONS.values() if kind in moves)
        if isinstance(data, e.ApprovalRequested):
            self._approvals.add(data.approval_id)
        elif isinstance(data, e.ApprovalResolved):
            self._approvals.discard(data.approval_id)
            target = "waiting" if self._approvals else target
        self.status = target

    def _end(self, kind: str) -> Iterator[tuple[Check, str]]:
        if self._cancelling and kind != "agent_cancelled":
            yield "run", f"{kind} after a cancel was asked for, expected agent_cancelled"
        for what, still_open in (("message", self.messages), ("action", self.actions), ("approval", self._approvals)):
            for id in sorted(still_open):
                yield "run", f"{kind} while the {what} {id} is open, expected it to be closed before"
