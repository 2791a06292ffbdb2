"""WebSockets: carries out what a `Session` says. The spec is PROTOCOL.md, section 5."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial

import structlog
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runstone import protocol
from runstone.errors import NotFound, RunstoneError, StoreFailed, UnknownSubprotocol
from runstone.feed import Feed
from runstone.gateway.connection import FrameConnection, connection_of, drain_or_abort
from runstone.gateway.gate import USER_KEY
from runstone.gateway.problems import problem
from runstone.gateway.sse import Streaming
from runstone.limits import FRAME_BYTES_SOFT
from runstone.log import FeedTail, Tail
from runstone.protocol import Close, Filter, FollowFeed, Session, Subscribe, Subscription, Unsubscribe
from runstone.views import FeedPage, Page

logger = structlog.get_logger(__name__)

_UNSENT_BYTES = FRAME_BYTES_SOFT // 4  # of a client that keeps up
_LAG_EVERY = 16  # of a socket's deliveries are timed: a clock and a histogram cost as much as a delivery


class WebSockets:
    """The ASGI application of `/v1/ws`."""

    def __init__(self, shared: Streaming) -> None:
        self._shared = shared

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        offered = scope["subprotocols"]
        if offered and protocol.SUBPROTOCOL not in offered:
            unknown = UnknownSubprotocol(f"This server speaks {protocol.SUBPROTOCOL}.")
            await refuse(scope, receive, send, problem(unknown))
            return
        shared, wake = self._shared, asyncio.Event()
        try:
            with shared.streams.opened(scope[USER_KEY], "ws", wake.set):
                await send({"type": "websocket.accept", "subprotocol": protocol.SUBPROTOCOL if offered else None})
                socket = _Socket(shared, scope, receive, send, wake)
                with suppress(OSError, TimeoutError):  # the client is gone, or reads nothing; its cursors are good
                    try:
                        await socket.run()
                    except StoreFailed:
                        await send({"type": "websocket.close", "code": protocol.CLOSE_RESTARTING})
        except RunstoneError as error:
            await refuse(scope, receive, send, problem(error))


async def refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    """An HTTP answer instead of a handshake, where the server can give one."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await response(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": 4403})


class _Socket:
    """One accepted socket: one task reads, one writes, and a lock keeps what they send in order.

    What is new in memory, for a client that keeps up, goes out without either of them: a change of tasks costs
    more than the frame.
    """

    __slots__ = (  # ten thousand of them may be idle
        "_asgi_send",
        "_connection",
        "_delivered",
        "_deliveries",
        "_feed",
        "_loop",
        "_receive",
        "_sending",
        "_sent_at",
        "_session",
        "_shared",
        "_tails",
        "_user_id",
        "_wake",
    )

    def __init__(self, shared: Streaming, scope: Scope, receive: Receive, send: Send, wake: asyncio.Event) -> None:
        self._shared = shared
        self._receive = receive
        self._asgi_send = send
        self._wake = wake
        found = connection_of(scope)
        self._connection = found if isinstance(found, FrameConnection) else None
        if self._connection is not None:  # then nobody stands between us and the server, who could ask for them
            scope["headers"] = []
        self._user_id: str = scope[USER_KEY]
        self._session = Session(
            user_id=self._user_id,
            generation=shared.log.generation,
            heartbeat_s=shared.heartbeat_s,
            frames=shared.frames.of,
        )
        self._tails: dict[str, Tail] = {}
        self._feed: FeedTail | None = None
        self._sending = asyncio.Lock()
        self._sent_at = 0.0
        self._loop = asyncio.get_running_loop()
        self._deliveries = 0
        self._delivered = shared.metrics.events_delivered.labels(protocol="ws")

    async def run(self) -> None:
        reading: asyncio.Task[None] | None = None
        try:
            await self._send(self._session.hello())
            reading = self._shared.tasks.start(self._read(), "ws")
            await self._write(reading)
        finally:
            if reading is not None:
                reading.cancel()
            for thread_id in list(self._tails):
                self._drop(thread_id)
            self._drop_feed()

    # --- what the client says -----------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while True:
                message = await self._receive()
                if message["type"] == "websocket.disconnect":
                    return
                for step in self._session.receive(message.get("text")):
                    if isinstance(step, Close):
                        await self._asgi_send({"type": "websocket.close", "code": step.code})
                        return
                    await self._carry_out(step)
        except (OSError, TimeoutError):
            pass
        finally:
            self._wake.set()

    async def _carry_out(self, step: protocol.Send | Subscribe | Unsubscribe | FollowFeed) -> None:
        if isinstance(step, protocol.Send):
            async with self._sending:
                await self._send(step.frame)
        elif isinstance(step, Unsubscribe):
            async with self._sending:
                self._drop(step.thread_id)
                await self._send(self._session.unsubscribed(step))
        else:
            try:
                if isinstance(step, Subscribe):
                    await self._subscribe(step)
                else:
                    await self._follow_feed(step)
            except RunstoneError as error:
                async with self._sending:
                    await self._send(protocol.error_frame(step.id, error))

    async def _subscribe(self, step: Subscribe) -> None:
        log = self._shared.log
        thread = await log.find(self._user_id, step.thread_id)
        family = None
        if step.run_id is not None:
            family = await log.rows.family(self._user_id, step.run_id)
            if not family:
                raise NotFound(f"There is no run {step.run_id}.")
        tail = await log.follow(thread, after=step.after, wake=partial(self._push, step.thread_id))
        try:
            await self._sending.acquire()
        except BaseException:
            log.leave(tail)
            raise
        try:
            self._drop(step.thread_id)
            self._tails[step.thread_id] = tail
            subscription = Subscription(Filter(step.types, family), after=step.after, head=tail.head)
            await self._send(self._session.subscribed(step, subscription, tail.head))
            if not tail.behind:
                await self._show(step.thread_id, tail, Page((), tail.cursor))  # nothing to catch up with: says so
        finally:
            self._sending.release()
        self._wake.set()

    async def _follow_feed(self, step: FollowFeed) -> None:
        log = self._shared.log
        tail = await log.follow_feed(self._user_id, after=step.after, wake=self._wake.set)
        try:
            await self._sending.acquire()
        except BaseException:
            log.leave_feed(tail)
            raise
        try:
            self._drop_feed()
            self._feed = tail
            await self._send(self._session.feeding(step, Feed(log.generation, head=tail.head)))
            await self._show_feed(FeedPage((), tail.cursor, tail.head))  # nothing to catch up with: says so
        finally:
            self._sending.release()
        self._wake.set()

    def _drop_feed(self) -> None:
        if self._feed is not None:
            self._shared.log.leave_feed(self._feed)
            self._feed = None

    def _drop(self, thread_id: str) -> None:
        tail = self._tails.pop(thread_id, None)
        if tail is not None:
            self._shared.log.leave(tail)

    # --- what the client is shown ---------------------------------------------------------------------------

    async def _write(self, reading: asyncio.Task[None]) -> None:
        shared = self._shared
        while True:
            self._wake.clear()
            behind = True
            while behind and not reading.done():
                if shared.log.failure is not None or shared.streams.closing is not None:
                    await self._asgi_send({"type": "websocket.close", "code": protocol.CLOSE_RESTARTING})
                    return
                behind = False
                if self._connection is not None:
                    async with self._sending:
                        await self._drain(self._connection)  # of what was pushed
                for thread_id in list(self._tails):  # a page each in turn, so that no thread starves another
                    async with self._sending:
                        tail = self._tails.get(thread_id)
                        if tail is not None and tail.behind:
                            await self._deliver(thread_id, tail)
                            behind = behind or tail.behind
                async with self._sending:
                    if self._feed is not None and self._feed.behind:
                        await self._show_feed(await self._feed.read())
                        behind = behind or self._feed.behind
                if self._silence_s() >= shared.heartbeat_s:  # also while all that happens is filtered out
                    async with self._sending:
                        await self._send(protocol.pong())
            if reading.done():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(max(shared.heartbeat_s - self._silence_s(), 0)):
                    await self._wake.wait()

    def _push(self, thread_id: str) -> None:
        """Sends what is new and in memory to a client that keeps up; else the writing task is woken to do it."""
        connection, done = self._connection, False
        if connection is None or self._sending.locked() or connection.unsent_bytes > _UNSENT_BYTES:
            self._wake.set()
            return
        try:
            done = self._push_page(thread_id) and connection.unsent_bytes <= _UNSENT_BYTES
        except OSError:
            pass  # the client is gone: the task will see it too, and end
        except Exception:
            logger.exception("a page could not be sent", thread=thread_id)
            connection.abort()  # how much of it went out is not known; the client resumes after what it has
        if not done:
            self._wake.set()

    def _push_page(self, thread_id: str) -> bool:
        """Whether nothing is left to do."""
        tail = self._tails.get(thread_id)
        if tail is None or self._shared.streams.closing is not None:
            return False
        page = tail.peek()
        if page is None or (page.events and page.events[-1].type == "thread_deleted"):
            return False
        tail.cursor = page.last
        frames, count = self._session.deliver(thread_id, page)
        for frame in frames:
            self._put(frame)
        self._count(tail, count)
        return not tail.behind

    def _silence_s(self) -> float:
        return self._loop.time() - self._sent_at

    async def _deliver(self, thread_id: str, tail: Tail) -> None:
        await self._show(thread_id, tail, await tail.read())

    async def _show(self, thread_id: str, tail: Tail, page: Page) -> None:
        frames, count = self._session.deliver(thread_id, page)
        for frame in frames:
            await self._send(frame)
        self._count(tail, count)
        if any(event.type == "thread_deleted" for event in page.events):
            self._drop(thread_id)
            await self._send(self._session.deleted(thread_id))

    async def _show_feed(self, page: FeedPage) -> None:
        for frame in self._session.changed(page):
            await self._send(frame)

    def _count(self, tail: Tail, count: int) -> None:
        if not count:
            return
        self._delivered.inc(count)
        if self._deliveries % _LAG_EVERY == 0 and (lag := self._shared.log.lag_s(tail.thread)) is not None:
            self._shared.metrics.tail_lag_seconds.observe(lag)
        self._deliveries += 1

    def _put(self, frame: bytes) -> None:
        assert self._connection is not None
        self._sent_at = self._loop.time()
        self._connection.send_frame(self._shared.frames.text(frame))

    async def _send(self, frame: bytes) -> None:
        if self._connection is not None:
            self._put(frame)
            await self._drain(self._connection)
        else:
            self._sent_at = self._loop.time()
            async with asyncio.timeout(self._shared.send_deadline_s):
                await self._asgi_send({"type": "websocket.send", "text": frame.decode()})

    async def _drain(self, connection: FrameConnection) -> None:
        if connection.unsent_bytes > _UNSENT_BYTES:
            await drain_or_abort(connection, self._shared.send_deadline_s, self._shared.metrics)
