"""Time as a parameter, so that a simulation can own it."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    def now_us(self) -> int:
        """Microseconds since 1970, UTC; for people, never for order."""
        ...

    def monotonic(self) -> float:
        """Seconds from an unknown start; for deadlines."""
        ...


class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1000

    def monotonic(self) -> float:
        return time.monotonic()


def to_datetime(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)  # exact, where a float of seconds is not


def from_rfc3339(time: str) -> int:
    """Microseconds of a time as `to_rfc3339` writes it."""
    return (datetime.fromisoformat(time) - _EPOCH) // timedelta(microseconds=1)


def to_rfc3339(time_us: int) -> str:
    return to_datetime(time_us).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
