"""Readers of the feed that do not read cost a cursor each, however much changes, and then read the end only."""

from __future__ import annotations

import asyncio
import json
import socket as sockets
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from tests.gateway.test_slow_readers import resident_bytes, small_socket
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

MIB = 1024 * 1024
THREADS = 20
METADATA_BYTES = 10_000
CHANGES = 10_000
WARMING = 1_000  # fills what is bounded and not the readers': windows, caches
READERS = 8  # half of them over SSE; what they are owed, were it queued: 100 MB each
GROWTH_BYTES_MAX = 32 * MIB
SOON_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "tests.support.lively:app")
    process.start(RUNSTONE_SEND_DEADLINE_S="300")  # else they are cut off before they could cost anything
    yield process
    process.kill()


async def ask(port: int, *, sse: bool) -> sockets.socket:
    """Asks for the feed and reads nothing of it."""
    made = small_socket(port)
    head = f"Host: 127.0.0.1:{port}\r\n"
    if sse:
        request = f"GET /v1/feed HTTP/1.1\r\n{head}Accept: text/event-stream\r\n\r\n".encode()
    else:
        upgrade = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        key = "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        frame = json.dumps({"op": "feed", "id": 1}).encode()
        masked = bytes([0x81, 0x80 | len(frame), 0, 0, 0, 0]) + frame  # masked with zeros
        request = f"GET /v1/ws HTTP/1.1\r\n{head}{upgrade}{key}\r\n".encode() + masked
    await asyncio.get_running_loop().sock_sendall(made, request)
    return made


async def change(http: httpx2.AsyncClient, threads: list[str], count: int) -> None:
    body = {"agent": "titles", "input": count // THREADS}
    for run in [(await http.post(f"/v1/threads/{thread_id}/runs", json=body)).json() for thread_id in threads]:
        ended = (await http.get(f"/v1/runs/{run['run_id']}", params={"wait_s": 60}, timeout=70)).json()
        assert ended["output"] == count // THREADS


async def read_until(one: sockets.socket, words: list[bytes]) -> int:
    """Reads until all the words have come; how many bytes that took."""
    loop, received, size = asyncio.get_running_loop(), b"", 0
    left = set(words)
    async with asyncio.timeout(SOON_S):
        while left:
            piece = await loop.sock_recv(one, MIB)
            assert piece, "it was cut off"
            size += len(piece)
            received = received[-200:] + piece
            left = {word for word in left if word not in received}
    return size


async def test_ten_thousand_changes_cost_a_reader_that_does_not_read_a_cursor(server: ServerProcess) -> None:
    async with httpx2.AsyncClient(base_url=server.url, timeout=60) as http:
        body = {"metadata": {"filler": "x" * METADATA_BYTES}}
        threads = [(await http.post("/v1/threads", json=body)).json()["thread_id"] for _ in range(THREADS)]
        await change(http, threads, WARMING)
        readers = [await ask(server.port, sse=number % 2 == 0) for number in range(READERS)]
        try:
            before = resident_bytes(server.pid)
            await change(http, threads, CHANGES)
            grown = resident_bytes(server.pid) - before
            for number, thread_id in enumerate(threads):
                await http.patch(f"/v1/threads/{thread_id}", json={"title": f"the end of {number}"})
            ends = [f"the end of {number}".encode() for number in range(THREADS)]
            sizes = await asyncio.gather(*(read_until(one, ends) for one in readers))
        finally:
            for one in readers:
                one.close()
    sys.stdout.write(
        f"{CHANGES} changes: the server grew by {grown / MIB:.1f} MiB; of {CHANGES * METADATA_BYTES / MIB:.0f} MiB "
        f"each reader read {min(sizes) / MIB:.1f} to {max(sizes) / MIB:.1f}\n"
    )
    assert grown < GROWTH_BYTES_MAX
    assert max(sizes) < CHANGES * METADATA_BYTES / 4
