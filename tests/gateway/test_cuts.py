"""Twenty clients follow a run of 20,000 tokens and are cut 2,000 times: each ends with the bytes of the log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

import httpx
import msgspec
import pytest
from httpx_sse import aconnect_sse
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

from tests.support.live import Live, assert_same, live
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(120)]

TOKENS = 20_000
CLIENTS = 20  # every other one over SSE
CUTS = 2_000
WITHIN_S = 60.0
CUT_AFTER_BYTES = 6_000  # on the average: inside the handshake now and then, inside of frames mostly
CUT_AFTER_S = 0.06  # on the average: time for some frames, so that every cut finds another cursor
PIECE_BYTES = 16 * 1024  # what the relay passes on at once: less than most frames, so that cuts fall inside them


class Relay:
    """A TCP relay to the server that cuts connections where it likes, also in the middle of a frame."""

    def __init__(self, port: int, seed: int) -> None:
        self._server_port = port
        self._seed = seed
        self._dice: dict[str, random.Random] = {}
        self.cuts: dict[str, int] = {}

    @contextlib.asynccontextmanager
    async def listening(self, name: str) -> AsyncIterator[int]:
        """A port of this client's own."""

        relaying: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._relay(name, reader, writer))
            relaying.add(task)
            task.add_done_callback(relaying.discard)

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            for task in relaying:
                task.cancel()
            await asyncio.gather(*relaying, return_exceptions=True)

    def cuts_left(self, name: str) -> bool:
        return self.cuts.get(name, 0) < CUTS // CLIENTS

    async def _relay(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server: asyncio.StreamWriter | None = None
        up: asyncio.Task[bool] | None = None
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
            up = asyncio.create_task(_pass_on(reader, to_server, None))
            self.cuts.setdefault(name, 0)
            if self.cuts_left(name):
                self.cuts[name] += await self._pass_some(name, from_server, writer)
            else:
                await _pass_on(from_server, writer, None)
        except OSError:
            pass
        finally:
            if up is not None:
                up.cancel()
            for end in (writer, to_server):
                if end is not None:
                    end.transport.abort()

    async def _pass_some(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Until the cut, unless the end comes first: half of them fall after so many bytes, half after so much time."""
        dice = self._dice.setdefault(name, random.Random(f"{self._seed} {name}"))
        soon = dice.random() < 0.5
        size = int(dice.expovariate(1 / CUT_AFTER_BYTES)) if soon else None
        delay_s = None if soon else dice.expovariate(1 / CUT_AFTER_S)
        try:
            async with asyncio.timeout(delay_s):
                return await _pass_on(reader, writer, size)
        except TimeoutError:
            return True


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int | None) -> bool:
    """Whether the size was reached before the end."""
    while piece := await reader.read(PIECE_BYTES):
        if size is not None and len(piece) >= size:
            writer.write(piece[:size])
            await writer.drain()
            return True
        size = None if size is None else size - len(piece)
        writer.write(piece)
        await writer.drain()
    return False


@dataclass
class Viewer:
    """What one client has: bytes of events, and the cursor that follows from them."""

    url: str
    thread_id: str
    events: list[bytes] = field(default_factory=list)
    cursor: int = 0
    cursors: list[int] = field(default_factory=list)  # that it came back with
    ended: bool = False

    def take(self, wire: bytes) -> None:
        event = msgspec.json.decode(wire, type=_Head)
        self.events.append(wire)
        self.cursor = event.seq
        self.ended = self.ended or event.type == "agent_completed"

    async def follow(self, watch: Callable[[Viewer], Awaitable[None]], cuts_left: Callable[[], bool]) -> None:
        """Until the run's end, whatever happens to the connections; again from 0 while cuts are left."""
        while not self.ended or cuts_left():
            if self.ended:
                self.events, self.cursor, self.ended = [], 0, False
            self.cursors.append(self.cursor)
            with contextlib.suppress(OSError, EOFError, httpx.TransportError, InvalidHandshake, WebSocketException):
                await watch(self)  # when it is cut, it comes back with its cursor


class _Head(msgspec.Struct):
    seq: int
    type: str


class _Frame(msgspec.Struct):
    op: str
    events: list[msgspec.Raw] = []


async def over_websocket(viewer: Viewer) -> None:
    async with connect(f"ws://{viewer.url}/v1/ws", close_timeout=0.1) as socket:
        subscribe = {"op": "subscribe", "id": 1, "thread_id": viewer.thread_id, "after": viewer.cursor}
        await socket.send(json.dumps(subscribe))
        async for text in socket:
            frame = msgspec.json.decode(text, type=_Frame)
            assert frame.op != "error", text
            for wire in frame.events:
                viewer.take(bytes(wire))
            if viewer.ended:
                return


async def over_sse(viewer: Viewer, client: httpx.AsyncClient) -> None:
    headers = {"last-event-id": str(viewer.cursor)}
    url = f"http://{viewer.url}/v1/threads/{viewer.thread_id}/events"
    async with aconnect_sse(client, "GET", url, headers=headers) as source:
        async for frame in source.aiter_sse():
            if frame.event == "message":
                assert frame.id == str(msgspec.json.decode(frame.data, type=_Head).seq)
                viewer.take(frame.data.encode())
            if viewer.ended:
                return


async def test_clients_that_are_cut_at_random_end_with_the_bytes_of_the_log(server: ServerProcess) -> None:
    seed = int(os.environ.get("RUNSTONE_TEST_SEED") or random.SystemRandom().getrandbits(32))
    sys.stdout.write(f"replay with RUNSTONE_TEST_SEED={seed}\n")
    server.start()
    relay = Relay(server.port, seed)
    began = asyncio.get_running_loop().time()
    async with live(server) as api, asyncio.timeout(WITHIN_S):
        thread_id = await api.thread()
        run = await api.start("tokens", {"count": TOKENS, "delay_s": 0.003, "burst": 4}, thread_id)
        viewers = await _followed(relay, thread_id)
        run = await api.ended(run)
        await _compare(api, run, viewers)
    cuts = sum(relay.cuts.values())
    took = asyncio.get_running_loop().time() - began
    sys.stdout.write(f"{cuts} cuts, {sum(len(viewer.cursors) for viewer in viewers)} connections, {took:.1f} s\n")
    assert cuts == CUTS
    assert run["output"] == TOKENS


async def _followed(relay: Relay, thread_id: str) -> list[Viewer]:
    viewers: list[Viewer] = []

    async def one(number: int) -> None:
        async with relay.listening(f"client {number}") as port:
            viewer = Viewer(f"127.0.0.1:{port}", thread_id)
            viewers.append(viewer)
            cuts_left = partial(relay.cuts_left, f"client {number}")
            if number % 2:
                async with httpx.AsyncClient(timeout=30, trust_env=False) as client:
                    await viewer.follow(partial(over_sse, client=client), cuts_left)
            else:
                await viewer.follow(over_websocket, cuts_left)

    async with asyncio.TaskGroup() as group:
        for number in range(CLIENTS):
            group.create_task(one(number))
    return viewers


async def _compare(api: Live, run: dict[str, object], viewers: list[Viewer]) -> None:
    thread_id = str(run["thread_id"])
    log = await api.log(thread_id)
    assert [msgspec.json.decode(wire, type=_Head).seq for wire in log] == list(range(1, len(log) + 1))
    messages = (await api.http.get(f"/v1/threads/{thread_id}/messages")).json()["messages"]
    said = "".join(f"tok{number} " for number in range(TOKENS))
    assert [message["content"] for message in messages if message["role"] == "assistant"] == [said]
    on_their_way = sum(len(set(viewer.cursors)) for viewer in viewers)
    assert on_their_way > CUTS / 5, "they were cut, but hardly ever on their way"
    for viewer in viewers:
        assert_same(viewer.events, log)
        deltas = [msgspec.json.decode(wire)["data"]["delta"] for wire in viewer.events if b'"message_delta"' in wire]
        assert "".join(deltas) == said
