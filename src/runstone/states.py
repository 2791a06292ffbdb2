"""The states of a run, as one table; the diagram in the docs is made from it."""

from __future__ import annotations

from typing import Literal

Status = Literal["queued", "running", "waiting", "completed", "failed", "cancelled"]

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
