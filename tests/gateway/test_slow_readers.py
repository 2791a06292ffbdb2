"""A slow reader costs a cursor, not a buffer; one that reads nothing is cut off; nobody else notices either."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx2
import msgspec
import pytest
from websockets.asyncio.client import connect

from tests.support.live import Live, assert_same, live
from tests.support.server import ServerProcess, served

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SEND_DEADLINE_S = 0.5
SOON_S = 30.0
STALLED = 40  # half of them over SSE
RUNS = 16
TEXT_BYTES = 600_000
RECEIVE_BUFFER_BYTES = 64 * 1024
MIB = 1024 * 1024
PIECE_BYTES = 16 * 1024
BYTES_A_SECOND = MIB  # a frame of an event of 600 KB takes longer than the deadline, which sees some of it gone
GROWTH_BYTES_MAX = STALLED * 4 * MIB  # for each a page, its frames and a write buffer, of the 28 MiB it is owed


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(tmp_path_factory.mktemp("slow"), RUNSTONE_SEND_DEADLINE_S=str(SEND_DEADLINE_S)) as process:
        yield process


@pytest.fixture
async def api(serving: ServerProcess) -> AsyncIterator[Live]:
    async with live(serving) as found:
        yield found


@pytest.fixture(scope="module")
def large_thread() -> list[str]:
    return []  # its id, once there is one


async def large(api: Live, kept: list[str]) -> str:
    """A thread of some 28 MiB."""
    if not kept:
        thread_id = await api.thread()
        for number in range(RUNS):
            await api.finished("echo", chr(ord("a") + number) * TEXT_BYTES, thread_id)
        kept.append(thread_id)
    return kept[0]


def small_socket(port: int) -> sockets.socket:
    """A connection whose kernel holds little for a reader that does not read."""
    made = sockets.socket()
    made.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
    made.connect(("127.0.0.1", port))
    made.setblocking(False)
    return made


async def stall(port: int, thread_id: str, *, sse: bool) -> sockets.socket:
    """Asks for everything and reads nothing of it."""
    loop = asyncio.get_running_loop()
    made = small_socket(port)
    head = f"Host: 127.0.0.1:{port}\r\n"
    if sse:
        request = f"GET /v1/threads/{thread_id}/events HTTP/1.1\r\n{head}Accept: text/event-stream\r\n\r\n".encode()
    else:
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        frame = json.dumps({"op": "subscribe", "id": 1, "thread_id": thread_id}).encode()
        masked = bytes([0x81, 0x80 | len(frame), 0, 0, 0, 0]) + frame  # masked with zeros
        request = f"GET /v1/ws HTTP/1.1\r\n{head}{upgrade}{key}\r\n".encode() + masked
    await loop.sock_sendall(made, request)
    return made


async def metric(api: Live, name: str) -> float:
    text = (await api.http.get("/metrics")).text
    found = re.search(rf"^{re.escape(name)} ([0-9.e+-]+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def resident_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        pytest.skip("this machine does not tell how much memory a process has")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text())
    assert found is not None
    return int(found[1]) * 1024


async def read_all(api: Live, thread_id: str, head: int) -> list[bytes]:
    """A reader in good health."""
    found: list[bytes] = []
    async with connect(api.socket_url) as socket:
        await socket.send(json.dumps({"op": "subscribe", "id": 1, "thread_id": thread_id}))
        async for text in socket:
            frame = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            if bytes(frame["op"])[1:-1] == b"events":
                found += map(bytes, msgspec.json.decode(frame["events"], type=list[msgspec.Raw]))
            if len(found) == head:
                return found
    raise AssertionError("the server closed a reader in good health")


async def test_readers_that_read_nothing_are_cut_off_in_bounded_memory_while_others_go_on(
    api: Live, serving: ServerProcess, large_thread: list[str]
) -> None:
    thread_id = await large(api, large_thread)
    log = await api.log(thread_id)
    assert_same(await read_all(api, thread_id, len(log)), log)
    before = resident_bytes(serving.pid)
    aborted = await metric(api, "runstone_connections_aborted_total")
    stalled = [await stall(serving.port, thread_id, sse=number % 2 == 0) for number in range(STALLED)]
    highest = before
    try:
        reading = asyncio.create_task(read_all(api, thread_id, len(log)))
        async with asyncio.timeout(SOON_S):
            while await metric(api, "runstone_connections_aborted_total") < aborted + STALLED:
                highest = max(highest, resident_bytes(serving.pid))
            assert_same(await reading, log)
            while await metric(api, 'runstone_connections{protocol="ws"}') + await metric(
                api, 'runstone_connections{protocol="sse"}'
            ):
                pass
        for one in stalled:
            await ended(one)
    finally:
        for one in stalled:
            one.close()
    assert highest - before < GROWTH_BYTES_MAX, f"grew by {(highest - before) / MIB:.0f} MiB"


async def ended(one: sockets.socket) -> None:
    """What was on its way may be read, then there is a reset or an end, and not everything."""
    loop = asyncio.get_running_loop()
    received = 0
    with contextlib.suppress(ConnectionError):
        while piece := await asyncio.wait_for(loop.sock_recv(one, MIB), SOON_S):
            received += len(piece)
    assert received < RUNS * TEXT_BYTES


@contextlib.asynccontextmanager
async def throttled(port: int) -> AsyncIterator[int]:
    """A relay's port: what the server sends comes through it slowly, and never stops for as long as the deadline."""
    loop = asyncio.get_running_loop()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = small_socket(port)
        up = asyncio.create_task(_pass_up(reader, server))
        try:
            while piece := await loop.sock_recv(server, PIECE_BYTES):
                writer.write(piece)
                await asyncio.sleep(PIECE_BYTES / BYTES_A_SECOND)
        except ConnectionError:
            pass
        finally:
            up.cancel()
            await asyncio.wait({up})
            server.close()
            writer.close()

    async with await asyncio.start_server(relay, "127.0.0.1", 0) as listening:
        yield listening.sockets[0].getsockname()[1]


async def _pass_up(reader: asyncio.StreamReader, server: sockets.socket) -> None:
    while piece := await reader.read(PIECE_BYTES):
        await asyncio.get_running_loop().sock_sendall(server, piece)


async def test_a_reader_that_reads_slowly_over_sse_gets_everything(
    api: Live, serving: ServerProcess, large_thread: list[str]
) -> None:
    thread_id = await large(api, large_thread)
    log = await api.log(thread_id)
    after = _late(log)
    began = asyncio.get_running_loop().time()
    received = bytearray()
    async with (
        asyncio.timeout(SOON_S),
        throttled(serving.port) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SOON_S) as client,
        client.stream(
            "GET",
            f"/v1/threads/{thread_id}/events",
            params={"after": after},
            headers={"accept": "text/event-stream"},
        ) as response,
    ):
        async for chunk in response.aiter_raw():
            received += chunk
            if b"event: caught_up" in received[-200:]:
                break
    assert asyncio.get_running_loop().time() - began > 5 * SEND_DEADLINE_S
    expected = b"".join(b"id: %d\ndata: %b\n\n" % (after + at, wire) for at, wire in enumerate(log[after:], start=1))
    assert bytes(received).startswith(expected)


async def test_a_reader_that_reads_slowly_over_a_websocket_gets_everything(
    api: Live, serving: ServerProcess, large_thread: list[str]
) -> None:
    thread_id = await large(api, large_thread)
    log = await api.log(thread_id)
    after = _late(log)
    began = asyncio.get_running_loop().time()
    found: list[bytes] = []
    async with (
        asyncio.timeout(SOON_S),
        throttled(serving.port) as port,
        connect(f"ws://127.0.0.1:{port}/v1/ws", ping_interval=None) as socket,
    ):
        await socket.send(json.dumps({"op": "subscribe", "id": 1, "thread_id": thread_id, "after": after}))
        async for text in socket:
            frame = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            if bytes(frame["op"]) == b'"caught_up"':
                break
            found += map(bytes, msgspec.json.decode(frame.get("events", b"[]"), type=list[msgspec.Raw]))
    assert asyncio.get_running_loop().time() - began > 5 * SEND_DEADLINE_S
    assert_same(found, log[after:])


def _late(log: list[bytes]) -> int:
    """A cursor with some 6 MiB after it."""
    left = 6 * MIB
    for at in range(len(log) - 1, 0, -1):
        left -= len(log[at])
        if left < 0:
            return at
    return 0
