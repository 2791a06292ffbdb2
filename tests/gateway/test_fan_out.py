"""Many viewers of one thread: frames are made once for all who ask the same, and never given to who asked otherwise."""

from __future__ import annotations

import asyncio
import re
from functools import partial
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from starlette.types import Message
from websockets.asyncio.client import connect

from runstone.events import Event
from runstone.gateway.connection import EXTENSION
from runstone.gateway.frames import RecentFrames
from runstone.gateway.gate import USER_KEY
from runstone.gateway.listener import Mailbox
from runstone.gateway.sse import Streaming
from runstone.gateway.streams import Streams
from runstone.gateway.ws import _Socket
from runstone.log.tail import Tail
from runstone.log.windows import Windows
from runstone.metrics import Metrics
from runstone.protocol import Filter, Session, Subscribe, Subscription
from runstone.service import Tasks
from runstone.views import Page, ThreadRef
from tests.support.live import Live, live
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio

THREAD = "thr_a"
ENDS = "agent_completed"


def event(seq: int, kind: str = "message_delta") -> Event:
    return Event(seq, "run_1", kind, b'{"seq":%d,"type":"%b"}' % (seq, kind.encode()))


def viewer(frames: RecentFrames, types: frozenset[str] | None = None) -> Session:
    session = Session(user_id="alice", generation="g", heartbeat_s=15, frames=frames.of)
    subscription = Subscription(Filter(types, None), after=0, head=0)
    session.subscribed(Subscribe(1, THREAD, 0, None, None), subscription, 0)
    return session


def shown(session: Session, page: Page) -> list[int]:
    frames = [msgspec.json.decode(frame) for frame in session.deliver(THREAD, page)[0]]
    return [one["seq"] for frame in frames if frame["op"] == "events" for one in frame["events"]]


def test_who_is_given_the_same_page_gets_the_same_bytes() -> None:
    frames = RecentFrames()
    page = Page([event(1), event(2)], 2)
    first, second = (viewer(frames).deliver(THREAD, page)[0][0] for _ in range(2))
    assert first is second
    assert frames.text(first) is frames.text(second)


def test_a_filter_a_cursor_and_a_new_page_each_make_frames_of_their_own() -> None:
    frames = RecentFrames()
    page, later = Page([event(1), event(2, "usage")], 2), Page([event(2, "usage")], 2)
    everything, usage = viewer(frames), viewer(frames, frozenset({"usage"}))
    assert shown(everything, page) == [1, 2]
    assert shown(usage, page) == [2]
    assert shown(viewer(frames), page) == [1, 2]
    assert shown(viewer(frames), later) == [2]
    assert shown(everything, Page([event(3)], 3)) == [3]


async def test_viewers_with_other_cursors_and_filters_each_see_their_own_events(server: ServerProcess) -> None:
    server.start()
    async with live(server) as api:
        thread_id = await api.thread()
        wants: list[dict[str, Any]] = [
            {},
            {"after": 1},
            {"types": ["message_started"]},
            {"types": ["message_delta", "message_completed"]},
        ]
        run = await api.start("tokens", {"count": 400, "delay_s": 0.002}, thread_id)
        seen = await asyncio.gather(*(_followed(api, thread_id, want) for want in wants * 5))
        await api.ended(run)
        log = [msgspec.json.decode(wire) for wire in await api.log(thread_id)]
        for want, events in zip(wants * 5, seen, strict=True):
            types = want.get("types")
            after = want.get("after", 0)
            assert events == [
                one
                for one in log
                if one["seq"] > after and (types is None or one["type"] in types or one["type"] == ENDS)
            ]


async def _followed(api: Live, thread_id: str, want: dict[str, Any]) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    async with connect(api.socket_url) as socket:
        await socket.send(msgspec.json.encode({"op": "subscribe", "id": 1, "thread_id": thread_id, **want}).decode())
        async with asyncio.timeout(20):
            while not seen or seen[-1]["type"] != ENDS:
                seen += msgspec.json.decode(await socket.recv()).get("events", [])
    return seen


async def test_news_do_not_overtake_a_page_that_is_being_read_from_the_store() -> None:
    wire = Wire()
    socket = socket_on(wire)
    thread, windows, may_read = ThreadRef(THREAD, "alice"), Windows(), asyncio.Event()

    async def read(_thread: ThreadRef, after: int, _limit: int) -> Page:
        await may_read.wait()
        return Page([event(after + 1)], after + 1)

    tail = Tail(read, windows.read, thread, 0, partial(socket._push, THREAD))
    socket._tails[THREAD] = tail
    socket._session.subscribed(
        Subscribe(1, THREAD, 0, None, None), Subscription(Filter(None, None), after=0, head=0), 0
    )
    tail.head = 1  # from the store, before memory has the event
    reading: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    writing = asyncio.create_task(socket._write(reading))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    windows.add(thread, [event(1), event(2)], 0.0)
    tail.hinted(2)
    assert wire.seqs() == []
    may_read.set()
    async with asyncio.timeout(5):
        while tail.behind:
            await asyncio.sleep(0)
    reading.set_result(None)
    socket._wake.set()
    await writing
    assert wire.seqs() == [1, 2]


class Wire:
    """A connection that keeps the frames it is given."""

    unsent_bytes = 0

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def send_frame(self, frame: bytes) -> None:
        self.frames.append(frame)

    async def drain(self) -> None: ...

    def abort(self) -> None: ...

    def seqs(self) -> list[int]:
        return [int(seq) for frame in self.frames for seq in re.findall(rb'"seq":(\d+)', frame)]


def socket_on(wire: Wire) -> _Socket:
    log = SimpleNamespace(failure=None, generation="g", lag_s=lambda _: None)
    metrics = Metrics()
    streams = Streams(metrics, per_user_max=1)
    shared = Streaming(log, streams, metrics, Tasks("test"), 15.0, 10.0, RecentFrames())  # type: ignore[arg-type]
    scope = {"type": "websocket", "extensions": {EXTENSION: wire}, USER_KEY: "alice"}

    async def nothing(*_: object) -> Any:
        raise AssertionError("an ASGI message where none belongs")

    return _Socket(shared, scope, nothing, nothing, asyncio.Event())


# --- what an application receives from a socket ----------------------------------------------------------------------


def said(text: str) -> Message:
    return {"type": "websocket.receive", "text": text}


async def test_messages_are_received_in_order_however_the_receiver_waits() -> None:
    box = Mailbox()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    for text in "abc":
        box.put_nowait(said(text))  # type: ignore[arg-type]
    assert [await waiting, await box.get(), await box.get()] == [said(text) for text in "abc"]
    assert box.empty()


async def test_a_receiver_that_gives_up_loses_no_message() -> None:
    box = Mailbox()
    waiting = asyncio.create_task(box.get())
    await asyncio.sleep(0)
    waiting.cancel()
    box.put_nowait(said("a"))  # type: ignore[arg-type]
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await asyncio.wait_for(box.get(), 5) == said("a")
