"""A clock that tests move by hand, also backwards."""

from __future__ import annotations

START_US = 1_800_000_000_000_000


class ManualClock:
    def __init__(self, now_us: int = START_US) -> None:
        self.time_us = now_us
        self.seconds = 0.0

    def now_us(self) -> int:
        return self.time_us

    def monotonic(self) -> float:
        return self.seconds
