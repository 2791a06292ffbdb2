"""Server-Sent Events of a real server, byte by byte and through a public client."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import httpx
import httpx2
import pytest
from httpx_sse import ServerSentEvent, aconnect_sse

from runstone.limits import PAGE_ROWS_MAX
from tests.support.live import Live, assert_same, live
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio

HEARTBEAT_S = 0.3
SOON_S = 20.0  # what has not come by then never comes
STREAM = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("sse"))
    process.start(RUNSTONE_HEARTBEAT_S=str(HEARTBEAT_S))
    yield process
    process.kill()
    assert "Traceback" not in process.log.read_text()


@pytest.fixture
async def api(serving: ServerProcess) -> AsyncIterator[Live]:
    async with live(serving) as found:
        yield found


async def follow(
    url: str, *, last_event_id: str | None = None, **params: str | int
) -> AsyncGenerator[ServerSentEvent, None]:
    """The frames of a stream, through httpx-sse, until the server ends it."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    async with (
        asyncio.timeout(SOON_S),
        httpx.AsyncClient(timeout=SOON_S) as client,
        aconnect_sse(client, "GET", url, headers=headers, params=params) as source,
    ):
        assert source.response.status_code == 200, await source.response.aread()
        async for frame in source.aiter_sse():
            yield frame


async def until_caught_up(url: str, **how: Any) -> tuple[list[ServerSentEvent], int]:
    """The log events up to `caught_up`, and the head that it names."""
    events: list[ServerSentEvent] = []
    async with aclosing(follow(url, **how)) as frames:
        async for frame in frames:
            if frame.event == "caught_up":
                return events, json.loads(frame.data)["head"]
            events.append(frame)
    raise AssertionError("the stream ended before it had caught up")


async def raw(api: Live, path: str, until: bytes, **params: str | int) -> tuple[httpx2.Response, bytes]:
    """The very bytes of a stream, up to and with `until`."""
    received = b""
    async with asyncio.timeout(SOON_S), api.http.stream("GET", path, headers=STREAM, params=params) as response:
        async for chunk in response.aiter_raw():
            received += chunk
            if until in received:
                break
    return response, received


async def test_every_log_event_is_an_id_line_and_a_data_line_in_lf_with_the_bytes_of_the_log(api: Live) -> None:
    run = await api.finished("thinker", "why?")
    path = f"/v1/threads/{run['thread_id']}/events"
    response, received = await raw(api, path, b"event: caught_up\ndata: ")
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    log = await api.log(run["thread_id"])
    expected = b"".join(b"id: %d\ndata: %b\n\n" % (seq, wire) for seq, wire in enumerate(log, start=1))
    assert received.startswith(expected)
    assert received[len(expected) :].startswith(b'event: caught_up\ndata: {"head":%d}\n\n' % len(log))
    assert b"\r" not in received


async def test_a_public_client_sees_all_log_events_as_messages_and_caught_up_once(
    api: Live, serving: ServerProcess
) -> None:
    thread_id = await api.thread()
    await api.finished("tokens", {"count": 300}, thread_id)
    frames: list[ServerSentEvent] = []
    async with aclosing(follow(f"{serving.url}/v1/threads/{thread_id}/events")) as stream:
        async for frame in stream:
            frames.append(frame)
            if frame.event == "caught_up":
                await api.start("tokens", {"count": 50, "delay_s": 0.001}, thread_id)
            if sum('"agent_completed"' in frame.data for frame in frames) == 2:
                break
    controls = [frame for frame in frames if frame.event != "message"]
    assert [frame.event for frame in controls] == ["caught_up"]
    at = frames.index(controls[0])
    head = json.loads(controls[0].data)["head"]
    assert frames[at - 1].id == str(head)
    events = [frame for frame in frames if frame.event == "message"]
    assert_same([frame.data.encode() for frame in events], await api.log(thread_id))
    assert [frame.id for frame in events] == [str(seq) for seq in range(1, len(events) + 1)]


async def test_characters_that_some_clients_take_for_line_ends_arrive_as_they_were_said(
    api: Live, serving: ServerProcess
) -> None:
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh\ni\x00j\ufeffk💥"
    run = await api.finished("tokens", {"count": 1, "text": text})
    events, _ = await until_caught_up(f"{serving.url}/v1/threads/{run['thread_id']}/events")
    said = [json.loads(frame.data)["data"]["delta"] for frame in events if '"message_delta"' in frame.data]
    assert "".join(said) == f"{text}0 "
    assert_same([frame.data.encode() for frame in events], await api.log(run["thread_id"]))


async def test_a_stream_goes_on_from_its_cursor_and_last_event_id_wins_over_after(
    api: Live, serving: ServerProcess
) -> None:
    run = await api.finished("tokens", {"count": 40})
    url = f"{serving.url}/v1/threads/{run['thread_id']}/events"
    log = await api.log(run["thread_id"])
    for how, start in (
        ({}, 0),
        ({"after": 3}, 3),
        ({"last_event_id": "5", "after": 3}, 5),
        ({"last_event_id": "0", "after": 3}, 0),
        ({"last_event_id": str(len(log))}, len(log)),
        ({"last_event_id": "", "after": 2}, 2),
    ):
        events, head = await until_caught_up(url, **how)
        assert_same([frame.data.encode() for frame in events], log[start:])
        assert head == len(log)


async def test_a_runs_stream_ends_after_its_terminal_event_while_its_thread_goes_on(
    api: Live, serving: ServerProcess
) -> None:
    thread_id = await api.thread()
    run = await api.start("tokens", {"count": 100, "delay_s": 0.002}, thread_id)
    frames = [frame async for frame in follow(f"{serving.url}/v1/runs/{run['run_id']}/events")]
    ended = await api.ended(run)
    await api.finished("tokens", {"count": 14_000}, thread_id)
    assert len(await api.log(thread_id)) > ended["last_seq"] + PAGE_ROWS_MAX, "the head is more than a page away"
    again = [frame async for frame in follow(f"{serving.url}/v1/runs/{run['run_id']}/events")]
    wanted = [(await api.log(thread_id))[seq - 1] for seq in range(ended["first_seq"], ended["last_seq"] + 1)]
    for seen in (frames, again):
        assert_same([frame.data.encode() for frame in seen if frame.event == "message"], wanted)
        assert [frame.event for frame in seen if frame.event != "message"] == ["caught_up"]
        assert json.loads([frame for frame in seen if frame.event == "message"][-1].data)["type"] == "agent_completed"


async def test_a_finished_run_with_nothing_left_is_204_and_with_something_left_is_not(api: Live) -> None:
    thread_id = await api.thread()
    run = await api.finished("echo", "one two", thread_id)
    await api.finished("echo", "three", thread_id)
    path = f"/v1/runs/{run['run_id']}/events"
    for last in (run["last_seq"], run["last_seq"] + 1):
        nothing = await api.http.get(path, headers=STREAM | {"last-event-id": str(last)})
        assert (nothing.status_code, nothing.content) == (204, b"")
    before = await api.http.get(path, headers=STREAM | {"last-event-id": str(run["last_seq"] - 1)})
    assert before.status_code == 200
    assert before.text.count("\ndata: {") == 2
    assert '"agent_completed"' in before.text
    head = len(await api.log(thread_id))
    ahead = await api.http.get(path, headers=STREAM | {"last-event-id": str(head + 1)})
    assert (ahead.status_code, ahead.json()["code"]) == (409, "cursor_ahead")


async def test_filters_never_hold_back_terminal_events(api: Live, serving: ServerProcess) -> None:
    thread_id = await api.thread()
    done = await api.finished("tokens", {"count": 30}, thread_id)
    failed = await api.finished("fails", "no", thread_id)
    url = f"{serving.url}/v1/threads/{thread_id}/events"
    events, head = await until_caught_up(url, types="message_started")
    seen = [json.loads(frame.data) for frame in events]
    assert [event["type"] for event in seen] == [
        "message_started",
        "agent_completed",
        "message_started",
        "agent_failed",
    ]
    seqs = [event["seq"] for event in seen]
    assert seqs == sorted(set(seqs))
    assert head == failed["last_seq"]
    of_run, head = await until_caught_up(url, types="usage", run_id=done["run_id"])
    assert [json.loads(frame.data)["type"] for frame in of_run] == ["agent_completed"]
    assert head == failed["last_seq"], "a cursor beyond what was filtered out"
    alone = [frame async for frame in follow(f"{serving.url}/v1/runs/{failed['run_id']}/events", types="usage")]
    assert [json.loads(frame.data).get("type") for frame in alone] == ["agent_failed", None]


async def test_a_comment_comes_after_silence_also_while_what_happens_is_filtered_out(api: Live) -> None:
    run = await api.start("tokens", {"count": 4000, "delay_s": 0.001})
    loop = asyncio.get_running_loop()
    began = loop.time()
    path = f"/v1/threads/{run['thread_id']}/events"
    _, received = await raw(api, path, b": keep-alive\n\n: keep-alive\n\n", types="usage")
    assert HEARTBEAT_S * 2 <= loop.time() - began < HEARTBEAT_S * 10
    assert received.startswith(b"event: caught_up\n")
    status = (await api.http.get(f"/v1/runs/{run['run_id']}")).json()["status"]
    assert status == "running", "else the silence was no work of the filter"
    assert (await api.http.post(f"/v1/runs/{run['run_id']}/cancel")).status_code == 202


async def test_a_stream_of_a_deleted_thread_ends_with_its_last_event_and_closing(
    api: Live, serving: ServerProcess
) -> None:
    thread_id = await api.thread()
    run = await api.start("sleeper", 3600, thread_id)
    frames: list[ServerSentEvent] = []
    deleting: asyncio.Task[httpx2.Response] | None = None
    async for frame in follow(f"{serving.url}/v1/threads/{thread_id}/events", types="message_completed"):
        frames.append(frame)
        if frame.event == "message" and deleting is None:
            deleting = asyncio.create_task(api.http.delete(f"/v1/threads/{thread_id}"))
    assert deleting is not None
    assert (await deleting).status_code == 204
    assert (frames[-1].event, json.loads(frames[-1].data)) == ("closing", {"reason": "deleted"})
    terminal = [json.loads(frame.data) for frame in frames if '"agent_cancelled"' in frame.data]
    assert [event["run_id"] for event in terminal] == [run["run_id"]]


async def test_sigterm_says_closing_and_ends_the_streams_in_order(server: ServerProcess) -> None:
    server.start(RUNSTONE_GRACE_S="0.5")
    async with live(server) as api:
        run = await api.start("tokens", {"count": 100_000, "delay_s": 0.001})
        url = f"{server.url}/v1/threads/{run['thread_id']}/events"
        frames: list[ServerSentEvent] = []
        stopping: asyncio.Task[int] | None = None
        async for frame in follow(url):
            frames.append(frame)
            if len(frames) == 20:
                stopping = asyncio.create_task(asyncio.to_thread(server.terminate))
        assert stopping is not None
        assert await stopping == 0
    assert (frames[-1].event, json.loads(frames[-1].data)) == ("closing", {"reason": "restarting"})
    seqs = [int(frame.id) for frame in frames if frame.event == "message"]
    assert seqs == list(range(1, len(seqs) + 1))
    assert "Traceback" not in server.log.read_text()
    server.start()
    rest, head = await until_caught_up(url, last_event_id=str(seqs[-1]))
    assert [int(frame.id) for frame in rest] == list(range(seqs[-1] + 1, head + 1))


async def test_one_stream_too_many_is_429_and_a_place_is_free_when_one_has_ended(server: ServerProcess) -> None:
    server.start(RUNSTONE_SOCKETS_A_USER="2")
    async with live(server) as api:
        thread_id = await api.thread()
        path = f"/v1/threads/{thread_id}/events"
        async with api.http.stream("GET", path, headers=STREAM):
            async with api.http.stream("GET", path, headers=STREAM):
                third = await api.http.get(path, headers=STREAM)
                assert (third.status_code, third.json()["code"]) == (429, "limited")
                assert third.headers["retry-after"]
                assert (await api.http.get(path)).status_code == 200, "a page is no stream"
            async with asyncio.timeout(SOON_S):
                while True:  # until the server has seen the end of the second
                    async with api.http.stream("GET", path, headers=STREAM) as fourth:
                        if fourth.status_code == 200:
                            break
    assert "Traceback" not in server.log.read_text()
