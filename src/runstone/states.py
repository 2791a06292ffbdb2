"""The states of a run, as one table; the diagram in the docs is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Status = Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]

ApprovalStatus = Literal["open", "approved", "denied", "answered", "expired", "cancelled"]

TERMINAL_EVENTS = frozenset({"agent_completed", "agent_failed", "agent_cancelled"})

# status before → event → status after; what is not here does not happen
TRANSITIONS: dict[Status | None, dict[str, Status]] = {
    None: {"run_queued": "queued"},
    "queued": {
        "agent_started": "running",
        "agent_failed": "failed",
        "agent_cancelled": "cancelled",
    },
    "running": {
        "agent_started": "running",  # the next attempt, after a crash
        "approval_requested": "waiting",
        "agent_completed": "completed",
        "agent_failed": "failed",
        "agent_cancelled": "cancelled",
    },
    "waiting": {
        "agent_started": "running",
        "approval_requested": "waiting",
        "approval_resolved": "running",  # when it was the last one open
        "agent_completed": "completed",
        "agent_failed": "failed",
        "agent_cancelled": "cancelled",
    },
    "completed": {},
    "failed": {},
    "cancelled": {},
}

UNFINISHED: frozenset[Status] = frozenset({"queued", "running", "waiting"})
FINISHED: frozenset[Status] = frozenset({"completed", "failed", "cancelled"})


def after(status: Status | None, event_type: str) -> Status | None:
    """The status after an event; None where the event is not one that changes it here."""
    return TRANSITIONS[status].get(event_type)


def before(event_type: str) -> frozenset[Status]:
    """The statuses in which an event may change a run's status."""
    return frozenset(status for status, moves in TRANSITIONS.items() if status is not None and event_type in moves)


class Member(NamedTuple):
    """An unfinished run among its relatives: who called it, its status, how many of its own approvals are open."""

    parent: str | None
    status: Status
    open_approvals: int


# Events after which the runs of a family may stand otherwise than before.
FAMILY_EVENTS = frozenset({"run_queued", "agent_started", "approval_requested", "approval_resolved"}) | TERMINAL_EVENTS


def standing(family: Mapping[str, Member]) -> dict[str, Status]:
    """The statuses of a root run and its descendants, those that are unfinished, by id.

    A run waits while an approval of its own is open, or while it has called others and all of them wait.
    """
    called: dict[str, list[str]] = {}
    for run_id, member in family.items():
        if member.parent is not None:
            called.setdefault(member.parent, []).append(run_id)
    found: dict[str, Status] = {}

    def settle(run_id: str) -> Status:
        member = family[run_id]
        below = [settle(child) for child in called.get(run_id, ())]
        if member.status == "queued":
            found[run_id] = "queued"
        elif member.open_approvals or (below and all(status == "waiting" for status in below)):
            found[run_id] = "waiting"
        else:
            found[run_id] = "running"
        return found[run_id]

    for run_id, member in family.items():
        if member.parent not in family:
            settle(run_id)
    return found


def diagram() -> str:
    """The table as a Mermaid state diagram."""
    lines = ["stateDiagram-v2", "    [*] --> queued: run_queued"]
    for status, moves in TRANSITIONS.items():
        if status is None:
            continue
        lines += [f"    {status} --> {target}: {event}" for event, target in moves.items()]
        if not moves:
            lines.append(f"    {status} --> [*]")
    return "\n".join(lines)
