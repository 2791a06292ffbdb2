"""The Python client's feed: over every cut it goes on where it was, and ends as the list is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from runstone.client import Client, FeedItem, FeedStream
from runstone.client.http import Http
from runstone.client.stream import FAULTS_MAX, Backoff
from runstone.errors import GenerationChanged, RunstoneError
from runstone.resources import Thread
from tests.client.test_events import Answer, control, refusal
from tests.support.households import household
from tests.support.lively import app

pytestmark = pytest.mark.anyio


def item(number: int, *, deleted: bool = False) -> bytes:
    said: dict[str, object] = {"thread_id": f"thr_{number}"}
    if deleted:
        said["deleted"] = True
    else:
        time = "2026-11-20T08:15:30.123456Z"
        said |= dict.fromkeys(["key", "title", "last_message"]) | {"metadata": {}, "status": "idle", "head": 1}
        said |= {"created_at": time, "updated_at": time}
    return f"id: cursor_{number}\ndata: {json.dumps(said)}\n\n".encode()


class Scripted:
    """A real server on a real socket, which answers the n-th request as it is told."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = list(answers)
        self.targets: list[str] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self.targets.append((await reader.readuntil(b"\r\n\r\n")).split(b" ")[1].decode())
            answer = self._answers[min(len(self.targets), len(self._answers)) - 1]
            head = [f"HTTP/1.1 {answer.status}", f"content-type: {answer.media_type}", "connection: close"]
            head += [f"content-length: {len(answer.body) + 1}"] if answer.cut else []
            writer.write("\r\n".join([*head, "", ""]).encode() + answer.body)
            await writer.drain()
            if answer.silent:
                await reader.read()
        finally:
            writer.close()


async def scripted(server: Scripted, count: int, after: str | None = None) -> list[FeedItem]:
    """The first items of a feed of that server."""
    async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
        http = Http(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", None, None)
        try:
            found: list[FeedItem] = []
            async with (
                asyncio.timeout(20),
                FeedStream(http, after=after, backoff=Backoff(first_s=0.001, max_s=0.001)) as feed,
            ):
                while len(found) < count:
                    found.append(await anext(feed))
                    assert feed.cursor == found[-1].cursor
            return found
        finally:
            await http.close()


async def test_after_a_cut_it_asks_for_what_comes_after_the_last_item() -> None:
    server = Scripted(
        Answer(item(1) + item(2)[:-5], cut=True),
        Answer(item(2, deleted=True) + control("closing", reason="restarting")),
        Answer(control("caught_up", cursor="cursor_2b"), cut=True),
        Answer(item(3), silent=True),
    )
    found = await scripted(server, 3)
    assert [(one.cursor, one.thread_id, one.thread is None) for one in found] == [
        ("cursor_1", "thr_1", False),
        ("cursor_2", "thr_2", True),
        ("cursor_3", "thr_3", False),
    ]
    assert server.targets == [
        "/v1/feed",
        "/v1/feed?after=cursor_1",
        "/v1/feed?after=cursor_2",
        "/v1/feed?after=cursor_2b",
    ]


async def test_what_the_server_refuses_is_raised_and_not_tried_again() -> None:
    server = Scripted(refusal("409 Conflict", "generation_changed"))
    with pytest.raises(GenerationChanged):
        await scripted(server, 1, after="old")
    assert server.targets == ["/v1/feed?after=old"]


@pytest.mark.parametrize("body", [b"id: c\ndata: {\n\n", b'id: c\ndata: {"thread_id":"thr_1"}\n\n', item(1)[13:]])
async def test_what_is_no_thread_is_never_yielded(body: bytes) -> None:
    server = Scripted(Answer(body))
    with pytest.raises(RunstoneError, match="broken stream"):
        await scripted(server, 1)
    assert len(server.targets) == FAULTS_MAX


@pytest.fixture
async def client(store_url: str) -> AsyncIterator[Client]:
    async with household(app, store_url) as url, Client(url) as found:
        yield found


async def test_a_dict_that_takes_every_item_is_the_list(client: Client) -> None:
    kept, gone = await client.create_thread(title="kept"), await client.create_thread()
    threads: dict[str, Thread] = {}
    async with asyncio.timeout(20), client.feed() as feed:
        async for change in feed:
            if change.thread is None:
                del threads[change.thread_id]
                break
            threads[change.thread_id] = change.thread
            if len(threads) == 2 and change.thread_id == gone.thread_id:
                run = await client.start("echo", "hello", thread_id=kept.thread_id)
                await run.result()
            elif change.thread.title != "kept":
                continue
            elif change.thread.last_message is not None and change.thread.status == "idle":
                await client.delete_thread(gone.thread_id)
    listed = await client.threads()
    assert list(threads.values()) == list(listed)
    assert feed.cursor == listed.feed


async def test_a_list_says_where_its_feed_goes_on(client: Client) -> None:
    for _ in range(3):
        await client.create_thread()
    listed = await client.threads(limit=2)
    changed = await client.update_thread(listed[1].thread_id, title="new")
    async with asyncio.timeout(20), client.feed(after=listed.feed) as feed:
        assert (await anext(feed)).thread == changed
