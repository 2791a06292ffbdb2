"""A ledger of what was really done, whatever a log says: one line for each effect, on the disk before anything else
happens.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

STEP = "step"  # a step's function began; the item is its key
SEEN = "seen"  # an agent was given a result; the item is what it did


class Entry(msgspec.Struct, frozen=True):
    """One execution of a tool's or a step's function, or what an agent was given."""

    run_id: str
    attempt: int
    name: str  # of the tool, or STEP or SEEN
    item: str
    receipt: str  # of this very execution, or the result
    action_id: str = ""
    key: str = ""  # for idempotence


def note(path: str, entry: Entry) -> None:
    """Appends a line; a kill leaves all of it or none."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, msgspec.json.encode(entry) + b"\n")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def entries(path: Path) -> list[Entry]:
    """All that was done, in order."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Entry) for line in path.read_bytes().splitlines()]
