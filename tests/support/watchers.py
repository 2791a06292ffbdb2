"""Clients that follow threads over a raw WebSocket or event stream, keep their cursors, and note each byte."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterable

import httpx2
import msgspec
from msgspec import Raw
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage

from tests.support.history import History, Place, Violation

GONE = (OSError, ConnectionClosed, InvalidHandshake, InvalidMessage, httpx2.TransportError, EOFError)


ATTACH_S = 30.0
STREAM_TIMEOUT = httpx2.Timeout(30, read=None)


class _Frame(msgspec.Struct):
    op: str
    thread_id: str = ""
    events: list[Raw] = []
    head: int = -1
    code: str = ""


class _Watcher:
    """`follow` until the server is gone, and again: each time from where it was."""

    def __init__(self, history: History, name: str) -> None:
        self._history = history
        self.name = name
        self.places: dict[str, Place] = {}
        self.closed_with: list[int | str] = []  # how the server ended it: close codes, closing reasons
        self.attached = asyncio.Event()  # while it is connected and has caught up everywhere

    def watch(self, thread_ids: Iterable[str]) -> None:
        """From the next `follow` on."""
        for thread_id in thread_ids:
            self.places.setdefault(thread_id, Place(self._history, self.name, thread_id))

    def unwatch(self, thread_ids: Iterable[str]) -> None:
        for thread_id in thread_ids:
            self.places.pop(thread_id, None)

    async def follow(self, url: str) -> None:
        """Until the connection ends, whoever ends it."""
        self.attached.clear()
        try:
            await self._follow(url)
        except GONE:
            pass
        finally:
            self.attached.clear()

    async def _follow(self, url: str) -> None:
        raise NotImplementedError


class SocketWatcher(_Watcher):
    """One WebSocket with a subscription for each thread."""

    async def _follow(self, url: str) -> None:
        address = url.replace("http://", "ws://") + "/v1/ws"
        async with connect(address, subprotocols=["runstone.v1"], compression=None, ping_interval=None) as socket:  # type: ignore[list-item]
            waiting = set(self.places)
            for number, place in enumerate(self.places.values()):
                frame = {"op": "subscribe", "id": number, "thread_id": place.thread_id, "after": place.cursor}
                await socket.send(json.dumps(frame))
            if not waiting:
                self.attached.set()
            try:
                async for text in socket:
                    frame_ = msgspec.json.decode(text, type=_Frame)
                    for event in frame_.events:
                        self.places[frame_.thread_id].take(bytes(event))
                    if frame_.op == "error":
                        if frame_.code != "store_failed":
                            raise Violation(f"{self.name}: {text!r}")
                        self.closed_with.append(frame_.code)
                    if frame_.op == "caught_up":
                        waiting.discard(frame_.thread_id)
                        if self.places[frame_.thread_id].cursor > frame_.head:
                            raise Violation(f"{self.name}: caught up with {frame_.head}, and beyond it")
                        if not waiting:
                            self.attached.set()
            finally:
                if socket.close_code is not None:
                    self.closed_with.append(socket.close_code)


class StreamWatcher(_Watcher):
    """One event stream of one thread."""

    def __init__(self, history: History, name: str, client: httpx2.AsyncClient) -> None:
        super().__init__(history, name)
        self._client = client

    def use(self, client: httpx2.AsyncClient) -> None:
        """From the next `follow` on."""
        self._client = client

    async def _follow(self, url: str) -> None:
        (place,) = self.places.values()
        headers = {"accept": "text/event-stream", "last-event-id": str(place.cursor)}
        address = f"{url}/v1/threads/{place.thread_id}/events"
        async with self._client.stream("GET", address, headers=headers, timeout=STREAM_TIMEOUT) as answer:
            if answer.status_code != 200:
                self.closed_with.append(answer.status_code)
                return
            rest = b""
            async for piece in answer.aiter_raw():
                *whole, rest = (rest + piece).split(b"\n\n")
                for block in whole:
                    self._take(place, block)

    def _take(self, place: Place, block: bytes) -> None:
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n") if not line.startswith(b":"))
        if not fields:
            return
        if b"id" in fields:
            place.take(fields[b"data"])
            if int(fields[b"id"]) != place.cursor:
                raise Violation(f"{self.name}: the id {fields[b'id']!r} is not the event's")
        elif fields[b"event"] == b"caught_up":
            self.attached.set()
        elif fields[b"event"] == b"closing":
            self.closed_with.append(json.loads(fields[b"data"])["reason"])


async def attach(watchers: Iterable[_Watcher], url: str) -> list[asyncio.Task[None]]:
    """Starts them all; returns when each has caught up, or is gone again."""

    async def attached(watcher: _Watcher, task: asyncio.Task[None]) -> None:
        ready = asyncio.create_task(watcher.attached.wait())
        done, _ = await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED, timeout=ATTACH_S)
        ready.cancel()
        if not done:
            raise Violation(f"{watcher.name} does not catch up: the server hangs")

    watchers = list(watchers)
    tasks = [asyncio.create_task(watcher.follow(url), name=watcher.name) for watcher in watchers]
    await asyncio.gather(*map(attached, watchers, tasks))
    return tasks


async def detach(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Ends them from the clients' side."""
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
