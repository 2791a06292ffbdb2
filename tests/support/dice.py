"""Dice whose throws can be repeated."""

from __future__ import annotations

import os
import random


def dice(name: str) -> random.Random:
    """RUNSTONE_SEED replays what an earlier run did; a failed test shows its seed."""
    seed = os.environ.get("RUNSTONE_SEED") or str(random.SystemRandom().getrandbits(32))
    print(f"{name}: RUNSTONE_SEED={seed}")  # noqa: T201 - pytest shows it when the test fails
    return random.Random(f"{name} {seed}")
