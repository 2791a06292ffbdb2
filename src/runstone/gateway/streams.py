"""What SSE and WebSocket streams share: they are counted, and told when the server closes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from runstone.errors import Limited, Unavailable
from runstone.metrics import Metrics

ClosingReason = Literal["restarting", "deleted", "store_failed"]
CLOSE_GRACE_S = 3.0  # for streams to say goodbye


class Streams:
    """All open streams of a gateway."""

    def __init__(self, metrics: Metrics, *, per_user_max: int) -> None:
        self._metrics = metrics
        self._per_user_max = per_user_max
        self._users: Counter[str] = Counter()
        self._wakes: set[Callable[[], None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.closing: ClosingReason | None = None

    @contextmanager
    def opened(self, user_id: str, protocol: str, wake: Callable[[], None]) -> Iterator[None]:
        """Counts a stream while it is open; raises Limited, and Unavailable while the server closes."""
        if self.closing is not None:
            raise Unavailable("The server is restarting.")
        if self._users[user_id] >= self._per_user_max:
            raise Limited(f"You have {self._per_user_max} open streams.")
        self._users[user_id] += 1
        self._wakes.add(wake)
        self._empty.clear()
        gauge = self._metrics.connections.labels(protocol=protocol)
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()
            self._wakes.discard(wake)
            self._users[user_id] -= 1
            if not self._users[user_id]:
                del self._users[user_id]
            if not self._wakes:
                self._empty.set()

    async def close(self, reason: ClosingReason) -> None:
        """Every stream says goodbye and ends; returns when they have, or after the grace. Safe twice."""
        self.closing = reason
        for wake in list(self._wakes):
            wake()
        try:
            async with asyncio.timeout(CLOSE_GRACE_S):
                await self._empty.wait()
        except TimeoutError:
            pass  # the sockets that are left are closed by the server
