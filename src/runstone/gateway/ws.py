"""WebSockets: carries out what a `Session` says. The spec is PROTOCOL.md, section 5."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from runstone import protocol
from runstone.errors import NotFound, RunstoneError, StoreFailed, UnknownSubprotocol
from runstone.gateway.connection import FrameConnection, connection_of, drain_or_abort, text_frame
from runstone.gateway.gate import USER_KEY
from runstone.gateway.problems import problem
from runstone.gateway.sse import Streaming
from runstone.limits import FRAME_BYTES_SOFT
from runstone.log import Tail
from runstone.protocol import Close, Filter, Session, Subscribe, Subscription, Unsubscribe


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
    """One accepted socket: one task reads, one writes, and a lock keeps what they send in order."""

    def __init__(self, shared: Streaming, scope: Scope, receive: Receive, send: Send, wake: asyncio.Event) -> None:
        self._shared = shared
        self._receive = receive
        self._asgi_send = send
        self._wake = wake
        found = connection_of(scope)
        self._connection = found if isinstance(found, FrameConnection) else None
        self._user_id: str = scope[USER_KEY]
        self._session = Session(user_id=self._user_id, generation=shared.log.generation, heartbeat_s=shared.heartbeat_s)
        self._tails: dict[str, tuple[AsyncExitStack, Tail]] = {}
        self._sending = asyncio.Lock()
        self._sent_at = 0.0
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
            for stack, _ in self._tails.values():
                await stack.aclose()

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

    async def _carry_out(self, step: protocol.Send | Subscribe | Unsubscribe) -> None:
        if isinstance(step, protocol.Send):
            async with self._sending:
                await self._send(step.frame)
        elif isinstance(step, Unsubscribe):
            async with self._sending:
                await self._drop(step.thread_id)
                await self._send(self._session.unsubscribed(step))
        else:
            try:
                await self._subscribe(step)
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
        async with AsyncExitStack() as stack:
            tail = await stack.enter_async_context(log.tail(thread, after=step.after, wake=self._wake.set))
            subscription = Subscription(Filter(step.types, family), after=step.after, head=tail.head)
            async with self._sending:
                await self._drop(step.thread_id)
                self._tails[step.thread_id] = (stack.pop_all(), tail)
                await self._send(self._session.subscribed(step, subscription, tail.head))
                if not tail.behind:
                    await self._deliver(step.thread_id, tail)  # nothing to catch up with: says so
        self._wake.set()

    async def _drop(self, thread_id: str) -> None:
        found = self._tails.pop(thread_id, None)
        if found is not None:
            await found[0].aclose()

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
                for thread_id in list(self._tails):  # a page each in turn, so that no thread starves another
                    async with self._sending:
                        found = self._tails.get(thread_id)
                        if found is not None and found[1].behind:
                            await self._deliver(thread_id, found[1])
                            behind = behind or found[1].behind
                if self._silence_s() >= shared.heartbeat_s:  # also while all that happens is filtered out
                    async with self._sending:
                        await self._send(protocol.pong())
            if reading.done():
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(max(shared.heartbeat_s - self._silence_s(), 0)):
                    await self._wake.wait()

    def _silence_s(self) -> float:
        return asyncio.get_running_loop().time() - self._sent_at

    async def _deliver(self, thread_id: str, tail: Tail) -> None:
        page = await tail.read()
        frames, count = self._session.deliver(thread_id, page)
        for frame in frames:
            await self._send(frame)
        if count:
            self._delivered.inc(count)
            if not tail.behind and (lag := self._shared.log.lag_s(tail.thread)) is not None:
                self._shared.metrics.tail_lag_seconds.observe(lag)
        if any(event.type == "thread_deleted" for event in page.events):
            await self._drop(thread_id)
            await self._send(self._session.deleted(thread_id))

    async def _send(self, frame: bytes) -> None:
        self._sent_at = asyncio.get_running_loop().time()
        if self._connection is not None:
            self._connection.send_frame(text_frame(frame))
            if self._connection.unsent_bytes > FRAME_BYTES_SOFT // 4:
                await drain_or_abort(self._connection, self._shared.send_deadline_s, self._shared.metrics)
        else:
            async with asyncio.timeout(self._shared.send_deadline_s):
                await self._asgi_send({"type": "websocket.send", "text": frame.decode()})
