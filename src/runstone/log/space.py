"""The room for what runs have said and the log has not yet committed, of the whole process."""

from __future__ import annotations

import asyncio

from runstone.limits import PROCESS_BUFFER_BYTES_MAX
from runstone.metrics import Metrics


class Space:
    """Counts bytes; whoever finds no room waits for the next commit."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._bytes = 0
        self._freed = asyncio.Event()
        self._awaited = False

    @property
    def full(self) -> bool:
        return self._bytes >= PROCESS_BUFFER_BYTES_MAX

    def take(self, size: int) -> None:
        self._bytes += size

    def release(self, size: int) -> None:
        self._bytes -= size
        self._metrics.buffer_bytes.set(self._bytes)
        if self._awaited:
            self._awaited = False
            self._freed.set()
            self._freed = asyncio.Event()

    async def wait(self) -> None:
        self._awaited = True
        await self._freed.wait()
