"""What a store should hold, as plain objects: threads, runs and what the runs say, do and ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec

from runstone import commands as c
from runstone.messages import MessageFold

MAX_ATTEMPTS = 3  # as `making.new_run` gives it


class Thread(msgspec.Struct, eq=False):
    user: str
    id: str = ""
    deleted: bool = False
    runs: list[Run] = []  # roots, in the order they were queued

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if not run.ended]


class Run(msgspec.Struct, eq=False, kw_only=True):
    """`begun` says whether it was started; whether it runs or waits follows from its family."""

    thread: Thread
    parent: Run | None = None
    run_id: str = ""
    attempt: int = 0
    epoch: int = 0  # the attempt of the root in which its own began
    lost: int = 0
    owner: str | None = None  # of a root
    end: Literal["completed", "failed", "cancelled"] | None = None
    cancel_deadline: int | None = None
    children: list[Run] = []
    open: dict[str, MessageFold] = {}
    messages: dict[str, str] = {}  # their statuses
    kept: set[str] = set()  # messages inside a step
    actions: dict[str, str] = {}
    approvals: dict[str, Approval] = {}
    steps: set[str] = set()
    made: int = 0

    @property
    def root(self) -> Run:
        return self if self.parent is None else self.parent.root

    @property
    def ended(self) -> bool:
        return self.end is not None

    @property
    def status(self) -> str:
        if self.end is not None:
            return self.end
        if not self.attempt:
            return "queued"
        below = [child.status for child in self.children if not child.ended]
        asked = any(approval.status == "open" for approval in self.approvals.values())
        return "waiting" if asked or (below and set(below) == {"waiting"}) else "running"

    @property
    def holds(self) -> bool:
        """Whether its newest attempt may write."""
        root = self.root
        return not self.ended and self.attempt > 0 and root.owner is not None and root.attempt == self.epoch

    def family(self) -> Iterator[Run]:
        yield self
        for child in self.children:
            yield from child.family()

    def begin(self, worker: str | None, reason: str | None) -> None:
        """The next attempt."""
        self.lost += reason == "lost"
        for message_id, status in self.messages.items():
            if message_id not in self.kept and status != "superseded":
                self.messages[message_id] = "superseded"
                self.open.pop(message_id, None)
        self._interrupt()
        self.attempt += 1
        self.epoch = self.attempt if self.parent is None else self.root.attempt
        if worker is not None:
            self.owner = worker

    def finish(self, outcome: c.Outcome) -> str:
        """The end, and that of all below; the type of its terminal event."""
        for child in self.children:
            if not child.ended:
                child.finish(c.Cancelled("parent"))
        cancelled = self.cancel_deadline is not None or isinstance(outcome, c.Cancelled)
        self.end = "cancelled" if cancelled else "failed" if isinstance(outcome, c.Failed) else "completed"
        for message_id in self.open:
            self.messages[message_id] = "completed" if self.end == "completed" else "partial"
        self.open = {}
        self._interrupt()
        for approval in self.approvals.values():
            if approval.status == "open":
                approval.status = "cancelled"
        return f"agent_{self.end}"

    def _interrupt(self) -> None:
        self.actions |= {action_id: "interrupted" for action_id, status in self.actions.items() if status == "pending"}


class Approval(msgspec.Struct, eq=False):
    approval_id: str
    expires_at: int
    status: str = "open"
