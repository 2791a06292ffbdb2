"""The feed as Server-Sent Events: a user's threads as they change. The spec is PROTOCOL.md, section 7."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from runstone.feed import Feed
from runstone.gateway.sse import LiveStream, Out, Streaming
from runstone.limits import FRAME_BYTES_SOFT
from runstone.log import FeedTail
from runstone.views import FeedPage


class FeedStream(LiveStream[FeedTail]):
    """It has no end of its own."""

    def __init__(self, shared: Streaming, user_id: str, *, after: int | None) -> None:
        super().__init__(shared, user_id)
        self._after = after

    def follow(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[FeedTail]:
        return self._shared.log.feed(self._user_id, after=self._after, wake=wake)

    async def begin(self, tail: FeedTail, out: Out) -> None:
        self._feed = Feed(self._shared.log.generation, head=tail.head)
        await self._show(FeedPage((), tail.cursor, tail.head), out)

    async def go_on(self, tail: FeedTail, out: Out) -> bool:
        await self._show(await tail.read(), out)
        return False

    async def _show(self, page: FeedPage, out: Out) -> None:
        shown, caught_up = self._feed.take(page)
        chunk = b""
        for thread in shown:
            chunk += thread.event()
            if len(chunk) > FRAME_BYTES_SOFT:
                await out.write(chunk)
                chunk = b""
        if chunk:
            await out.write(chunk)
        if caught_up is not None:
            await out.control("caught_up", cursor=caught_up)
