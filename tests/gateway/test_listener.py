"""The listener on real sockets: what a client can hold is bounded, and a shutdown says so."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from runstone.gateway import listener
from runstone.gateway.connection import EXTENSION, text_frame
from runstone.gateway.listener import (
    HEAD_BYTES_MAX,
    PIPELINE_REQUESTS_MAX,
    WRITE_BUFFER_HIGH_BYTES,
    Connection,
    Server,
    WebSocketConnection,
    WebSocketProtocol,
    event_loop_factory,
)

pytestmark = pytest.mark.anyio

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
LOST = "^$"  # the error of a lost client has no words
SOON_S = 10.0  # a signal that does not come within it never comes
STALL_S = 0.3  # how long these tests wait before they take a reader for stalled
READ_BYTES_MAX = 256 * 1024  # what either event loop reads from a socket at once


@pytest.fixture(params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": request.param}


@pytest.fixture
def quick_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "CLOSE_TIMEOUT_S", 0.2)


def application(handle: Handler) -> ASGIApp:
    """An application with a lifespan, whose requests and sockets go to `handle`."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await handle(scope, receive, send)
            return
        for step in ("startup", "shutdown"):
            assert (await receive())["type"] == f"lifespan.{step}"
            await send({"type": f"lifespan.{step}.complete"})

    return app


class Serving:
    def __init__(self, server: Server, task: asyncio.Task[None], host: str, port: int) -> None:
        self.server, self.task, self.host, self.port = server, task, host, port

    def connect(self, path: str = "/", **options) -> connect:
        return connect(f"ws://{self.host}:{self.port}{path}", **options)

    async def open(self, **options) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, **options)


@contextlib.asynccontextmanager
async def serving(handle: Handler, *, app: ASGIApp | None = None, **options) -> AsyncIterator[Serving]:
    loop = asyncio.get_running_loop()
    address: asyncio.Future[tuple[str, int]] = loop.create_future()
    options = {"signals": False} | options
    server = Server(app or application(handle), "127.0.0.1", 0, ready=lambda *at: address.set_result(at), **options)
    task = loop.create_task(server.serve())
    both: set[asyncio.Future[Any]] = {task, address}
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    try:
        yield Serving(server, task, *address.result())
    finally:
        server.stop()
        await asyncio.wait_for(task, SOON_S)


async def answer(send: Send, body: bytes = b"ok") -> None:
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await send({"type": "http.response.body", "body": body})


async def hello(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send)


async def accept(receive: Receive, send: Send) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await accept(receive, send)
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", "text": message["text"]})


async def until_disconnect(receive: Receive) -> Message:
    while not (message := await receive())["type"].endswith(".disconnect"):
        pass
    return message


def upgrade(path: str = "/", *headers: str) -> bytes:
    lines = [
        f"GET {path} HTTP/1.1",
        "host: here",
        "connection: Upgrade",
        "upgrade: websocket",
        "sec-websocket-version: 13",
        "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==",
        *headers,
    ]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n"


def client_frame(opcode: int, payload: bytes, *, final: bool = True) -> bytes:
    """A short frame as a client sends it: masked, here with zeros."""
    return struct.pack("!BBI", (0x80 if final else 0) | opcode, 0x80 | len(payload), 0) + payload


GET = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Everything until the end of the connection, which has to come; a reset is an end too."""
    got = bytearray()
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.wait_for(reader.read(1 << 16), SOON_S):
            got += data
    return bytes(got)


async def raw(at: Serving, sent: bytes) -> bytes:
    """What a client gets that sends this and waits for the end of the connection."""
    reader, writer = await at.open()
    writer.write(sent)
    try:
        return await rest(reader)
    finally:
        writer.close()


# --- frames -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 300_000])
async def test_a_prebuilt_frame_of_any_length_arrives_as_that_text(size: int) -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        connection: WebSocketConnection = scope["extensions"][EXTENSION]
        connection.send_frame(text_frame(b"x" * size))
        connection.send_frame(text_frame("grüß 石 🪨".encode()))
        await send({"type": "websocket.send", "text": "between"})
        await connection.drain()
        await until_disconnect(receive)

    async with serving(handle) as at, at.connect() as client:
        assert await client.recv() == "x" * size
        assert await client.recv() == "grüß 石 🪨"
        assert await client.recv() == "between"


async def test_a_frame_for_a_client_that_left_raises_what_send_raises() -> None:
    raised: asyncio.Queue[type[BaseException]] = asyncio.Queue()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        connection: WebSocketConnection = scope["extensions"][EXTENSION]
        await until_disconnect(receive)
        for step in (
            send({"type": "websocket.send", "text": "late"}),
            connection.drain(),
        ):
            with pytest.raises(OSError, match=LOST) as lost:
                await step
            raised.put_nowait(lost.type)
        with pytest.raises(OSError, match=LOST) as lost:
            connection.send_frame(text_frame(b"late"))
        raised.put_nowait(lost.type)
        await send({"type": "websocket.close"})  # closing what is closed is safe
        raised.put_nowait(BaseException)

    async with serving(handle) as at:
        async with at.connect():
            pass
        kinds = [await asyncio.wait_for(raised.get(), SOON_S) for _ in range(4)]
    assert len(set(kinds[:3])) == 1


async def test_no_compression_is_agreed_on() -> None:
    async with serving(echo) as at, at.connect(compression="deflate") as client:
        assert client.response is not None
        assert "sec-websocket-extensions" not in client.response.headers


# --- readers that stall -------------------------------------------------------------------------------


async def stall(write: Callable[[], None], connection: Connection) -> int:
    """Writes until nothing leaves any more; the most that ever waited in the buffer."""
    most = 0
    with contextlib.suppress(TimeoutError):
        while True:
            write()
            most = max(most, connection.unsent_bytes)
            await asyncio.wait_for(connection.drain(), STALL_S)
    return most


async def test_a_socket_that_reads_nothing_holds_one_bounded_buffer_and_is_cut_off_without_a_code() -> None:
    frame = text_frame(b"x" * 50_000)
    outcome: asyncio.Future[tuple[int, Message]] = asyncio.get_running_loop().create_future()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        connection: WebSocketConnection = scope["extensions"][EXTENSION]
        most = await stall(lambda: connection.send_frame(frame), connection)
        connection.abort()
        connection.abort()  # safe to repeat
        with pytest.raises(OSError, match=LOST):
            await connection.drain()
        outcome.set_result((most, await receive()))

    async with serving(handle) as at:
        reader, writer = await at.open(limit=1024)
        writer.write(upgrade())
        most, message = await asyncio.wait_for(outcome, SOON_S)
        received = await rest(reader)
        writer.close()
    assert WRITE_BUFFER_HIGH_BYTES < most <= WRITE_BUFFER_HIGH_BYTES + len(frame)
    assert message["type"] == "websocket.disconnect"
    assert not received.endswith(struct.pack("!BBH", 0x88, 2, 1012))
    assert b"\x88\x02" not in received[-4:]


async def test_send_on_a_socket_waits_while_the_client_reads_nothing_and_ends_with_abort() -> None:
    stalled: asyncio.Future[Connection] = asyncio.get_running_loop().create_future()
    raised: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        connection: Connection = scope["extensions"][EXTENSION]
        try:
            while True:
                if connection.unsent_bytes > WRITE_BUFFER_HIGH_BYTES and not stalled.done():
                    stalled.set_result(connection)
                await send({"type": "websocket.send", "text": "x" * 50_000})
        except OSError as error:
            raised.set_result(error)

    async with serving(handle) as at:
        _, writer = await at.open(limit=1024)
        writer.write(upgrade())
        connection = await asyncio.wait_for(stalled, SOON_S)
        while not raised.done():
            connection.abort()
            await asyncio.wait({raised}, timeout=SOON_S)
        writer.close()


async def test_a_stream_that_nobody_reads_blocks_in_send_and_its_abort_is_seen_as_a_disconnect() -> None:
    piece = b"x" * 50_000
    outcome: asyncio.Future[tuple[int, Message]] = asyncio.get_running_loop().create_future()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        connection: Connection = scope["extensions"][EXTENSION]
        most = 0
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with contextlib.suppress(TimeoutError):
            while True:
                sending = send({"type": "http.response.body", "body": piece, "more_body": True})
                await asyncio.wait_for(sending, STALL_S)
                most = max(most, connection.unsent_bytes)
        connection.abort()
        outcome.set_result((most, await receive()))

    async with serving(handle) as at:
        reader, writer = await at.open(limit=1024)
        writer.write(GET)
        most, message = await asyncio.wait_for(outcome, SOON_S)
        assert not (await rest(reader)).endswith(b"0\r\n\r\n")
        writer.close()
    assert WRITE_BUFFER_HIGH_BYTES < most < WRITE_BUFFER_HIGH_BYTES + len(piece) + 100
    assert message["type"] == "http.disconnect"


async def test_a_slow_reader_is_waited_for_and_receives_everything() -> None:
    frame, count = text_frame(b"x" * 50_000), 400

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        connection: WebSocketConnection = scope["extensions"][EXTENSION]
        for _ in range(count):
            connection.send_frame(frame)
            await connection.drain()
        assert (await receive())["text"] == "got it"  # a client that was not read for a while is read again
        await send({"type": "websocket.close", "code": 1000})

    async with serving(handle) as at, at.connect(max_queue=1) as client:
        for _ in range(count):
            assert len(await client.recv()) == 50_000
        await client.send("got it")
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), SOON_S)


async def test_pings_of_a_client_that_reads_nothing_do_not_pile_up_pongs() -> None:
    sockets: list[WebSocketConnection] = []

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        sockets.append(scope["extensions"][EXTENSION])
        await until_disconnect(receive)

    pings = client_frame(0x9, b"x" * 125) * 1000
    async with serving(handle) as at:
        _, writer = await at.open(limit=1024)
        writer.write(upgrade())
        with contextlib.suppress(TimeoutError):
            for _ in range(400):  # 52 MB, far more than the kernel holds for both
                writer.write(pings)
                await asyncio.wait_for(writer.drain(), STALL_S)
        assert sockets[0].unsent_bytes <= WRITE_BUFFER_HIGH_BYTES + READ_BYTES_MAX
        writer.transport.abort()


# --- what clients send --------------------------------------------------------------------------------


async def test_a_message_of_128_kib_is_read_and_a_longer_one_closes_with_1009() -> None:
    async with serving(echo) as at:
        async with at.connect(max_size=None) as client:
            await client.send("x" * 131_072)
            assert len(await client.recv()) == 131_072
        for size in (131_073, 4_000_000):
            client = await at.connect()
            with contextlib.suppress(ConnectionClosed):
                await client.send("x" * size)
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(client.recv(), SOON_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    ("sent", "last"),
    [
        (struct.pack("!BBQI", 0x81, 0xFF, 3_000_000, 0) + b"x" * 3_000_000, struct.pack("!H", 1009)),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 3_000_000, b"HTTP/1.1 431 "),
    ],
    ids=["1009", "431"],
)
async def test_a_client_that_sends_all_before_it_reads_still_learns_why_it_was_refused(
    sent: bytes, last: bytes
) -> None:
    def client(host: str, port: int) -> bytes:
        with socket.create_connection((host, port), timeout=SOON_S) as peer:
            if last.endswith(struct.pack("!H", 1009)):
                peer.sendall(upgrade())
                while not peer.recv(4096).endswith(b"\r\n\r\n"):
                    pass
            peer.sendall(sent)
            return peer.recv(4096)

    async with serving(echo) as at:
        assert last in await asyncio.to_thread(client, at.host, at.port)


async def test_an_application_that_sends_after_1009_is_told_that_the_client_is_lost() -> None:
    raised: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        assert (await until_disconnect(receive))["code"] == 1009
        with pytest.raises(OSError, match=LOST) as lost:
            await send({"type": "websocket.send", "text": "late"})
        raised.set_result(lost.type)

    async with serving(handle) as at:
        client = await at.connect()
        with contextlib.suppress(ConnectionClosed):
            await client.send("x" * 200_000)
        await asyncio.wait_for(raised, SOON_S)


async def test_fragments_are_one_message_and_empty_ones_take_no_memory() -> None:
    protocols: asyncio.Future[WebSocketProtocol] = asyncio.get_running_loop().create_future()
    got: asyncio.Queue[str] = asyncio.Queue()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        protocols.set_result(scope["extensions"][EXTENSION]._protocol)
        while (message := await receive())["type"] == "websocket.receive":
            got.put_nowait(message["text"])

    async with serving(handle) as at:
        reader, writer = await at.open()
        writer.write(upgrade())
        await reader.readuntil(b"\r\n\r\n")
        writer.write(client_frame(0x1, "grü".encode()[:3], final=False))
        writer.write(client_frame(0x0, b"", final=False) * 10_000 + client_frame(0x9, b"?"))
        await reader.readuntil(b"?")
        held = len((await protocols).frames)
        writer.write(client_frame(0x0, "ü".encode()[1:] + b"n"))
        writer.write(client_frame(0x1, b"ne", final=False) + client_frame(0x0, b"xt"))
        assert await asyncio.wait_for(got.get(), SOON_S) == "grün"
        assert await asyncio.wait_for(got.get(), SOON_S) == "next"
        writer.close()
    assert held <= 1


async def test_a_client_is_not_read_while_its_message_is_unprocessed() -> None:
    go_on = asyncio.Event()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await go_on.wait()
        await until_disconnect(receive)

    async with serving(handle) as at:
        _, writer = await at.open()
        writer.write(upgrade())
        messages = client_frame(0x1, b"x" * 125) * 1000
        taken = 0
        with contextlib.suppress(TimeoutError):
            for taken in range(400):  # noqa: B007  how far it came is what is asked
                writer.write(messages)
                await asyncio.wait_for(writer.drain(), STALL_S)
        assert taken < 399
        go_on.set()
        await asyncio.wait_for(writer.drain(), SOON_S)
        writer.close()


async def test_frames_sent_ahead_of_the_handshake_and_heads_in_pieces_reach_the_socket() -> None:
    async with serving(echo) as at:
        reader, writer = await at.open()
        sent = upgrade() + client_frame(0x1, b"early")
        for start in range(0, len(sent), 40):
            writer.write(sent[start : start + 40])
            await writer.drain()
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(7) == text_frame(b"early")
        writer.close()

        reader, writer = await at.open()
        writer.write(sent)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(7) == text_frame(b"early")
        writer.close()


# --- goodbyes -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick_close")
async def test_a_client_that_never_says_goodbye_does_not_linger() -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        await send({"type": "websocket.close", "code": 4401})

    async with serving(handle) as at:
        assert (await raw(at, upgrade())).endswith(struct.pack("!BBH", 0x88, 2, 4401))


@pytest.mark.usefixtures("quick_close")
async def test_a_client_that_reads_nothing_cannot_hold_up_a_close() -> None:
    ended: asyncio.Future[Message] = asyncio.get_running_loop().create_future()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        connection: WebSocketConnection = scope["extensions"][EXTENSION]
        while connection.unsent_bytes < 100_000:
            connection.send_frame(text_frame(b"x" * 50_000))
            await asyncio.wait({asyncio.ensure_future(connection.drain())}, timeout=0.01)
        await send({"type": "websocket.close", "code": 1000})
        with contextlib.suppress(OSError):
            while not connection._protocol.disconnected:
                await asyncio.wait({asyncio.ensure_future(receive())}, timeout=SOON_S)
        ended.set_result({})

    async with serving(handle) as at:
        _, writer = await at.open(limit=1024)
        writer.write(upgrade())
        await asyncio.wait_for(ended, SOON_S)
        writer.close()


async def test_stop_closes_sockets_with_1012_after_the_last_words() -> None:
    told: list[str] = []
    sockets: list[WebSocketConnection] = []

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await accept(receive, send)
        sockets.append(scope["extensions"][EXTENSION])
        told.append(str((await until_disconnect(receive))["code"]))

    async def before_shutdown() -> None:
        told.append("before")
        for connection in sockets:
            connection.send_frame(text_frame(b"closing"))

    async with serving(handle, before_shutdown=before_shutdown) as at:
        clients: list[ClientConnection] = [await at.connect() for _ in range(3)]
        at.server.stop()
        for client in clients:
            assert await client.recv() == "closing"
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(client.recv(), SOON_S)
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1012
        await asyncio.wait_for(at.task, SOON_S)
        for client in clients:
            await client.wait_closed()
    assert told == ["before", "1012", "1012", "1012"]


async def test_stop_refuses_a_handshake_that_is_under_way_with_503(caplog: pytest.LogCaptureFixture) -> None:
    asked, raised = asyncio.Event(), asyncio.Event()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await until_disconnect(receive)
        with pytest.raises(OSError, match=LOST):
            await send({"type": "websocket.accept"})
        raised.set()

    async with serving(handle) as at:
        handshake = asyncio.ensure_future(asyncio.wait_for(at.connect(), SOON_S))
        await asyncio.wait_for(asked.wait(), SOON_S)
        at.server.stop()
        with pytest.raises(InvalidStatus) as refused:
            await handshake
        assert refused.value.response.status_code == 503
    assert raised.is_set()
    assert not caplog.records


async def test_stop_lets_an_answer_that_has_begun_finish_and_closes_idle_connections() -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/slow":
            asked.set()
            await go_on.wait()
        await answer(send)

    async with serving(handle) as at:
        idle, idle_writer = await at.open()
        idle_writer.write(GET)
        await idle.readuntil(b"ok")
        reader, writer = await at.open()
        writer.write(b"GET /slow HTTP/1.1\r\nhost: here\r\n\r\n")
        await asyncio.wait_for(asked.wait(), SOON_S)
        at.server.stop()
        assert await rest(idle) == b""
        assert not at.task.done()
        go_on.set()
        assert (await rest(reader)).endswith(b"ok")
        idle_writer.close()
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await at.open()


# --- heads --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"GET / HT", id="a piece"),
        pytest.param(b"GET / HTTP/1.1\r\nhost: here\r\n", id="no end"),
        pytest.param(GET + b"GET", id="a piece of the second, with the first"),
        pytest.param(b"\r\n", id="a blank line"),
    ],
)
async def test_a_head_that_does_not_come_in_time_ends_the_connection(sent: bytes) -> None:
    async with serving(hello, head_timeout_s=0.2) as at:
        got = await raw(at, sent)
        assert got.endswith(b"ok") if sent.startswith(GET) else got == b""


@pytest.mark.parametrize("sent", [b"G", b"\r\n"])
async def test_the_next_head_on_a_connection_has_its_own_time_from_its_first_byte(sent: bytes) -> None:
    loop = asyncio.get_running_loop()
    async with serving(hello, head_timeout_s=0.2) as at:
        reader, writer = await at.open()
        for _ in range(2):
            writer.write(GET)
            await reader.readuntil(b"ok")
            with pytest.raises(TimeoutError):  # idle is not late
                await asyncio.wait_for(reader.read(1), 0.4)
        begun = loop.time()
        writer.write(sent)
        assert await rest(reader) == b""
        assert loop.time() - begun < 5
        writer.close()


async def test_a_request_that_is_being_answered_has_no_head_timeout() -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await receive()
                await receive()
        await answer(send)

    async with serving(handle, head_timeout_s=0.1) as at:
        reader, writer = await at.open()
        writer.write(GET + b"\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_socket_has_no_head_timeout() -> None:
    async with serving(echo, head_timeout_s=0.1) as at, at.connect() as client:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recv(), 0.4)
        await client.send("still here")
        assert await client.recv() == "still here"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x00\xa5\x01\x00\x00",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
    ],
)
async def test_what_is_not_http_gets_400_and_a_close(sent: bytes) -> None:
    async with serving(hello) as at:
        assert (await raw(at, sent)).startswith(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n")


async def test_garbage_behind_a_request_is_not_answered_inside_its_answer() -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"piece", "more_body": True})
        await receive()
        await until_disconnect(receive)

    async with serving(handle) as at:
        reader, writer = await at.open()
        writer.write(GET)
        await reader.readuntil(b"piece")
        writer.write(b"\x00\x01\x02")
        assert b"400" not in await rest(reader)
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"y" * HEAD_BYTES_MAX + b"\r\n\r\n", id="whole"),
        pytest.param(b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", id="many headers"),
        pytest.param(b"GET /" + b"y" * 300_000, id="line without end"),
        pytest.param(b"GET / HTTP/1.1\r\nx: " + b"y" * 3_000_000, id="header without end"),
    ],
)
async def test_a_head_over_64_kib_gets_431_and_a_close(head: bytes) -> None:
    async with serving(hello) as at:
        assert (await raw(at, head)).startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


async def test_a_head_of_60_kib_is_read() -> None:
    async with serving(hello) as at:
        reader, writer = await at.open()
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"y" * 60_000 + b"\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (upgrade("/?token=" + "x" * 9000), b"414"),
        (upgrade("/", "x: " + "y" * 9000), b"431"),
        (upgrade("/", *["x: y"] * 200), b"431"),
        (upgrade("/", "content-length: 2") + b"{}", b"400"),
        (upgrade().replace(b"13", b"12"), b"400"),
    ],
)
async def test_a_handshake_that_cannot_be_read_is_answered_and_closed(head: bytes, status: bytes) -> None:
    async with serving(echo) as at:
        assert (await raw(at, head)).startswith(b"HTTP/1.1 " + status)


async def test_trailers_do_not_become_headers_and_have_an_end() -> None:
    seen: asyncio.Queue[list[tuple[bytes, bytes]]] = asyncio.Queue()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        while (message := await receive()).get("more_body"):
            pass
        seen.put_nowait(scope["headers"])
        if message["type"] == "http.request":
            await answer(send)

    chunked = b"POST / HTTP/1.1\r\nhost: here\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n"
    async with serving(handle) as at:
        reader, writer = await at.open()
        writer.write(chunked + b"x-forwarded-for: 10.0.0.1\r\n\r\n")
        await reader.readuntil(b"ok")
        assert [name for name, _ in await seen.get()] == [b"host", b"transfer-encoding"]
        writer.close()
        assert b"200" not in await raw(at, chunked + b"x: y\r\n" * 200_000)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel's own time-outs hold")
async def test_the_kernel_gives_up_a_peer_that_acknowledges_nothing() -> None:
    times: list[int] = []

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        peer = scope["extensions"][EXTENSION]._transport.get_extra_info("socket")
        times.append(peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        await accept(receive, send)

    async with serving(handle) as at, at.connect():
        assert times == [listener.PEER_TIMEOUT_MS]


async def test_forwarded_headers_reach_the_application_untouched_and_the_client_is_the_peer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    scopes: list[Scope] = []

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        scopes.append(scope)
        await (answer(send) if scope["type"] == "http" else accept(receive, send))

    headers = {"x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https", "forwarded": "for=203.0.113.7"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode()
    async with serving(handle) as at:
        reader, writer = await at.open()
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n" + lines + b"\r\n")
        response = await reader.readuntil(b"ok")
        writer.close()
        async with at.connect(additional_headers=headers):
            pass
    assert [scope["scheme"] for scope in scopes] == ["http", "ws"]
    for scope in scopes:
        assert scope["client"][0] == "127.0.0.1"
        assert {(name.encode(), value.encode()) for name, value in headers.items()} <= set(scope["headers"])
    assert b"server:" not in response
    assert b"date:" in response


# --- several requests on one connection -----------------------------------------------------------------


async def test_a_stream_with_a_request_sent_behind_it_learns_that_its_client_left() -> None:
    streaming = asyncio.Event()
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[str] = loop.create_future()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()
        streaming.set()
        leaving = loop.create_task(receive())  # type: ignore[arg-type, var-annotated]
        while not (await asyncio.wait({leaving}, timeout=0.05))[0]:
            await send({"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True})
        ended.set_result(leaving.result()["type"])

    async with serving(handle) as at:
        _, writer = await at.open()
        writer.write(GET)
        await asyncio.wait_for(streaming.wait(), SOON_S)
        writer.write(GET)
        await writer.drain()
        writer.transport.abort()
        assert await asyncio.wait_for(ended, SOON_S) == "http.disconnect"


async def test_requests_sent_ahead_are_answered_in_order_and_a_flood_of_them_ends_the_connection() -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await answer(send, scope["path"].encode())

    def get(path: int) -> bytes:
        return b"GET /%d HTTP/1.1\r\nhost: here\r\n\r\n" % path

    async with serving(handle) as at:
        reader, writer = await at.open()
        writer.write(b"".join(get(path) for path in range(PIPELINE_REQUESTS_MAX)))
        for path in range(PIPELINE_REQUESTS_MAX):
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(f"/{path}")) == f"/{path}".encode()
        writer.close()
        assert await raw(at, b"".join(get(path) for path in range(1000))) == b""


async def test_an_offer_of_another_protocol_is_answered_as_http() -> None:
    async with serving(hello) as at:
        reader, writer = await at.open()
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


# --- the server -----------------------------------------------------------------------------------------


async def test_no_credential_is_logged_at_any_level(caplog: pytest.LogCaptureFixture) -> None:
    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await answer(send)
        elif scope["path"] == "/refused":
            await receive()
            await send({"type": "websocket.close"})
        else:
            await echo(scope, receive, send)

    names = ["uvicorn", "uvicorn.error", "uvicorn.access", "websockets", "websockets.server", ""]
    with contextlib.ExitStack() as levels:
        for name in [*names, "runstone", "runstone.gateway.connections"]:
            levels.enter_context(caplog.at_level(1, logger=name))
        async with serving(handle) as at:
            for name in names[:3]:
                logging.getLogger(name).setLevel(1)
            access = logging.getLogger("uvicorn.access")
            access.addHandler(caplog.handler)
            levels.callback(access.removeHandler, caplog.handler)
            # The client logs what it sends, to its own logger.
            quiet = logging.getLogger("test.client")
            quiet.setLevel(logging.CRITICAL)
            async with at.connect("/?token=s3cret", logger=quiet):
                pass
            with pytest.raises(InvalidStatus):
                await at.connect(
                    "/refused?token=s3cret",
                    logger=quiet,
                    additional_headers={"authorization": "Bearer s3cret"},
                )
            await raw(at, b"GET /?token=s3cret HTTP/1.1\r\nhost: here\r\nconnection: close\r\n\r\n")
    assert "s3cret" not in caplog.text


async def test_the_port_opens_when_startup_has_finished() -> None:
    starting, go_on, told = asyncio.Event(), asyncio.Event(), list[str]()
    loop = asyncio.get_running_loop()
    address: asyncio.Future[tuple[str, int]] = loop.create_future()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "lifespan"
        await receive()
        starting.set()
        await go_on.wait()
        told.append("started")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        told.append("shut down")
        await send({"type": "lifespan.shutdown.complete"})

    def ready(host: str, port: int) -> None:
        told.append("ready")
        address.set_result((host, port))

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(app, "127.0.0.1", port, ready=ready, signals=False)
    task = loop.create_task(server.serve())
    await asyncio.wait_for(starting.wait(), SOON_S)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    go_on.set()
    assert await asyncio.wait_for(address, SOON_S) == ("127.0.0.1", port)
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.close()
    server.stop()
    await asyncio.wait_for(task, SOON_S)
    assert told == ["started", "ready", "shut down"]


async def test_a_startup_that_fails_is_raised_and_opens_nothing() -> None:
    async def raises(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        raise LookupError("no store")

    async def says_so(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no store"})

    async def does_both(scope: Scope, receive: Receive, send: Send) -> None:
        await says_so(scope, receive, send)
        raise LookupError("no store")

    for app, error in ((raises, LookupError), (says_so, RuntimeError), (does_both, LookupError)):
        with pytest.raises(error, match="no store"):
            async with serving(hello, app=app):
                pytest.fail("it opened the port")


async def test_a_port_in_use_is_raised_after_the_shutdown_of_what_had_started() -> None:
    told: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        for step in ("startup", "shutdown"):
            await receive()
            told.append(step)
            await send({"type": f"lifespan.{step}.complete"})

    async with serving(hello) as at:
        with pytest.raises(OSError, match="in use"):
            await asyncio.wait_for(Server(app, at.host, at.port, signals=False).serve(), SOON_S)
    assert told == ["startup", "shutdown"]


async def test_a_lifespan_that_dies_ends_the_server_with_its_error() -> None:
    fail = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await fail.wait()
            raise LookupError("the disk is gone")
        await echo(scope, receive, send)

    codes: list[int | None] = []

    async def connect_and_fail() -> None:
        async with serving(echo, app=app) as at, at.connect() as client:
            fail.set()
            with pytest.raises(ConnectionClosed) as closed:
                await asyncio.wait_for(client.recv(), SOON_S)
            codes.append(closed.value.rcvd.code if closed.value.rcvd else None)

    with pytest.raises(LookupError, match="disk"):
        await connect_and_fail()
    assert codes == [1012]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_the_server_and_its_handler_is_gone_after(number: signal.Signals) -> None:
    before = signal.getsignal(signal.SIGTERM)
    async with serving(hello, signals=True) as at:
        os.kill(os.getpid(), number)
        await asyncio.wait_for(at.task, SOON_S)
    assert signal.getsignal(signal.SIGTERM) == before


async def test_a_second_stop_hurries_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HURRY_S", 0.1)
    asked, saying = asyncio.Event(), asyncio.Event()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    async def before_shutdown() -> None:
        saying.set()
        await asyncio.Event().wait()

    loop = asyncio.get_running_loop()
    async with serving(handle, before_shutdown=before_shutdown) as at:
        reader, writer = await at.open()
        writer.write(GET)
        await asyncio.wait_for(asked.wait(), SOON_S)
        at.server.stop()
        await asyncio.wait_for(saying.wait(), SOON_S)
        begun = loop.time()
        at.server.stop()
        await asyncio.wait_for(at.task, SOON_S)
        assert loop.time() - begun < listener.CONNECTIONS_S / 2
        await rest(reader)
        writer.close()


async def test_steps_of_a_shutdown_that_hang_are_cut_short_and_the_lifespan_still_shuts_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("BEFORE_SHUTDOWN_S", "CONNECTIONS_S", "LAST_TASKS_S"):
        monkeypatch.setattr(listener, name, 0.1)
    asked = asyncio.Event()

    async def handle(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await asyncio.Event().wait()

    async with serving(handle, before_shutdown=asyncio.Event().wait) as at:
        reader, writer = await at.open()
        writer.write(GET)
        await asyncio.wait_for(asked.wait(), SOON_S)
        at.server.stop()
        assert await rest(reader) == b""
        await asyncio.wait_for(at.task, SOON_S)  # raises if the lifespan's shutdown was not reached
        writer.close()


def test_all_steps_of_a_shutdown_take_at_most_25_s() -> None:
    steps = (
        listener.BEFORE_SHUTDOWN_S,
        listener.CONNECTIONS_S,
        listener.LAST_TASKS_S,
        listener.LIFESPAN_S,
        listener.HURRY_S,
    )
    assert sum(steps) <= 25


async def test_cancelling_serve_shuts_down_first() -> None:
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(contextlib.suppress(asyncio.CancelledError))
        at = await stack.enter_async_context(serving(echo))
        client = await at.connect()
        at.task.cancel()
        with pytest.raises(ConnectionClosed) as closed:
            await asyncio.wait_for(client.recv(), SOON_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


def test_a_runner_takes_the_event_loop_factory() -> None:
    async def which() -> str:
        return type(asyncio.get_running_loop()).__module__

    with asyncio.Runner(loop_factory=event_loop_factory) as runner:
        assert runner.run(which()).startswith("uvloop")
