"""The load generator's end of the wire: HTTP and WebSocket by hand, so that it costs the machine little."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from benches.bench import Lost

HOST = "127.0.0.1"
_HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class Http:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer; raises when it is an error."""
        answer = await self.raw(method, path, body)
        return json.loads(answer)

    async def raw(self, method: str, path: str, body: object = None) -> bytes:
        if self._streams is None:
            self._streams = await asyncio.open_connection(HOST, self._port, limit=1 << 24)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        kind = b"" if body is None else b"Content-Type: application/json\r\n"
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n".encode()
        writer.write(head + kind + b"\r\n" + content)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(answer)
        assert length is not None, answer
        found = await reader.readexactly(int(length[1]))
        if answer[9:10] != b"2":
            raise RuntimeError(f"{method} {path}: {answer[:12]!r} {found!r}")
        return found

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()


class Pool:
    """A few connections that share out many requests."""

    def __init__(self, port: int, size: int = 8) -> None:
        self._all = [Http(port) for _ in range(size)]
        self._free: asyncio.Queue[Http] = asyncio.Queue()
        for http in self._all:
            self._free.put_nowait(http)

    async def call(self, method: str, path: str, body: object = None) -> Any:
        http = await self._free.get()
        try:
            return await http.call(method, path, body)
        finally:
            self._free.put_nowait(http)

    async def threads(self, count: int) -> list[str]:
        """New threads, by id."""
        made = await asyncio.gather(*(self.call("POST", "/v1/threads", {}) for _ in range(count)))
        return [thread["thread_id"] for thread in made]

    async def start(self, agent: str, thread_ids: Iterable[str], **input: object) -> list[dict[str, Any]]:
        """A run in each thread."""
        body = {"agent": agent, "input": input}
        calls = (self.call("POST", f"/v1/threads/{thread_id}/runs", body) for thread_id in thread_ids)
        return list(await asyncio.gather(*calls))

    def close(self) -> None:
        for http in self._all:
            http.close()


class Socket(asyncio.Protocol):
    """A WebSocket that reads. Every whole text frame goes to `receive`.

    A `bare` one talks to the baseline's server, which sends the same frames without the ceremony.
    """

    def __init__(self, receive: Callable[[bytes], None], *, first: Iterable[bytes] = (), bare: bool = False) -> None:
        self._receive = receive
        self._first = list(first)
        self._bare = bare
        self._rest = b""
        self._closing = False
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if self._bare:
            self.opened.set_result(None)
        else:
            self.transport.write(_HANDSHAKE)

    def data_received(self, data: bytes) -> None:
        if not self.opened.done():
            data = self._handshake(data)
        self.feed(data)

    def _handshake(self, data: bytes) -> bytes:
        self._rest += data
        head, end, rest = self._rest.partition(b"\r\n\r\n")
        if not end:
            return b""
        self._rest = b""
        if not head.startswith(b"HTTP/1.1 101"):
            self.opened.set_exception(Lost(f"refused: {head!r}"))
            return b""
        for payload in self._first:
            self.send(payload)
        self.opened.set_result(None)
        return rest

    def feed(self, data: bytes) -> None:
        """Bytes after the handshake."""
        if self._rest:
            data = self._rest + data
        at, end = 0, len(data)
        while end - at >= 2:
            size, start = data[at + 1], at + 2
            if size == 126:
                start += 2
                size = int.from_bytes(data[at + 2 : start]) if end >= start else end
            elif size == 127:
                start += 8
                size = int.from_bytes(data[at + 2 : start]) if end >= start else end
            if start + size > end:
                break
            if data[at] == 0x81:
                self._receive(data[start : start + size])
            at = start + size
        self._rest = data[at:]

    def send(self, payload: bytes) -> None:
        """A text frame; the mask is zero, which is as good as any for us."""
        size = len(payload)
        assert size < 1 << 16
        length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2)
        self.transport.write(b"\x81" + length + bytes(4) + payload)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(Lost(f"cut off: {exc}"))
        if not self.lost.done():
            self.lost.set_result(None)

    def close(self) -> None:
        self.transport.abort()


def subscribe(thread_id: str, after: int = 0) -> bytes:
    return json.dumps({"op": "subscribe", "id": 1, "thread_id": thread_id, "after": after}).encode()


async def connect(port: int, sockets: Iterable[Socket], at_once: int = 200) -> None:
    """Opens them all, so many at a time."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(at_once)

    async def one(socket: Socket) -> None:
        async with gate:
            await loop.create_connection(lambda: socket, HOST, port)
            await socket.opened

    await asyncio.gather(*(one(socket) for socket in sockets))
