"""Devices that keep a list of threads true by the feed, over real sockets: each a dict, folded as PROTOCOL.md says."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import httpx2
from httpx_sse import aconnect_sse
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidHandshake, WebSocketException

GONE = (OSError, EOFError, httpx.TransportError, InvalidHandshake, WebSocketException)
SOON_S = 20.0  # what has not come by then never comes

Resource = dict[str, Any]


class Device:
    """One list of threads. `follow` it until it is cut, and again: each time from where it was."""

    def __init__(self, headers: Mapping[str, str] | None = None, after: str | None = None) -> None:
        self.headers = dict(headers or {})
        self.cursor = after
        self.threads: dict[str, Resource] = {}
        self.gone: set[str] = set()
        self.items = 0
        self.cursors: list[str] = []  # of the items, in the order they came
        self.connections = 0
        self.news = asyncio.Condition()
        self.connected = asyncio.Event()
        self.caught_up = asyncio.Event()  # on the connection there is

    async def follow(self, url: str) -> None:
        """Until the connection ends, whoever ends it."""
        self.connections += 1
        self.connected.clear()
        self.caught_up.clear()
        try:
            with contextlib.suppress(*GONE):
                await self._follow(url)
        finally:
            self.connected.set()  # or it never will be

    async def _follow(self, url: str) -> None:
        raise NotImplementedError

    async def take(self, cursor: str, thread_id: str, thread: Resource | None) -> None:
        async with self.news:
            self.cursor = cursor
            self.cursors.append(cursor)
            self.items += 1
            if thread is None:
                self.threads.pop(thread_id, None)
                self.gone.add(thread_id)
            else:
                assert thread_id == thread["thread_id"]
                assert thread_id not in self.gone, "a deleted thread came back"
                self.threads[thread_id] = thread
            self.news.notify_all()

    async def catch_up(self, cursor: str) -> None:
        async with self.news:
            self.cursor = cursor
            self.caught_up.set()
            self.news.notify_all()

    async def until(self, condition: Callable[[], bool], timeout_s: float = SOON_S) -> float:
        """When it came true, by the clock of `time.monotonic`."""
        async with asyncio.timeout(timeout_s), self.news:
            await self.news.wait_for(condition)
            return time.monotonic()

    def at(self, thread_id: str, updated_at: str) -> bool:
        """Whether a change is there, or one that came after it."""
        thread = self.threads.get(thread_id)
        return thread_id in self.gone or (thread is not None and thread["updated_at"] >= updated_at)


class SseDevice(Device):
    async def _follow(self, url: str) -> None:
        headers = self.headers | ({"last-event-id": self.cursor} if self.cursor else {})
        async with (
            httpx.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
            aconnect_sse(client, "GET", f"{url}/v1/feed", headers=headers) as source,
        ):
            assert source.response.status_code == 200, await source.response.aread()
            self.connected.set()
            async for frame in source.aiter_sse():
                if not frame.data:
                    continue  # this library makes an event of a comment
                data = json.loads(frame.data)
                if frame.event == "message":
                    gone = data.get("deleted", False)
                    await self.take(frame.id, data["thread_id"], None if gone else data)
                elif frame.event == "caught_up":
                    await self.catch_up(data["cursor"])


class SocketDevice(Device):
    async def _follow(self, url: str) -> None:
        address = url.replace("http://", "ws://") + "/v1/ws"
        async with connect(address, additional_headers=self.headers, close_timeout=0.1) as socket:
            self.connected.set()
            ask = {"op": "feed", "id": "mine"} | ({"after": self.cursor} if self.cursor else {})
            await socket.send(json.dumps(ask))
            answered = False
            async for text in socket:
                frame = json.loads(text)
                match frame["op"]:
                    case "ok":
                        answered = True
                    case "thread":
                        assert answered, "a thread came before the answer"
                        thread = frame.get("thread")
                        assert (thread is None) == frame.get("deleted", False)
                        thread_id = frame["thread_id"] if thread is None else thread["thread_id"]
                        await self.take(frame["cursor"], thread_id, thread)
                    case "caught_up":
                        await self.catch_up(frame["cursor"])
                    case "error":
                        raise AssertionError(text)


@contextlib.asynccontextmanager
async def following(url: str, *devices: Device) -> Any:
    """Devices that are connected while the context is open, and have caught up when it begins."""
    tasks = [asyncio.create_task(device.follow(url)) for device in devices]
    try:
        for device, task in zip(devices, tasks, strict=True):
            caught_up = asyncio.create_task(device.caught_up.wait())
            await asyncio.wait({caught_up, task}, timeout=SOON_S, return_when=asyncio.FIRST_COMPLETED)
            caught_up.cancel()
            if task.done():
                task.result()
            assert device.caught_up.is_set(), "it did not catch up"
        yield
    finally:
        for task in tasks:
            task.cancel()
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, Exception):
                raise ended


async def listed(http: httpx2.AsyncClient, headers: Mapping[str, str] | None = None) -> tuple[list[Resource], str]:
    """All threads as `GET /v1/threads` gives them, page by page, and the feed's cursor of the first page."""
    found: list[Resource] = []
    params: dict[str, str | int] = {"limit": 1000}
    feed: str | None = None
    while True:
        answer = (await http.get("/v1/threads", params=params, headers=headers)).json()
        found += answer["threads"]
        feed = feed or answer["feed"]
        if answer["next_cursor"] is None:
            return found, feed
        params["cursor"] = answer["next_cursor"]


def by_id(threads: list[Resource]) -> dict[str, Resource]:
    return {thread["thread_id"]: thread for thread in threads}
