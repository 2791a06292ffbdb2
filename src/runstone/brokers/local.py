"""Hints within one process."""

from __future__ import annotations

from collections.abc import Callable

from runstone.broker import Hint


class LocalBroker:
    def __init__(self) -> None:
        self._receive: Callable[[Hint], None] | None = None

    async def open(self, receive: Callable[[Hint], None]) -> None:
        self._receive = receive

    async def close(self) -> None:
        self._receive = None

    def publish(self, hint: Hint) -> None:
        if self._receive is not None:
            self._receive(hint)
