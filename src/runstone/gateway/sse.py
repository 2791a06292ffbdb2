"""Server-Sent Events, and a thread's or a run's events as such: the spec is PROTOCOL.md, section 4."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Generic, Protocol, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runstone.errors import StoreFailed
from runstone.events import Event
from runstone.gateway.connection import Connection, connection_of, drain_or_abort
from runstone.gateway.frames import RecentFrames
from runstone.gateway.streams import Streams
from runstone.limits import FRAME_BYTES_SOFT
from runstone.log import Log, Tail
from runstone.metrics import Metrics
from runstone.protocol import Filter, Subscription
from runstone.service import Tasks
from runstone.states import TERMINAL_EVENTS
from runstone.views import Page, ThreadRef

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Streaming(msgspec.Struct, frozen=True):
    """What every stream of a gateway needs."""

    log: Log
    streams: Streams
    metrics: Metrics
    tasks: Tasks
    heartbeat_s: float
    send_deadline_s: float
    frames: RecentFrames


class Following(Protocol):
    """A place in something that grows."""

    @property
    def behind(self) -> bool: ...


T = TypeVar("T", bound=Following)


class LiveStream(Response, Generic[T]):
    """The response that never hurries: it keeps a cursor, and sends what is beyond it as fast as it is read."""

    def __init__(self, shared: Streaming, user_id: str) -> None:
        super().__init__()
        self._shared = shared
        self._user_id = user_id

    @abstractmethod
    def follow(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[T]:
        """The place that the stream begins at."""

    @abstractmethod
    async def begin(self, tail: T, out: Out) -> None:
        """Shows nothing yet, which may be all there is."""

    @abstractmethod
    async def go_on(self, tail: T, out: Out) -> bool:
        """Reads and shows the next page; whether the stream has ended with it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        shared, wake = self._shared, asyncio.Event()
        with shared.streams.opened(self._user_id, "sse", wake.set):
            async with self.follow(wake.set) as tail:
                gone = shared.tasks.start(_until_gone(receive, wake), "sse")
                try:
                    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
                    out = Out(send, connection_of(scope), shared)
                    await self._stream(tail, wake, gone, out)
                    await out.end()
                except (OSError, TimeoutError):  # the client is gone, or reads nothing; its cursor is still good
                    await asyncio.wait({gone}, timeout=1)  # the server is told in its next turn, and logs nothing
                finally:
                    gone.cancel()

    async def _stream(self, tail: T, wake: asyncio.Event, gone: asyncio.Task[None], out: Out) -> None:
        heartbeat_s = self._shared.heartbeat_s
        await self.begin(tail, out)
        while True:
            wake.clear()
            while tail.behind and self._must_close() is None and not gone.done():
                try:
                    if await self.go_on(tail, out):
                        return None
                except StoreFailed:
                    return await out.control("closing", reason="store_failed")
                await out.sign_of_life(heartbeat_s)
            if gone.done():
                return None
            if (reason := self._must_close()) is not None:
                return await out.control("closing", reason=reason)
            await out.sign_of_life(heartbeat_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(max(heartbeat_s - out.silence_s, 0)):
                    await wake.wait()

    def _must_close(self) -> str | None:
        return "store_failed" if self._shared.log.failure is not None else self._shared.streams.closing


class EventStream(LiveStream[Tail]):
    """The events of a thread, or of a run up to its end."""

    def __init__(
        self, shared: Streaming, thread: ThreadRef, wanted: Filter, *, after: int, until_run: str | None
    ) -> None:
        super().__init__(shared, thread.user_id)
        self._thread = thread
        self._wanted = wanted
        self._after = after
        self._until_run = until_run

    def follow(self, wake: Callable[[], None]) -> AbstractAsyncContextManager[Tail]:
        return self._shared.log.tail(self._thread, after=self._after, wake=wake)

    async def begin(self, tail: Tail, out: Out) -> None:
        self._subscription = Subscription(self._wanted, after=self._after, head=tail.head)
        await out.events(*self._subscription.take(Page((), self._after)))

    async def go_on(self, tail: Tail, out: Out) -> bool:
        page = await tail.read()
        ended = self._ended(page)
        await out.events(*self._subscription.take(page, final=ended))
        if any(event.type == "thread_deleted" for event in page.events) and not ended:
            await out.control("closing", reason="deleted")
            return True
        return ended

    def _ended(self, page: Page) -> bool:
        return self._until_run is not None and any(
            event.run_id == self._until_run and event.type in TERMINAL_EVENTS for event in page.events
        )


class Out:
    """The way to one client."""

    def __init__(self, send: Send, connection: Connection | None, shared: Streaming) -> None:
        self._send = send
        self._connection = connection
        self._deadline_s = shared.send_deadline_s
        self._metrics = shared.metrics
        self._delivered = shared.metrics.events_delivered.labels(protocol="sse")
        self._written_at = asyncio.get_running_loop().time()

    async def events(self, events: Sequence[Event], caught_up: int | None) -> None:
        for chunk in _chunks(events):
            await self.write(chunk)
        self._delivered.inc(len(events))
        if caught_up is not None:
            await self.control("caught_up", head=caught_up)

    async def control(self, name: str, **data: str | int) -> None:
        await self.write(b"event: %b\ndata: %b\n\n" % (name.encode(), msgspec.json.encode(data)))

    @property
    def silence_s(self) -> float:
        return asyncio.get_running_loop().time() - self._written_at

    async def sign_of_life(self, heartbeat_s: float) -> None:
        """A comment after that much silence, also while all that happens is filtered out."""
        if self.silence_s >= heartbeat_s:
            await self.write(b": keep-alive\n\n")

    async def write(self, body: bytes) -> None:
        self._written_at = asyncio.get_running_loop().time()
        message = {"type": "http.response.body", "body": body, "more_body": True}
        if self._connection is not None:
            await drain_or_abort(self._connection, self._deadline_s, self._metrics)
            await self._send(message)
        else:
            async with asyncio.timeout(self._deadline_s):
                await self._send(message)

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


async def _until_gone(receive: Receive, wake: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    wake.set()


def _chunks(events: Sequence[Event]) -> Iterator[bytes]:
    """As few writes as the bound on their size allows."""
    parts: list[bytes] = []
    size = 0
    for event in events:
        if size and size + len(event.wire) > FRAME_BYTES_SOFT:
            yield b"".join(parts)
            parts, size = [], 0
        parts.append(b"id: %d\ndata: %b\n\n" % (event.seq, event.wire))
        size += len(event.wire)
    if parts:
        yield b"".join(parts)
