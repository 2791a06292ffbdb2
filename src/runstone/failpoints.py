"""Named places where a test may stop, kill or break the process; nothing happens unless one is armed.

Tests call `arm`; a server that was started with `RUNSTONE_FAILPOINTS="after_commit=kill:20"` dies by SIGKILL
the twentieth time it passes there.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Literal, get_args

Failpoint = Literal[
    "before_commit",
    "after_commit",
    "before_hint",
    "claimed",  # the claim is committed, no agent of it has started
    "tool_starting",  # that it will be called is committed
    "tool_ended",  # it has done its work, nothing of that is recorded
    "step_ended",  # the same of a step
    "child_called",  # the child exists, and has not started
    "child_ended",  # its end is committed, its caller does not know
    "asked",  # the question is committed, nobody waits for the answer
    "answered",  # the answer is here, and was given to nobody
    "agent_ended",  # it has returned, or raised; its run has not ended
    "released",  # the runs are nobody's any more, and their agents do not know
]
NAMES: tuple[str, ...] = get_args(Failpoint)

_armed: dict[str, Callable[[], None]] = {}


def hit(name: Failpoint) -> None:
    """Stands in the seams; costs one look into an empty dictionary."""
    if _armed and (action := _armed.get(name)) is not None:
        action()


def arm(name: Failpoint, action: Callable[[], None]) -> None:
    _armed[name] = action


def disarm_all() -> None:
    _armed.clear()


def arm_from(text: str) -> None:
    """Arms what `name=kill:N` (comma-separated) asks for; raises ValueError on anything else."""
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        verb, _, count = action.partition(":")
        if name not in NAMES or verb != "kill" or not count.isdigit() or int(count) < 1:
            raise ValueError(f"RUNSTONE_FAILPOINTS: {item!r} is not one of {', '.join(NAMES)} with =kill:N")
        _armed[name] = _kill_after(int(count))


def _kill_after(count: int) -> Callable[[], None]:
    left = count

    def action() -> None:
        nonlocal left
        left -= 1
        if left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return action
