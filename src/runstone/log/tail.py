"""One reader's place in a thread."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from runstone.limits import PAGE_ROWS_MAX
from runstone.views import Page, ThreadRef

Read: TypeAlias = Callable[[ThreadRef, int, int], Awaitable[Page]]  # thread, after, limit
ReadNow: TypeAlias = Callable[[ThreadRef, int, int], "Page | None"]


class Tail:
    """It keeps a cursor and no events: who reads slowly falls behind, that is all."""

    __slots__ = ("_read", "_read_now", "cursor", "head", "thread", "wake")

    def __init__(self, read: Read, read_now: ReadNow, thread: ThreadRef, after: int, wake: Callable[[], None]) -> None:
        self._read = read
        self._read_now = read_now
        self.thread = thread
        self.cursor = after
        self.head = 0
        self.wake = wake

    @property
    def behind(self) -> bool:
        return self.head > self.cursor

    def hinted(self, head: int) -> None:
        if head > self.head:
            self.head = head
            self.wake()

    async def read(self, limit: int = PAGE_ROWS_MAX) -> Page:
        """The next events, possibly none; moves the cursor past them."""
        page = await self._read(self.thread, self.cursor, limit)
        self.cursor = page.last
        return page

    def peek(self, limit: int = PAGE_ROWS_MAX) -> Page | None:
        """The next events without waiting, None if that takes a read of the store; the cursor stays."""
        return self._read_now(self.thread, self.cursor, limit)
