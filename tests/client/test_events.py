"""Whatever the network and the server do, a client yields every event once and in order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, urlsplit

import pytest

from runstone.client import Event, EventStream
from runstone.client import http as client_http
from runstone.client.http import Http
from runstone.client.stream import FAULTS_MAX, Backoff
from runstone.errors import CursorAhead, NotFound, RunstoneError

pytestmark = pytest.mark.anyio

THREAD, RUN = "thr_1", "run_1"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def event(seq: int, type: str = "message_delta", run_id: str = RUN) -> bytes:
    said = {"delta": "🗿" * (seq % 7), "seq": seq}
    envelope = {"seq": seq, "thread_id": THREAD, "run_id": run_id, "attempt": 1, "user_id": "alice"}
    envelope |= {"type": type, "time": "2026-11-20T08:15:30.123456Z", "data": said}
    return f"id: {seq}\ndata: {json.dumps(envelope, ensure_ascii=False)}\n\n".encode()


def control(name: str, **data: object) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


class Answer:
    """What the server does with one connection."""

    def __init__(
        self,
        body: bytes = b"",
        *,
        status: str = "200 OK",
        media_type: str = "text/event-stream",
        cut: bool = False,
        reset: bool = False,
        silent: bool = False,
    ) -> None:
        self.body = body
        self.status = status
        self.media_type = media_type
        self.cut = cut  # the connection ends before the body does
        self.reset = reset  # it breaks, and what the client has not read yet is lost
        self.silent = silent  # it stays, and nothing more comes


NO_CONTENT = Answer(status="204 No Content")
BUSY = Answer(status="503 Service Unavailable", media_type="text/plain")


def refusal(status: str, code: str) -> Answer:
    problem = {"title": code, "code": code, "detail": "No.", "remedy": "Do not."}
    return Answer(json.dumps(problem).encode(), status=status, media_type="application/problem+json")


class Server:
    """A real server on a real socket, which answers the n-th request for events after N as it is told."""

    def __init__(self, answer: Callable[[int, int], Answer]) -> None:
        self._answer = answer
        self.requests: list[str] = []

    @property
    def afters(self) -> list[int]:
        return [int(parse_qs(urlsplit(target).query)["after"][0]) for target in self.requests]

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            self.requests.append(request.split(b" ")[1].decode())
            answer = self._answer(len(self.requests), self.afters[-1])
            head = [f"HTTP/1.1 {answer.status}", f"content-type: {answer.media_type}", "connection: close"]
            head += [f"content-length: {len(answer.body) + 1}"] if answer.cut else []
            writer.write("\r\n".join([*head, "", ""]).encode())
            await writer.drain()
            for at in range(0, len(answer.body), 1000):
                writer.write(answer.body[at : at + 1000])
                await writer.drain()
            if answer.reset:
                writer.transport.abort()
            if answer.silent:
                await reader.read()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Callable[[int, int], Answer]) -> AsyncIterator[tuple[Server, Http]]:
    server = Server(answer)
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    http = Http(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", None, None)
    try:
        yield server, http
    finally:
        await http.close()
        listening.close()


def follow(http: Http, *, after: int = 0, types: list[str] | None = None, run_id: str | None = None) -> EventStream:
    backoff = Backoff(first_s=0.001, max_s=0.01)
    path = f"/v1/threads/{THREAD}/events" if run_id is None else f"/v1/runs/{run_id}/events"
    return EventStream(http, path, after=after, types=types, run_id=run_id, backoff=backoff)


async def take(stream: EventStream, count: int) -> list[int]:
    async with stream:
        return [(await anext(stream)).seq for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
async def test_a_client_that_is_cut_at_random_yields_every_event_once_and_in_order(seed: int) -> None:
    dice = random.Random(seed)
    last = 200

    def answer(nth: int, after: int) -> Answer:
        sent = [event(seq, "agent_completed" if seq == last else "x") for seq in range(after + 1, last + 1)]
        body = b"".join(sent)
        repeats = b"".join(event(seq) for seq in range(max(after - 3, 1), after + 1))
        cut = dice.randrange(len(body)) // dice.choice([1, 10])
        return dice.choice(
            [
                Answer(body[:cut], cut=True),  # anywhere: within a frame, within a character
                Answer(body[:cut], reset=True),
                Answer(body[:cut]),
                Answer(repeats + body[:cut], cut=True),
                Answer(sent[0] + control("closing", reason="restarting") + b"data: never read"),
                Answer(b": keep-alive\n\n", cut=True),
                BUSY,
                Answer(status="502 Bad Gateway", reset=True),
            ]
        )

    async with serving(answer) as (server, http):
        seqs = [event.seq async for event in follow(http, run_id=RUN)]
    assert seqs == list(range(1, last + 1))
    assert len(server.requests) > 2


async def test_a_stream_goes_on_where_it_was() -> None:
    async with serving(lambda nth, after: Answer(event(after + 1) + event(after + 2))) as (server, http):
        assert await take(follow(http, after=5), 6) == [6, 7, 8, 9, 10, 11]
    assert server.afters == [5, 7, 9]


async def test_an_event_that_is_missing_is_asked_for_again() -> None:
    def answer(nth: int, after: int) -> Answer:
        return Answer(event(1) + event(3)) if nth == 1 else Answer(event(after + 1) + event(after + 2))

    async with serving(answer) as (server, http):
        assert await take(follow(http), 3) == [1, 2, 3]
    assert server.afters == [0, 1]


async def test_events_missing_before_caught_up_are_asked_for_again() -> None:
    def answer(nth: int, after: int) -> Answer:
        if nth == 1:
            return Answer(event(1) + control("caught_up", head=2), silent=True)
        return Answer(event(after + 1), silent=True)

    async with serving(answer) as (_, http):
        assert await take(follow(http), 2) == [1, 2]


async def test_a_server_that_keeps_losing_an_event_is_an_error_and_not_a_loop() -> None:
    async with serving(lambda nth, after: Answer(event(after + 2))) as (server, http):
        with pytest.raises(RunstoneError, match="After event 0 came 2"):
            await take(follow(http), 1)
    assert len(server.requests) == FAULTS_MAX


async def test_a_frame_that_is_not_an_event_is_never_yielded() -> None:
    def answer(nth: int, after: int) -> Answer:
        return Answer(b"data: {\n\n") if nth == 1 else Answer(event(1))

    async with serving(answer) as (_, http):
        assert await take(follow(http), 1) == [1]


async def test_control_frames_of_a_newer_server_are_skipped() -> None:
    async with serving(lambda nth, after: Answer(control("weather", sunny=True) + event(1))) as (_, http):
        assert await take(follow(http), 1) == [1]


async def test_a_runs_stream_ends_after_its_own_end_and_not_after_a_childs() -> None:
    body = event(1) + event(4, "agent_completed", "run_child") + event(6) + event(7, "agent_failed") + event(8)
    async with serving(lambda nth, after: Answer(body, silent=True)) as (server, http):
        assert [event.seq async for event in follow(http, run_id=RUN)] == [1, 4, 6, 7]
    assert len(server.requests) == 1


async def test_a_stream_with_nothing_left_ends() -> None:
    async with serving(lambda nth, after: NO_CONTENT) as (_, http):
        assert [event async for event in follow(http, after=7, run_id=RUN)] == []


async def test_a_stream_whose_last_event_was_read_before_the_cut_ends_at_the_next_try() -> None:
    def answer(nth: int, after: int) -> Answer:
        return Answer(event(1), cut=True) if nth == 1 else NO_CONTENT

    async with serving(answer) as (server, http):
        assert [event.seq async for event in follow(http, run_id=RUN)] == [1]
    assert server.afters == [0, 1]


async def test_a_deleted_thread_is_not_found_and_not_asked_for_again() -> None:
    body = event(1, "thread_deleted") + control("closing", reason="deleted")
    async with serving(lambda nth, after: Answer(body)) as (server, http):
        stream = follow(http)
        assert (await anext(stream)).type == "thread_deleted"
        with pytest.raises(NotFound):
            await anext(stream)
    assert len(server.requests) == 1


async def test_what_the_server_refuses_is_raised_and_not_tried_again() -> None:
    async with serving(lambda nth, after: refusal("409 Conflict", "cursor_ahead")) as (server, http):
        with pytest.raises(CursorAhead) as caught:
            await take(follow(http, after=99), 1)
    assert (caught.value.detail, caught.value.remedy) == ("No.", "Do not.")
    assert len(server.requests) == 1


async def test_an_answer_that_is_no_event_stream_is_an_error() -> None:
    async with serving(lambda nth, after: Answer(b"<html>", media_type="text/html")) as (server, http):
        with pytest.raises(RunstoneError, match="does not answer as a Runstone server"):
            await take(follow(http), 1)
    assert len(server.requests) == 1


async def test_a_connection_that_says_nothing_for_three_heartbeats_counts_as_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client_http, "SILENCE_S", 0.05)

    def answer(nth: int, after: int) -> Answer:
        return Answer(event(after + 1), silent=True)

    async with serving(answer) as (server, http):
        assert await take(follow(http), 3) == [1, 2, 3]
    assert server.afters == [0, 1, 2]


async def test_caught_up_is_known_once_all_that_there_was_has_been_yielded() -> None:
    body = event(1) + event(2) + control("caught_up", head=2) + event(3)
    async with serving(lambda nth, after: Answer(body, silent=True)) as (_, http), follow(http) as stream:
        assert (await anext(stream)).seq == 1
        assert not stream.caught_up.is_set()
        assert [(await anext(stream)).seq for _ in range(2)] == [2, 3]
        assert stream.caught_up.is_set()


async def test_who_wants_to_hear_of_it_is_called_when_caught_up_before_any_later_event_and_once() -> None:
    heard: list[int] = []
    seen: list[int] = []

    def answer(nth: int, after: int) -> Answer:
        return Answer(event(after + 1) + control("caught_up", head=after + 1) + event(after + 2))

    async with serving(answer) as (_, http), follow(http) as stream:
        stream.when_caught_up(lambda: heard.append(seen[-1]))
        async for one in stream:
            seen.append(one.seq)
            if len(seen) == 4:
                break
    assert seen == [1, 2, 3, 4]
    assert heard == [1]


async def test_a_filtered_stream_may_skip_and_resumes_after_what_was_filtered() -> None:
    def answer(nth: int, after: int) -> Answer:
        return Answer(event(3) + event(8) + control("caught_up", head=20)) if nth == 1 else Answer(event(25))

    async with serving(answer) as (server, http):
        assert await take(follow(http, types=["custom", "usage"]), 3) == [3, 8, 25]
    assert server.afters == [0, 20]
    assert parse_qs(urlsplit(server.requests[0]).query)["types"] == ["custom,usage"]


async def test_a_stream_says_whether_it_is_connected() -> None:
    async with serving(lambda nth, after: Answer(event(after + 1), silent=True)) as (_, http):
        stream = follow(http)
        connected = [stream.connected]
        await anext(stream)
        connected.append(stream.connected)
        await stream.aclose()
        connected.append(stream.connected)
        assert connected == [False, True, False]


def test_an_event_is_encoded_as_it_came() -> None:
    """Also where a microsecond is 0, a member is absent, or a number is no float."""
    wire = (
        b'{"seq":17,"thread_id":"thr_1","user_id":"alice","type":"custom","time":"2026-11-20T08:15:30.000000Z",'
        b'"data":{"name":"n","value":[1,1.0,"\xf0\x9f\x97\xbf",null,{"a":9007199254740993}]}}'
    )
    assert Event.decode(wire).encode() == wire


def test_pauses_double_up_to_a_bound_and_begin_again_after_success() -> None:
    backoff = Backoff(first_s=0.1, max_s=5.0, dice=lambda: 0.0)
    assert [round(backoff.next_s(), 1) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    backoff.reset()
    assert backoff.next_s() == 0.1
    assert Backoff(first_s=0.1, dice=lambda: 1.0).next_s() == 0.05
