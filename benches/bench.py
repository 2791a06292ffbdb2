"""What every benchmark is given: how large it may be, and a folder of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

T = TypeVar("T")

Scale = Literal["full", "quick", "tiny"]


@dataclass(frozen=True)
class Bench:
    scale: Scale
    folder: Path
    huge: bool = False  # also what takes minutes and gigabytes

    def pick(self, full: T, quick: T, tiny: T) -> T:
        """The size for this scale. `tiny` is for the test that keeps benchmarks from rotting; it measures nothing."""
        return {"full": full, "quick": quick, "tiny": tiny}[self.scale]

    def room(self, name: str) -> Path:
        """A new folder, so that no two measurements share a file."""
        path = self.folder / name
        path.mkdir(parents=True)
        return path


class Lost(Exception):
    """What was to arrive did not: a figure of it would mean nothing."""
