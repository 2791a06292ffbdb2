"""Who follows a user's threads: woken when one of them has changed, and read from the rows, never kept."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from runstone.errors import CursorAhead
from runstone.limits import FEED_PAUSE_S, PAGE_ROWS_MAX
from runstone.views import FeedPage

ReadFeed: TypeAlias = Callable[[str, int, int], Awaitable[FeedPage]]  # user, after, deleted after
ReadHeads: TypeAlias = Callable[[Sequence[str]], Awaitable[list[int]]]


class FeedTail:
    """One reader's place among the changes of a user's threads: a cursor, and no thread.

    A thread that changed many times is one row, where its newest change is; so who reads slowly, or waits, reads
    less. After each read that found the end there is a pause, for the changes of a busy moment to be read together.
    """

    __slots__ = ("_deleted_after", "_hinted", "_pause", "_read", "cursor", "head", "user_id", "wake")

    def __init__(self, read: ReadFeed, user_id: str, after: int, wake: Callable[[], None]) -> None:
        self._read = read
        self.user_id = user_id
        self.cursor = after
        self.head = 0
        self.wake = wake
        self._deleted_after = 0
        self._hinted = False  # hints name no pos: after one there is something to read, or there was
        self._pause: asyncio.TimerHandle | None = None

    @property
    def behind(self) -> bool:
        return (self._hinted or self.head > self.cursor) and self._pause is None

    def begin_anew(self) -> None:
        """For a reader who has nothing yet: what was deleted up to the head is not worth a word."""
        self._deleted_after = self.head

    def hinted(self) -> None:
        if not self._hinted:
            self._hinted = True
            self._wake()

    def found(self, head: int) -> None:
        if head > self.head:
            self.head = head
            self._wake()

    async def read(self) -> FeedPage:
        """The next changes, possibly none; moves the cursor past them."""
        self._hinted = False  # before the read: a hint during it may be of what it did not see
        page = await self._read(self.user_id, self.cursor, self._deleted_after)
        self.cursor = page.last
        self.head = max(self.head, page.head)
        if self.head <= self.cursor and self._pause is None:
            self._pause = asyncio.get_running_loop().call_later(FEED_PAUSE_S, self._go_on)
        return page

    def close(self) -> None:
        if self._pause is not None:
            self._pause.cancel()

    def _wake(self) -> None:
        if self._pause is None:
            self.wake()

    def _go_on(self) -> None:
        self._pause = None
        if self.behind:
            self.wake()


class Feeds:
    """All feeds that are followed here, by user."""

    def __init__(self, read: ReadFeed, read_heads: ReadHeads) -> None:
        self._read = read
        self._read_heads = read_heads
        self._followed: dict[str, set[FeedTail]] = {}

    async def follow(self, user_id: str, *, after: int | None, wake: Callable[[], None]) -> FeedTail:
        """Subscribes first and looks at the head then: the other way round leaves a gap. Raises CursorAhead."""
        tail = FeedTail(self._read, user_id, after or 0, wake)
        self._followed.setdefault(user_id, set()).add(tail)
        try:
            tail.found((await self._read_heads([user_id]))[0])
            if tail.cursor > tail.head:
                raise CursorAhead("The cursor is beyond the newest change.", remedy="Leave it away to begin anew.")
        except BaseException:
            self.leave(tail)
            raise
        if after is None:
            tail.begin_anew()
        return tail

    def leave(self, tail: FeedTail) -> None:
        """The tail is woken no more; safe twice."""
        tail.close()
        tails = self._followed.get(tail.user_id)
        if tails is not None:
            tails.discard(tail)
            if not tails:
                del self._followed[tail.user_id]

    def hinted(self, user_id: str) -> None:
        for tail in self._followed.get(user_id, ()):
            tail.hinted()

    def wake(self) -> None:
        for tails in self._followed.values():
            for tail in tails:
                tail.wake()

    async def poll(self) -> None:
        """Finds what lost hints did not say."""
        users = list(self._followed)
        for start in range(0, len(users), PAGE_ROWS_MAX):
            some = users[start : start + PAGE_ROWS_MAX]
            heads = await self._read_heads(some)
            for user_id, head in zip(some, heads, strict=True):
                for tail in self._followed.get(user_id, ()):
                    tail.found(head)
