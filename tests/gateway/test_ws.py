"""The WebSocket of a real server, through the `websockets` library."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket as sockets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from runstone.limits import MIB
from tests.support.live import Live, assert_same, live
from tests.support.server import ServerProcess, served

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 0.3
SOON_S = 20.0  # what has not come by then never comes
UNKNOWN_THREAD = "thr_00000000-0000-7000-8000-000000000000"


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(tmp_path_factory.mktemp("ws"), RUNSTONE_HEARTBEAT_S=str(HEARTBEAT_S)) as process:
        yield process


@pytest.fixture
async def api(serving: ServerProcess) -> AsyncIterator[Live]:
    async with live(serving) as found:
        yield found


class Socket:
    """A connection that speaks frames, and keeps the bytes of the events it was sent."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection
        self.events: dict[str, list[bytes]] = {}
        self.caught_up: dict[str, list[int]] = {}
        self.frame_bytes: list[int] = []

    async def send(self, **frame: object) -> None:
        await self.connection.send(json.dumps(frame))

    async def receive(self) -> dict[str, Any]:
        """The next frame but a pong that nobody asked for."""
        while True:
            text = await asyncio.wait_for(self.connection.recv(), SOON_S)
            assert isinstance(text, str)
            frame = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
            plain: dict[str, Any] = {
                name: msgspec.json.decode(value) for name, value in frame.items() if name != "events"
            }
            if plain == {"op": "pong"}:
                continue
            if plain["op"] == "events":
                self.frame_bytes.append(len(text.encode()))
                wires = [bytes(wire) for wire in msgspec.json.decode(frame["events"], type=list[msgspec.Raw])]
                self.events.setdefault(plain["thread_id"], []).extend(wires)
                plain["events"] = [msgspec.json.decode(wire) for wire in wires]
            elif plain["op"] == "caught_up":
                self.caught_up.setdefault(plain["thread_id"], []).append(plain["head"])
            return plain

    async def until(self, op: str, **members: object) -> dict[str, Any]:
        async with asyncio.timeout(SOON_S):
            while True:
                frame = await self.receive()
                if frame["op"] == op and all(frame.get(name) == value for name, value in members.items()):
                    return frame

    async def until_event(self, kind: str, run_id: str) -> None:
        async with asyncio.timeout(SOON_S):
            while True:
                for event in (await self.until("events"))["events"]:
                    if (event["type"], event.get("run_id")) == (kind, run_id):
                        return

    async def subscribe(self, thread_id: str, after: int = 0, **rest: object) -> dict[str, Any]:
        await self.send(op="subscribe", id=f"to {thread_id}", thread_id=thread_id, after=after, **rest)
        return await self.until("ok", id=f"to {thread_id}")

    async def closed(self) -> int | None:
        """The code of the close that comes; what comes before it is kept."""
        try:
            while True:
                await self.receive()
        except ConnectionClosed as ended:
            return None if ended.rcvd is None else ended.rcvd.code


@asynccontextmanager
async def opened(api: Live, **how: Any) -> AsyncIterator[Socket]:
    async with connect(api.socket_url, **how) as connection:
        socket = Socket(connection)
        assert (await socket.receive())["op"] == "hello"
        yield socket


# --- the handshake ------------------------------------------------------------


async def test_hello_comes_first_and_says_who_and_which_history(api: Live) -> None:
    page = (await api.http.get(f"/v1/threads/{await api.thread()}/events")).json()
    async with connect(api.socket_url) as connection:
        hello = json.loads(await connection.recv())
    assert hello == {"op": "hello", "user_id": "local", "generation": page["generation"], "heartbeat_s": HEARTBEAT_S}


@pytest.mark.parametrize(
    ("offered", "chosen"), [(None, None), (["runstone.v1"], "runstone.v1"), (["other", "runstone.v1"], "runstone.v1")]
)
async def test_the_subprotocol_is_chosen_where_it_is_offered(
    api: Live, offered: list[Any] | None, chosen: str | None
) -> None:
    async with opened(api, subprotocols=offered) as socket:
        assert socket.connection.subprotocol == chosen
        assert not socket.connection.protocol.extensions, (
            "no compression: a megabyte of it can unpack to half a gigabyte"
        )


async def test_a_client_that_offers_other_subprotocols_only_gets_400_and_is_told_which(api: Live) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(api.socket_url, subprotocols=["graphql-ws"])  # type: ignore[list-item]
    response = refusal.value.response
    assert response.status_code == 400
    problem = json.loads(response.body or b"")
    assert problem["code"] == "unknown_subprotocol"
    assert "runstone.v1" in problem["remedy"]


async def test_a_socket_elsewhere_is_refused_before_it_is_accepted(api: Live) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(api.socket_url.replace("/v1/ws", "/v1/threads"))
    assert refusal.value.response.status_code == 404
    assert json.loads(refusal.value.response.body or b"")["remedy"] == "It is at /v1/ws."


# --- subscriptions ------------------------------------------------------------


async def test_a_subscription_shows_the_bytes_of_the_log_in_few_frames_then_goes_on_live(api: Live) -> None:
    thread_id = await api.thread()
    await api.finished("tokens", {"count": 8000}, thread_id)
    log = await api.log(thread_id)
    async with opened(api) as socket:
        answer = await socket.subscribe(thread_id)
        assert answer["head"] == len(log)
        await socket.until("caught_up", thread_id=thread_id)
        assert_same(socket.events[thread_id], log)
        assert socket.caught_up[thread_id] == [len(log)]
        assert len(socket.frame_bytes) <= 2 + sum(map(len, log)) // (100 * 1024), "coalesced"
        run = await api.start("tokens", {"count": 50, "delay_s": 0.001}, thread_id)
        await socket.until_event("agent_completed", run["run_id"])
        assert_same(socket.events[thread_id], await api.log(thread_id))
        assert socket.caught_up[thread_id] == [len(log)]


async def test_frames_of_large_events_stay_below_a_mebibyte_and_reach_a_client_with_default_limits(api: Live) -> None:
    thread_id = await api.thread()
    for letter in "abc":
        await api.finished("echo", letter * 600_000, thread_id)
    async with opened(api) as socket:  # `websockets` refuses frames over 1 MiB by default
        await socket.subscribe(thread_id)
        await socket.until("caught_up", thread_id=thread_id)
    assert_same(socket.events[thread_id], await api.log(thread_id))
    assert 600_000 < max(socket.frame_bytes) < MIB


async def test_several_threads_share_a_socket_and_none_holds_back_another(api: Live) -> None:
    threads = [await api.thread() for _ in range(5)]
    runs = [await api.start("tokens", {"count": 300, "delay_s": 0.001}, thread_id) for thread_id in threads]
    async with opened(api) as socket:
        for thread_id in threads:
            await socket.subscribe(thread_id)
        pending = {run["run_id"] for run in runs}
        while pending:
            for event in (await socket.until("events"))["events"]:
                if event["type"] == "agent_completed":
                    pending.discard(event["run_id"])
        for thread_id in threads:
            assert_same(socket.events[thread_id], await api.log(thread_id))


async def test_after_the_ok_of_a_second_subscribe_only_events_after_its_cursor_come(api: Live) -> None:
    thread_id = await api.thread()
    await api.finished("tokens", {"count": 20_000}, thread_id)
    log = await api.log(thread_id)
    after = 0
    async with opened(api) as socket:
        for number in range(20):
            after = (number * 37) % len(log)
            await socket.subscribe(thread_id, after)  # the first pages of the one before may be under way
            socket.events[thread_id], socket.caught_up[thread_id] = [], []
            if number % 3 == 0:
                frame = await socket.receive()
                first = frame["events"][0]["seq"] if frame["op"] == "events" else after + 1
                assert first == after + 1
        await socket.until("caught_up", thread_id=thread_id)
        assert_same(socket.events[thread_id], log[after:])
        assert socket.caught_up[thread_id] == [len(log)]


async def test_a_subscribe_at_the_head_is_caught_up_at_once(api: Live) -> None:
    thread_id = await api.thread()
    async with opened(api) as socket:
        assert (await socket.subscribe(thread_id, 1))["head"] == 1
        assert await socket.receive() == {"op": "caught_up", "thread_id": thread_id, "head": 1}


async def test_after_unsubscribe_nothing_of_the_thread_comes(api: Live) -> None:
    thread_id, other = await api.thread(), await api.thread()
    async with opened(api) as socket:
        await socket.subscribe(thread_id)
        await socket.send(op="unsubscribe", id=7, thread_id=thread_id)
        await socket.until("ok", id=7)
        socket.events.clear()
        await socket.subscribe(other)
        await api.finished("echo", "unheard", thread_id)
        heard = await api.finished("echo", "heard", other)
        await socket.until_event("agent_completed", heard["run_id"])
        assert set(socket.events) == {other}
        await socket.send(op="unsubscribe", id=8, thread_id=UNKNOWN_THREAD)
        await socket.until("ok", id=8)


async def test_filters_of_types_and_runs_never_hold_back_terminal_events(api: Live) -> None:
    thread_id = await api.thread()
    first = await api.finished("tokens", {"count": 30}, thread_id)
    second = await api.finished("fails", "no", thread_id)
    async with opened(api) as socket:
        await socket.subscribe(thread_id, types=["message_started"])
        assert (await socket.until("caught_up"))["head"] == second["last_seq"]
        types = [json.loads(wire)["type"] for wire in socket.events[thread_id]]
        assert types == ["message_started", "agent_completed", "message_started", "agent_failed"]
        socket.events.clear()
        await socket.subscribe(thread_id, types=["usage"], run_id=first["run_id"])
        assert (await socket.until("caught_up"))["head"] == second["last_seq"]
        assert [json.loads(wire)["type"] for wire in socket.events[thread_id]] == ["agent_completed"]


async def test_a_deleted_thread_ends_its_subscription_and_the_socket_stays(api: Live) -> None:
    thread_id = await api.thread()
    run = await api.start("sleeper", 3600, thread_id)
    async with opened(api) as socket:
        await socket.subscribe(thread_id, types=["message_completed"])
        await socket.until_event("message_completed", run["run_id"])
        assert (await api.http.delete(f"/v1/threads/{thread_id}")).status_code == 204
        await socket.until_event("agent_cancelled", run["run_id"])
        error = await socket.until("error")
        assert (error["id"], error["thread_id"], error["code"], error["status"]) == (None, thread_id, "not_found", 404)
        await socket.send(op="subscribe", id=9, thread_id=thread_id)
        again = await socket.until("error", id=9)
        assert again["code"] == "not_found"
        await socket.subscribe(await api.thread())


# --- signs of life ------------------------------------------------------------


async def test_a_ping_is_answered_and_silence_ends_in_a_pong_also_while_all_is_filtered_out(api: Live) -> None:
    run = await api.start("tokens", {"count": 4000, "delay_s": 0.001})
    async with opened(api) as socket:
        await socket.send(op="ping", id="me")
        assert await socket.receive() == {"op": "pong", "id": "me"}
        await socket.subscribe(run["thread_id"], types=["usage"])
        await socket.until("caught_up")
        loop = asyncio.get_running_loop()
        began = loop.time()
        for _ in range(2):
            assert json.loads(await asyncio.wait_for(socket.connection.recv(), SOON_S)) == {"op": "pong"}
        assert HEARTBEAT_S * 1.5 <= loop.time() - began < HEARTBEAT_S * 10
    status = (await api.http.get(f"/v1/runs/{run['run_id']}")).json()["status"]
    assert status == "running", "else the silence was no work of the filter"
    await api.http.post(f"/v1/runs/{run['run_id']}/cancel")


# --- what is refused, and how ------------------------------------------------------------


async def test_refused_subscribes_are_error_frames_and_leave_the_subscription_that_was_there(api: Live) -> None:
    thread_id = await api.thread()
    async with opened(api) as socket:
        await socket.subscribe(thread_id)
        await socket.until("caught_up")
        refused: list[tuple[dict[str, object], str]] = [
            ({"thread_id": UNKNOWN_THREAD}, "not_found"),
            ({"thread_id": thread_id, "after": 99}, "cursor_ahead"),
            ({"thread_id": thread_id, "after": -1}, "invalid"),
            ({"thread_id": thread_id, "run_id": "run_x"}, "not_found"),
            ({"thread_id": thread_id, "types": ["nothing"]}, "invalid"),
            ({"thread_id": thread_id, "generation": "another"}, "generation_changed"),
            ({"thread_id": "\x00"}, "not_found"),
        ]
        for number, (frame, code) in enumerate(refused):
            await socket.send(op="subscribe", id=number, **frame)
            error = await socket.until("error", id=number)
            assert error["code"] == code
            assert all(error[name] for name in ("type", "title", "status", "detail", "remedy"))
        await socket.send(op="dance", id="x")
        assert (await socket.until("error", id="x"))["code"] == "invalid"
        run = await api.start("echo", "still here", thread_id)
        await socket.until_event("agent_completed", run["run_id"])
        assert_same(socket.events[thread_id], await api.log(thread_id))


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("no json", 4400),
        ("[]", 4400),
        ("{}", 4400),
        ('{"op":3}', 4400),
        ("", 4400),
        (b'{"op":"ping"}', 4400),
        (b"", 4400),
        ("[" * 60_000, 4400),
        ('{"op":"ping","x":"' + "x" * 70_000 + '"}', 4413),
    ],
    ids=["text", "array", "no-op", "op-number", "empty", "binary", "empty-binary", "deep", "70KB"],
)
async def test_what_is_no_frame_closes_after_an_error_frame_without_an_id(
    api: Live, message: str | bytes, code: int
) -> None:
    async with opened(api) as socket:
        await socket.connection.send(message)
        error = await socket.receive()
        assert (error["op"], error["id"]) == ("error", None)
        assert error["remedy"]
        assert await socket.closed() == code


async def test_a_frame_over_128_kib_is_1009_whole_or_in_pieces(api: Live) -> None:
    async with opened(api) as socket:
        await socket.connection.send("x" * (128 * 1024 + 1))
        assert await socket.closed() == 1009
    async with opened(api) as socket:
        with contextlib.suppress(ConnectionClosed):  # which may come while it still sends
            await socket.connection.send(["x" * 1024] * 1000)
        assert await socket.closed() == 1009


async def test_text_that_is_not_utf_8_is_1007_and_no_traceback(api: Live, serving: ServerProcess) -> None:
    async with opened(api) as socket:
        await socket.connection.send(b'{"op":"\xff"}', text=True)
        assert await socket.closed() == 1007
    assert "Traceback" not in serving.log.read_text()


async def test_no_frame_right_behind_the_handshake_is_400_and_no_traceback(api: Live, serving: ServerProcess) -> None:
    head = f"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1:{serving.port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    key = "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", serving.port)
    writer.write((head + key).encode() + b"\xff\xff\xff\xff")
    assert (await asyncio.wait_for(reader.read(), SOON_S)).startswith(b"HTTP/1.1 400 ")
    writer.close()
    assert "Traceback" not in serving.log.read_text()


async def test_one_subscription_too_many_is_4429(api: Live) -> None:
    threads = await asyncio.gather(*(api.thread() for _ in range(101)))
    async with opened(api) as socket:
        for thread_id in threads[:100]:
            await socket.subscribe(thread_id, 1)
        await socket.subscribe(threads[0], 1)
        await socket.send(op="subscribe", id="more", thread_id=threads[100])
        assert (await socket.until("error", id="more"))["code"] == "limited"
        assert await socket.closed() == 4429


async def test_a_client_that_closes_gets_its_own_code_back(api: Live) -> None:
    async with opened(api) as socket:
        await socket.subscribe(await api.thread())
        await socket.connection.close(1000)
        assert socket.connection.close_code == 1000


async def test_sigterm_closes_with_1012_and_the_cursor_is_good_afterwards(server: ServerProcess) -> None:
    server.start(RUNSTONE_GRACE_S="0.2")
    async with live(server) as api:
        run = await api.start("tokens", {"count": 100_000, "delay_s": 0.001})
        thread_id = run["thread_id"]
        async with opened(api) as socket, opened(api) as idle:
            await socket.subscribe(thread_id)
            while len(socket.events.get(thread_id, ())) < 20:
                await socket.receive()
            stopping = asyncio.create_task(asyncio.to_thread(server.terminate))
            assert [await one.closed() for one in (socket, idle)] == [1012, 1012]
            assert await stopping == 0
    assert "Traceback" not in server.log.read_text()
    server.start()
    seen = socket.events[thread_id]
    async with live(server) as api, opened(api) as again:
        await again.subscribe(thread_id, len(seen))
        await again.until("caught_up")
        found = seen + again.events[thread_id]
        assert_same(found, (await api.log(thread_id))[: len(found)])  # the run goes on meanwhile


async def test_many_sockets_that_vanish_without_a_word_leave_nothing_behind(api: Live) -> None:
    thread_id = await api.thread()
    run = await api.start("tokens", {"count": 2000, "delay_s": 0.001}, thread_id)
    for _ in range(30):
        async with opened(api) as socket:
            await socket.subscribe(thread_id)
            raw = socket.connection.transport.get_extra_info("socket")
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            socket.connection.transport.abort()
    await api.ended(run)
    async with asyncio.timeout(SOON_S):
        while True:
            metrics = (await api.http.get("/metrics")).text
            if 'runstone_connections{protocol="ws"} 0.0' in metrics:
                break
