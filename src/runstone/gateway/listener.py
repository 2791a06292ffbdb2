"""Listens: uvicorn's protocol classes with a bound on all that a client can hold, and the server around them.

The only module that imports uvicorn and what stands under it. What is promised about sockets (a reader that
stalls is cut off, frames and heads have limits, a restart says 1012) is promised here, under `serve`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from email.utils import formatdate
from http import HTTPStatus
from typing import Any, cast

import httptools
from starlette.types import ASGIApp, Message
from uvicorn import Config
from uvicorn._types import ASGI3Application, ASGIReceiveEvent, ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState
from websockets.frames import Frame
from websockets.protocol import State

from runstone.gateway.connection import EXTENSION
from runstone.limits import KIB

# --- one connection -----------------------------------------------------------------------------------
WRITE_BUFFER_HIGH_BYTES = 256 * KIB  # one frame of events: above it `drain` and `send` wait
WRITE_BUFFER_LOW_BYTES = 64 * KIB  # room for the next frame is made before the socket runs dry
HEAD_BYTES_MAX = 64 * KIB  # of a request's line and headers; eight times what proxies pass on
HEAD_TIMEOUT_S = 10.0  # to send them: a phone on a bad line needs 2; a slow-loris gets no more
KEEP_ALIVE_S = 75  # longer than the 60 s for which proxies keep idle connections, so that they close first
PIPELINE_REQUESTS_MAX = 16  # sent ahead of their answers; no client in use sends more than one
CLIENT_MESSAGE_BYTES_MAX = 128 * KIB  # over 64 KiB is told 4413 in peace; over this, 1009
CLOSE_TIMEOUT_S = 2.0  # for a client to say goodbye too; its cursor is good without it
KERNEL_UNSENT_BYTES = 128 * KIB  # in the kernel beyond what is on its way; what others found enough for a full pipe
PEER_TIMEOUT_MS = 30_000  # for a peer to acknowledge anything; three times the send deadline

# --- the server: the steps of a shutdown add up to 15 s, and to 25 with the grace of runs before ------------
BACKLOG = 2048  # connections not yet accepted: everyone who comes back after a restart, at once
BEFORE_SHUTDOWN_S = 3.5  # telling streams that they close
CONNECTIONS_S = 4.0  # answering what is being answered, and goodbyes
LAST_TASKS_S = 1.0  # for cancelled requests to end
LIFESPAN_S = 6.5  # for agents to end that were told to, then for the store to close
HURRY_S = 1.0  # for each step, after a second signal
CLOCK_TICK_S = 1.0  # the resolution of the Date header
POLL_S = 0.02  # how soon a shutdown notices that the last connection is gone


def _only_warnings(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


# uvicorn and websockets log each handshake, with its query string and headers, so with credentials, at INFO
# and DEBUG. A filter holds at every level that anyone may set; the level saves the work.
_log = logging.getLogger("runstone.gateway.connections")
_log.setLevel(logging.WARNING)
_log.addFilter(_only_warnings)


class Connection:
    """The socket under a request, for what ASGI has no words for.

    A lost client is an OSError, here as in ASGI's `send`.
    """

    __slots__ = ("_transport", "_writable")

    def __init__(self, transport: asyncio.Transport, writable: Callable[[], Awaitable[object]]) -> None:
        self._transport = transport
        self._writable = writable

    @property
    def unsent_bytes(self) -> int:
        """What waits here for the client to read; whether it falls tells a slow reader from a stalled one."""
        return self._transport.get_write_buffer_size()

    def abort(self) -> None:
        """Cuts the connection at once, without a goodbye; what is unsent is dropped. Safe to repeat."""
        self._transport.abort()

    async def drain(self) -> None:
        """Waits, once the write buffer has passed its high mark, until it is below the low one."""
        await self._writable()
        if self._transport.is_closing():
            raise ClientDisconnected


class WebSocketConnection(Connection):
    """The socket under a WebSocket."""

    __slots__ = ("_protocol",)

    def __init__(self, protocol: WebSocketProtocol) -> None:
        super().__init__(protocol.transport, protocol.writable.wait)
        self._protocol = protocol

    def send_frame(self, frame: bytes) -> None:
        """Writes bytes that are a complete server frame already, see `text_frame`.

        Never waits: `drain` before the next one keeps the buffer below its high mark and one frame.
        """
        if self._protocol.conn.state is not State.OPEN or self._transport.is_closing():
            raise ClientDisconnected
        self._transport.write(frame)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _refusal(status: HTTPStatus) -> bytes:
    return f"HTTP/1.1 {status} {status.phrase}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n".encode()


def _write_last(transport: asyncio.Transport, data: bytes) -> None:
    """Writes and closes our half only.

    Closing both while the client still sends makes the kernel reset the connection, and the client loses
    these very bytes. Whoever calls this drops what still comes, and sets a timer.
    """
    if not transport.is_closing():
        transport.write(data)
        transport.write_eof()


class Mailbox:
    """Messages for the application, which alone waits for them; an `asyncio.Queue` weighs 3 KiB, empty."""

    __slots__ = ("_messages", "_waiter")

    def __init__(self) -> None:
        self._messages: list[ASGIReceiveEvent] = []  # one or two: reading pauses until they are received
        self._waiter: asyncio.Future[None] | None = None

    def put_nowait(self, message: ASGIReceiveEvent) -> None:
        self._messages.append(message)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def get(self) -> ASGIReceiveEvent:
        while not self._messages:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._messages.pop(0)

    def empty(self) -> bool:
        return not self._messages


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """A WebSocket whose closing, buffers and log lines are bounded."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = self.conn.logger = _log
        self.conn.debug = False
        self.close_timeout = CLOSE_TIMEOUT_S
        self._failed = False  # nothing the client still sends counts
        self.queue = Mailbox()  # type: ignore[assignment]  # what uvicorn uses of a queue, without its 3 KiB
        self._fragments = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.set_write_buffer_limits(WRITE_BUFFER_HIGH_BYTES, WRITE_BUFFER_LOW_BYTES)

    def data_received(self, data: bytes) -> None:
        if self._failed:
            return
        super().data_received(data)
        if not self.handshake_initiated:
            # The whole head came at once, from HttpProtocol, and was refused (too long a line, no ASCII):
            # uvicorn would leave the answer unsent and the socket open for ever.
            self._fail(b"".join(self.conn.data_to_send()) or _refusal(HTTPStatus.BAD_REQUEST))

    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.pause_reading()  # pongs do not wait: those of a client that only sends would pile up

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.read_paused:
            self.transport.resume_reading()

    async def receive(self) -> ASGIReceiveEvent:
        message = await super().receive()
        if not self.writable.is_set():
            self.transport.pause_reading()
        return message

    async def send(self, message: ASGISendEvent) -> None:
        await self.writable.wait()
        if self._lost():
            if message["type"] == "websocket.close":
                return  # closing twice is safe
            raise ClientDisconnected
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = True  # or refused, which uvicorn would log as the application's error
            self._end_soon()

    async def run_asgi(self) -> None:
        cast(dict[str, object], self.scope["extensions"])[EXTENSION] = WebSocketConnection(self)
        await super().run_asgi()
        if self.transport.is_closing():
            self._end_soon()

    def handle_cont(self, event: Frame) -> None:
        # One buffer, not a list: empty fragments count towards no size, and need not ever end.
        self._fragments += event.data
        if event.fin:
            self.frames.append(bytes(self._fragments))
            self._fragments.clear()
            self.send_receive_event_to_app()

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text" and not self.close_sent and not _is_utf8(b"".join(self.frames)):
            self.frames = []  # uvicorn would log what a client may send at will, with a traceback
            self.conn.send_close(1007)
            self.handle_parser_exception()
            return
        super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        if not self.close_sent:
            super().handle_ping()

    def handle_parser_exception(self) -> None:
        close = self.conn.close_sent
        if close is None:  # it came right behind a handshake that is not answered yet
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
            self._fail(_refusal(HTTPStatus.BAD_REQUEST))
            return
        self.queue.put_nowait({"type": "websocket.disconnect", "code": close.code, "reason": close.reason})
        self._fail(b"".join(self.conn.data_to_send()))

    def shutdown(self) -> None:
        self.stop_keepalive()
        if not self.handshake_complete:
            if self.initial_response is None:  # else the application is about to refuse by itself
                self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
                self._fail(_refusal(HTTPStatus.SERVICE_UNAVAILABLE))
        elif self.conn.state is State.OPEN and not self.transport.is_closing():
            self.queue.put_nowait({"type": "websocket.disconnect", "code": 1012})
            self.conn.send_close(1012)
            self.transport.write(b"".join(self.conn.data_to_send()))
            self._stop_sending()
        self._end_soon()

    def _lost(self) -> bool:
        return self.close_sent or self.disconnected or self.transport.is_closing()

    def _fail(self, last_words: bytes) -> None:
        self._failed = True
        self.handshake_complete = True  # or refused, which is as good
        _write_last(self.transport, last_words)
        self._stop_sending()
        self._end_soon()

    def _stop_sending(self) -> None:
        self.close_sent = True
        if self.read_paused:  # to hear the goodbye
            self.read_paused = False
            self.transport.resume_reading()

    def _end_soon(self) -> None:
        """Whatever the client does, the socket is gone after the close timeout."""
        if self.close_timer is not None:
            self.close_timer.cancel()
        if not self.disconnected:
            self.close_timer = self.loop.call_later(self.close_timeout, self.transport.abort)


class HttpProtocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit on the size and the time of a request's head, and on what is sent ahead.

    While no request is being answered one clock always runs: for a head once its first byte is there, and
    keep-alive else.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        head_timeout_s: float = HEAD_TIMEOUT_S,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = _log
        self.access_log = False
        self._head_timeout_s = head_timeout_s
        self._head_timer: asyncio.TimerHandle | None = None
        self._end_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._loose_bytes = 0  # received since the last whole head or piece of body: heads, trailers, blanks
        self._refuse_with = HTTPStatus.BAD_REQUEST
        self._refused = False
        self._running: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(WRITE_BUFFER_HIGH_BYTES, WRITE_BUFFER_LOW_BYTES)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        if self._end_timer is not None:
            self._end_timer.cancel()
        # uvicorn tells the newest request only. The one that runs may be an endless stream.
        self.pipeline.clear()
        if self._running is not None:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._loose_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse(self._refuse_with)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        else:
            if self._loose_bytes > HEAD_BYTES_MAX:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
            self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: Connection(self.transport, self.flow.drain)}  # type: ignore[dict-item]
        self._in_head = True
        self._loose_bytes = max(self._loose_bytes, 1)  # it may have begun behind the end of another

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer must not become a header of a request that is being answered
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._loose_bytes = 0
        self._stop_head_timer()
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES_MAX:
            self._refuse_with = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            raise ValueError("the head is too large")  # what the parser's callbacks raise ends up in _refuse
        if len(self.pipeline) >= PIPELINE_REQUESTS_MAX:
            raise ValueError("too many requests are waiting")
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._loose_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # as soon as the client has read the answer; or not
            self._end_after(self.timeout_keep_alive)
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # a plain close would wait for a client that never reads its last answer

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _answering(self) -> bool:
        return self._running is not None and not self._running.response_complete

    def _watch(self) -> None:
        if self._answering() or self.transport.is_closing() or self._refused:
            return
        if self._loose_bytes:
            self._unset_keepalive_if_required()
            self._start_head_timer()
        elif self.timeout_keep_alive_task is None:
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _start_head_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._head_timeout_s, self.transport.abort)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _upgrade(self, rest: bytes) -> None:
        """Hands the connection over, and what the client sent ahead with it."""
        if not self._should_upgrade():
            return  # an offer of HTTP/2 or the like: it is being answered as HTTP/1.1
        if self._answering():
            self.transport.abort()
            return
        self.handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, WebSocketProtocol)
        if rest:
            protocol.data_received(rest)

    def _refuse(self, status: HTTPStatus) -> None:
        self._refused = True
        self._stop_head_timer()
        if self._answering():
            self.transport.abort()  # a second answer must not land inside the first
            return
        _write_last(self.transport, _refusal(status))
        self._end_after(CLOSE_TIMEOUT_S)

    def _end_after(self, seconds: float) -> None:
        if self._end_timer is None:
            self._end_timer = self.loop.call_later(seconds, self.transport.abort)


class _Lifespan:
    """The application's own start and end: one task, from first to last."""

    def __init__(self, app: ASGIApp, loop: asyncio.AbstractEventLoop) -> None:
        self.state: dict[str, Any] = {}
        self._requests: asyncio.Queue[Message] = asyncio.Queue()
        self._replies: asyncio.Queue[Message] = asyncio.Queue()
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        self.task = loop.create_task(self._run(app, scope))
        self.task.add_done_callback(lambda _: self._replies.put_nowait({"type": "ended"}))

    async def _run(self, app: ASGIApp, scope: dict[str, Any]) -> None:
        await app(scope, self._requests.get, self._replies.put)

    async def startup(self) -> None:
        await self._ask("startup")

    async def shutdown(self) -> None:
        await self._ask("shutdown")
        await self.task

    async def _ask(self, step: str) -> None:
        self._requests.put_nowait({"type": f"lifespan.{step}"})
        reply = await self._replies.get()
        if reply["type"] != f"lifespan.{step}.complete":
            await self.task  # what the application raised says more than its message
            raise RuntimeError(f"the application's {step} failed: {reply.get('message') or reply['type']}")


class Server:
    """Serves one ASGI application on one address, from its startup to its shutdown.

    The port opens when the lifespan's startup has finished; what it raises is raised by `serve`. `ready` is
    then called with the host and the port, the real one where 0 was asked for.

    SIGTERM, SIGINT (in the main thread, unless `signals` is false), `stop`, the cancellation of `serve` and
    the end of the lifespan's task begin the shutdown: no new connections; `before_shutdown`; sockets close
    with 1012 and answers that have begun finish; the lifespan's shutdown. Each step has its time, 15 s in
    all, and `HURRY_S` from the second `stop` or signal on.
    """

    def __init__(
        self,
        app: ASGIApp,
        host: str,
        port: int,
        *,
        ready: Callable[[str, int], None] | None = None,
        before_shutdown: Callable[[], Awaitable[None]] | None = None,
        signals: bool = True,
        head_timeout_s: float = HEAD_TIMEOUT_S,
    ) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._ready = ready
        self._before_shutdown = before_shutdown
        self._signals = signals
        self._head_timeout_s = head_timeout_s
        self._stopping = asyncio.Event()
        self._hurry = False
        self._limit: asyncio.Timeout | None = None

    def stop(self) -> None:
        """Begins the shutdown; a second time: hurries. From the loop's thread, before or while serving."""
        if not self._stopping.is_set():
            self._stopping.set()
            return
        self._hurry = True
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + HURRY_S)

    async def serve(self) -> None:
        """Returns after a shutdown. Raises what startup, bind, shutdown or a dying lifespan raised."""
        loop = asyncio.get_running_loop()
        with self._handle_signals(loop):
            lifespan = _Lifespan(self._app, loop)
            try:
                async with self._at_most(None, "startup"):
                    await lifespan.startup()
                try:
                    if not self._stopping.is_set():
                        await self._listen(loop, lifespan)
                finally:
                    async with self._at_most(LIFESPAN_S, "the application's shutdown"):
                        await lifespan.shutdown()
            finally:
                lifespan.task.cancel()
                await asyncio.wait({lifespan.task}, timeout=HURRY_S)

    async def _listen(self, loop: asyncio.AbstractEventLoop, lifespan: _Lifespan) -> None:
        state = ServerState()
        config = Config(
            self._app,
            interface="asgi3",
            http=HttpProtocol,
            ws=WebSocketProtocol,
            ws_max_size=CLIENT_MESSAGE_BYTES_MAX,
            ws_per_message_deflate=False,  # a megabyte of it can unpack to half a gigabyte
            ws_ping_interval=None,  # behind a slow reader's backlog a ping is late; the kernel finds the dead
            proxy_headers=False,  # who the peer is, and what it forwards, is judged by our own gate
            access_log=False,
            log_config=None,
            log_level=logging.WARNING,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()

        def connect() -> HttpProtocol:
            return HttpProtocol(config, state, lifespan.state, head_timeout_s=self._head_timeout_s)

        listener = await loop.create_server(connect, self._host, self._port, backlog=BACKLOG)
        try:
            for listening in listener.sockets:
                _bound_sockets(listening)
            if self._ready is not None:
                self._ready(*listener.sockets[0].getsockname()[:2])
            await self._until_stopped(loop, lifespan, state)
        finally:
            listener.close()
            try:
                await self._say_goodbye()
            finally:
                await self._end_connections(state)

    async def _until_stopped(self, loop: asyncio.AbstractEventLoop, lifespan: _Lifespan, state: ServerState) -> None:
        stopping = loop.create_task(self._stopping.wait())
        try:
            ended: set[asyncio.Task[Any]] = set()
            while not ended:
                # Ours alone: no `server` header.
                state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
                ended, _ = await asyncio.wait(
                    {stopping, lifespan.task}, timeout=CLOCK_TICK_S, return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            stopping.cancel()
            self._stopping.set()  # however it ended, the next stop is the second

    async def _say_goodbye(self) -> None:
        if self._before_shutdown is not None:
            with contextlib.suppress(TimeoutError):
                async with self._at_most(BEFORE_SHUTDOWN_S, "before_shutdown"):
                    await self._before_shutdown()

    async def _end_connections(self, state: ServerState) -> None:
        for connection in list(state.connections):
            connection.shutdown()
        with contextlib.suppress(TimeoutError):
            async with self._at_most(CONNECTIONS_S, "closing connections"):
                while state.connections or state.tasks:  # noqa: ASYNC110  uvicorn's sets tell nobody
                    await asyncio.sleep(POLL_S)
        for connection in list(state.connections):
            connection.transport.abort()
        tasks = set(state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=LAST_TASKS_S)

    @contextlib.asynccontextmanager
    async def _at_most(self, limit_s: float | None, step: str) -> AsyncIterator[None]:
        """One step, with its time; `stop` shortens it."""
        if self._hurry:
            limit_s = HURRY_S
        try:
            async with asyncio.timeout(limit_s) as self._limit:
                yield
        except TimeoutError as error:
            if self._limit is not None and self._limit.expired():
                raise TimeoutError(f"{step} did not end in time") from error
            raise
        finally:
            self._limit = None

    @contextlib.contextmanager
    def _handle_signals(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        handled: list[signal.Signals] = []
        if self._signals and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                # Where loops cannot (Windows), Ctrl-C cancels `serve`, which comes to the same.
                with contextlib.suppress(NotImplementedError):
                    loop.add_signal_handler(number, self.stop)
                    handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)


def _bound_sockets(listening: socket.socket) -> None:
    """For all it accepts: a peer that acknowledges nothing, or keeps its window shut, ends in an error.

    And the kernel keeps little that is not on its way yet. Else it takes megabytes for each reader, and asks for
    more only when a third of that is gone: one that reads slowly would look like one that does not read.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; elsewhere the kernel's own 10 to 15 minutes hold
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, PEER_TIMEOUT_MS)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, KERNEL_UNSENT_BYTES)


def event_loop_factory() -> asyncio.AbstractEventLoop:
    """A new event loop, for `asyncio.Runner`: uvloop's where it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
