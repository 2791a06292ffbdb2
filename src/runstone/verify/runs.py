"""An unfinished run, and whether what happens to it may happen."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from runstone import events as e
from runstone import states
from runstone.states import Status
from runstone.verify.findings import Problem
from runstone.verify.work import Work

_MOVES = frozenset(kind for moves in states.TRANSITIONS.values() for kind in moves)
# These come from others than an attempt, or from either; all else only an attempt writes.
_WITHOUT_ATTEMPT = states.TERMINAL_EVENTS | {
    "user_message",
    "run_queued",
    "attempt_superseded",
    "message_completed",
    "tool_completed",
    "approval_resolved",
    "cancel_requested",
}


class UnfinishedRun:
    """What must be remembered of a run until its end."""

    def __init__(self, run_no: int, run_id: str | None) -> None:
        self.run_no = run_no
        self.run_id = run_id or f"run_no {run_no}"
        self.has_row = run_id is not None
        self.status: Status | None = None
        self.attempt = 0
        self.writing: int | None = None  # the attempt that may write; none before the first, and once its root goes on
        self.parent_run_id: str | None = None
        self.root_run_id = self.run_id
        self.epoch = 0  # of a child: the attempt of its root in which its own began
        self.work = Work()
        self._on_crash: e.OnCrash = "resume"
        self._max_attempts = 0
        self._lost = 0
        self._lost_now = False  # the attempt before was
        self._superseded = 0  # attempts
        self._cancelling = False

    def event(self, data: e.Data, attempt: int | None) -> Iterator[Problem]:
        """What is wrong with the next event of the run, by what came before."""
        kind = e.TYPE_OF[type(data)]
        match data:
            case e.AgentStarted():
                yield from self._start(attempt)
            case e.AttemptSuperseded():
                yield from self._supersede(data)
            case _ if attempt != self.writing and (attempt is not None or kind not in _WITHOUT_ATTEMPT):
                yield Problem("attempt", self.stale(kind, attempt))
            case _:
                pass
        problems = list(self.work.event(data))
        yield from problems
        if any(problem.void for problem in problems):
            return
        if kind in _MOVES:
            yield from self._move(kind)
        elif self.status is None and kind != "user_message":
            yield Problem("run", f"{kind} before the run is queued, expected run_queued")
        if kind in states.TERMINAL_EVENTS:
            yield from self._end(kind, data, attempt)
        if isinstance(data, e.CancelRequested):
            if self._cancelling:
                yield Problem("run", "cancel_requested a second time, expected once")
            self._cancelling = True
        elif isinstance(data, e.RunQueued):
            self.parent_run_id = data.parent_run_id or None
            self.root_run_id = data.root_run_id
            self._on_crash, self._max_attempts = data.on_crash, data.max_attempts

    def stale(self, kind: str, attempt: int | None) -> str:
        said = f"{kind} without an attempt" if attempt is None else f"{kind} of attempt {attempt}"
        if self.writing is None and self.attempt:
            return f"{said}, expected attempt {self.attempt + 1} first: its root is in a later attempt than this one's"
        return f"{said}, expected attempt {self.attempt}"

    def _start(self, attempt: int | None) -> Iterator[Problem]:
        number, before = attempt or self.attempt + 1, self.attempt
        self.attempt = self.writing = number
        if attempt != before + 1:
            yield Problem("attempt", f"attempt {attempt} starts, expected attempt {before + 1}")
            return
        if self._superseded != before:
            said = f"attempt_superseded of attempt {before} right before it"
            yield Problem("attempt", f"attempt {attempt} starts, expected {said}")
        if self.parent_run_id is not None:
            return  # it goes with its root
        if self._cancelling:
            yield Problem("attempt", f"attempt {attempt} starts after a cancel was asked for, expected agent_cancelled")
        if not self._lost_now:
            return
        if self._on_crash == "fail":
            yield Problem("attempt", f"attempt {attempt} starts after a lost one, expected the end: on_crash is 'fail'")
        if self._lost >= self._max_attempts:
            most = f"at most {self._max_attempts}, which is max_attempts"
            yield Problem("attempt", f"attempt {attempt} starts after {self._lost} lost ones, expected {most}")

    def _supersede(self, data: e.AttemptSuperseded) -> Iterator[Problem]:
        if data.attempt != self.attempt or data.attempt <= self._superseded:
            said = f"attempt {self.attempt}" if self.attempt > self._superseded else "an attempt to start before"
            yield Problem("attempt", f"attempt_superseded of attempt {data.attempt}, expected {said}")
        self._superseded = self.attempt
        self._lost_now = data.reason == "lost"
        self._lost += self._lost_now

    def _move(self, kind: str) -> Iterator[Problem]:
        target = states.after(self.status, kind)
        if target is None:
            may = ", ".join(states.TRANSITIONS[self.status]) or "nothing"
            yield Problem("run", f"{kind} while the run is {self.status or 'not queued'}, expected one of: {may}")
            target = next(moves[kind] for moves in states.TRANSITIONS.values() if kind in moves)
        self.status = target

    def _end(self, kind: str, data: e.Data, attempt: int | None) -> Iterator[Problem]:
        if self._cancelling and kind != "agent_cancelled":
            yield Problem("run", f"{kind} after a cancel was asked for, expected agent_cancelled")
        for what in self.work.left_open():
            yield Problem("run", f"{kind} while {what} is open, expected it to be closed before")
        if isinstance(data, e.AgentFailed) and attempt is None and _error_type(data) == "MaxAttempts":
            lost = self._lost + 1  # the last one died, too
            if lost < self._max_attempts:
                yield Problem("attempt", f"it fails after {lost} lost attempts, expected {self._max_attempts} first")


class _Error(msgspec.Struct):
    type: str = ""


def _error_type(data: e.AgentFailed) -> str:
    try:
        return msgspec.json.decode(data.error, type=_Error).type
    except msgspec.MsgspecError:
        return ""
