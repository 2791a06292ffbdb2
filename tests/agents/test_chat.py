"""`chat` understands what OpenAI-compatible endpoints send, through the real SDK over a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone import Runstone
from runstone.agents import chat
from runstone.agents.chat import (
    Endpoint,
    Finished,
    Piece,
    Said,
    Thought,
    Turn,
    Used,
    answer,
    conversation,
    endpoint_of,
)
from runstone.errors import AgentError

KEY = "sk-very-secret-0123456789"


@dataclass
class FakeEndpoint:
    """A server that answers each completion with the next of `answers`: a status, and the body's pieces."""

    answers: list[tuple[int, list[bytes]]]
    models: list[str] = field(default_factory=lambda: ["model"])
    hang: bool = False  # after the pieces, instead of ending
    requests: list[dict[str, Any]] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    connections: list[asyncio.Task[None] | None] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(asyncio.current_task())
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            headers = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            if head.startswith("GET /v1/models "):
                data = [{"id": name, "object": "model"} for name in self.models]
                await self.send(writer, 200, "application/json", [json.dumps({"data": data}).encode()])
            else:
                self.requests.append({"body": json.loads(body), "headers": headers})
                status, pieces = self.answers.pop(0)
                kind = "text/event-stream" if status == 200 else "application/json"
                await self.send(writer, status, kind, pieces)
                if self.hang:
                    assert await reader.read() == b""  # the client hung up
                    self.gone.set()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def send(self, writer: asyncio.StreamWriter, status: int, kind: str, pieces: list[bytes]) -> None:
        writer.write(f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n".encode())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()


def chunk(**members) -> bytes:
    return (
        b"data: "
        + json.dumps({"id": "c", "model": "model-1", "object": "chat.completion.chunk"} | members).encode()
        + b"\n\n"
    )


def delta(finish_reason: str | None = None, **members) -> bytes:
    return chunk(choices=[{"index": 0, "delta": members, "finish_reason": finish_reason}])


DONE = b"data: [DONE]\n\n"
TURNS = [Turn("user", "hi")]


@contextlib.asynccontextmanager
async def listening(fake: FakeEndpoint, **settings):
    async with await asyncio.start_server(fake.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        try:
            yield Endpoint(f"http://127.0.0.1:{port}/v1", KEY, **{"model": "model"} | settings)
        finally:
            await asyncio.gather(*filter(None, fake.connections))


def ask(fake: FakeEndpoint, turns: list[Turn] = TURNS, **settings) -> list[Piece]:
    async def main():
        async with listening(fake, **settings) as endpoint:
            return [piece async for piece in answer(endpoint, turns)]

    return asyncio.run(main())


@pytest.fixture(autouse=True)
def no_waiting_between_retries(monkeypatch):
    monkeypatch.setattr(chat, "RETRIES_MAX", 0)


# --- the stream -----------------------------------------------------------------------------------


def test_text_reasoning_usage_and_end_come_in_order():
    usage = {
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 3},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    fake = FakeEndpoint(
        [
            (
                200,
                [
                    delta(role="assistant", content=""),
                    delta(reasoning_content="Hm"),
                    delta(reasoning="m."),
                    delta(content="Hello"),
                    delta(content=" é😀"),
                    delta(finish_reason="stop"),
                    chunk(choices=[], usage=usage),
                    DONE,
                ],
            )
        ]
    )
    assert ask(fake) == [
        Thought("Hm"),
        Thought("m."),
        Said("Hello"),
        Said(" é😀"),
        Used("model-1", 7, 5, 3, 2),
        Finished("stop"),
    ]
    (request,) = fake.requests
    assert request["headers"]["authorization"] == f"bearer {KEY}"
    assert request["body"] == {
        "model": "model",
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_stream_cut_into_single_bytes_is_understood():
    whole = delta(content="a") + delta(content="é😀", finish_reason="stop") + DONE
    fake = FakeEndpoint([(200, [bytes([byte]) for byte in whole])])
    assert ask(fake) == [Said("a"), Said("é😀"), Finished("stop")]


def test_reasoning_sent_under_both_names_is_thought_once():
    fake = FakeEndpoint([(200, [delta(reasoning="x", reasoning_content="x"), delta(finish_reason="stop"), DONE])])
    assert ask(fake) == [Thought("x"), Finished("stop")]


def test_an_endpoint_that_counts_along_is_counted_once():
    counts = [chunk(choices=[], usage={"prompt_tokens": 1, "completion_tokens": n}) for n in range(3)]
    pieces = ask(FakeEndpoint([(200, [*counts, delta(finish_reason="length"), DONE])]))
    assert pieces == [Used("model-1", 1, 2, None, None), Finished("length")]


def test_an_endpoint_that_does_not_know_stream_options_is_asked_without():
    refusal = json.dumps({"error": {"message": "unknown field: stream_options"}}).encode()
    fake = FakeEndpoint([(400, [refusal]), (200, [delta(content="ok", finish_reason="stop"), DONE])])
    assert ask(fake) == [Said("ok"), Finished("stop")]
    assert "stream_options" not in fake.requests[1]["body"]


def test_the_first_model_that_looks_like_one_for_chat_is_taken():
    fake = FakeEndpoint([(200, [delta(finish_reason="stop")])], models=["text-embedding-3", "Whisper-1", "qwen"])
    ask(fake, model=None)
    assert fake.requests[0]["body"]["model"] == "qwen"


def test_an_endpoint_without_a_chat_model_says_what_to_set():
    with pytest.raises(AgentError, match="Set OPENAI_MODEL"):
        ask(FakeEndpoint([], models=["tts-1"]), model=None)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_a_cancel_or_close_closes_the_http_stream(how):
    async def main():
        fake = FakeEndpoint([(200, [delta(content="a")])], hang=True)
        async with listening(fake) as endpoint:
            first = asyncio.Event()

            async def read():
                async with contextlib.aclosing(answer(endpoint, TURNS)) as pieces:
                    async for _ in pieces:
                        first.set()
                        if how == "close":
                            return

            task = asyncio.create_task(read())
            await first.wait()
            if how == "cancel":
                task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() == (how == "cancel")
            await asyncio.wait_for(fake.gone.wait(), 5)

    asyncio.run(main())


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "says", "retryable"),
    [
        (401, "Check OPENAI_API_KEY", False),
        (403, "Check OPENAI_API_KEY", False),
        (404, "Check OPENAI_BASE_URL and OPENAI_MODEL", False),
        (422, "refused the request", False),
        (429, "Try again later", True),
        (503, "Try again later", True),
    ],
)
def test_each_refusal_says_what_to_do_without_the_key(status, says, retryable):
    echo = json.dumps({"error": {"message": f"wrong key {KEY}\n"}}).encode()
    with pytest.raises(AgentError, match=says) as caught:
        ask(FakeEndpoint([(status, [echo])]))
    assert caught.value.retryable is retryable
    assert KEY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_an_error_in_the_middle_of_a_stream_keeps_what_was_said():
    error = b'data: {"error": {"message": "out of memory"}}\n\n'
    assert heard(FakeEndpoint([(200, [delta(content="so far"), error])])) == (
        [Said("so far")],
        "out of memory",
    )


def test_a_stream_that_ends_in_the_middle_is_an_error():
    assert heard(FakeEndpoint([(200, [delta(content="so far")])])) == ([Said("so far")], "in the middle")


@pytest.mark.parametrize(
    "line", [b"data: {nope\n\n", b"data: \xff\xff\n\n", b"data: [1]\n\n", b"data: 1\n\n", b"data: \n\n"]
)
def test_what_is_no_chat_completion_is_an_error(line):
    pieces, error = heard(FakeEndpoint([(200, [delta(content="so far"), line])]))
    assert pieces == [Said("so far")]
    assert error


def heard(fake: FakeEndpoint) -> tuple[list[Piece], str]:
    """The pieces that came before the error, and the known part of what it says."""

    pieces: list[Piece] = []

    async def main():
        async with listening(fake) as endpoint:
            async for piece in answer(endpoint, TURNS):
                pieces.append(piece)  # noqa: PERF401 - kept when the next one fails

    with pytest.raises(AgentError) as caught:
        asyncio.run(main())
    said = str(caught.value)
    return pieces, next((part for part in ("out of memory", "in the middle") if part in said), said)


def test_an_endpoint_that_is_not_there_says_so():
    async def main():
        async with listening(FakeEndpoint([])) as endpoint:
            pass
        [_ async for _ in answer(endpoint, TURNS)]

    with pytest.raises(AgentError, match="that the endpoint is up"):
        asyncio.run(main())


def test_an_endpoint_that_falls_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(chat, "SILENCE_S", 0.2)
    with pytest.raises(AgentError, match="silent") as caught:
        ask(FakeEndpoint([(200, [delta(content="a")])], hang=True))
    assert caught.value.retryable


def test_a_missing_sdk_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(AgentError, match=r"pip install 'runstone\[openai\]'"):
        ask(FakeEndpoint([]))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "content", "reasoning", "usage", "prompt_tokens", "finish_reason"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(value=JSON)
def test_no_chunk_makes_the_reader_fail(value):
    from openai.types.chat import ChatCompletionChunk

    built = ChatCompletionChunk.construct(**value) if isinstance(value, dict) else value
    list(chat.pieces_of(built))


# --- settings and history -------------------------------------------------------------------------


def test_without_settings_the_variables_are_named():
    with pytest.raises(AgentError, match=r"OPENAI_BASE_URL.*OPENAI_API_KEY"):
        endpoint_of({"OPENAI_BASE_URL": " "})


@pytest.mark.parametrize(
    "url", ["nonsense", "ftp://x/v1", "http://", "http://[::1/v1", "http://x:99999/", "http://x\0"]
)
def test_a_url_that_is_none_is_named(url):
    with pytest.raises(AgentError, match="OPENAI_BASE_URL"):
        endpoint_of({"OPENAI_BASE_URL": url})


def test_a_key_with_a_line_break_is_refused_without_showing_it():
    with pytest.raises(AgentError, match="OPENAI_API_KEY") as caught:
        endpoint_of({"OPENAI_API_KEY": "sk-\nsecret"})
    assert "secret" not in str(caught.value)


def test_a_key_alone_means_openai_and_a_url_alone_needs_no_key():
    assert endpoint_of({"OPENAI_API_KEY": KEY}).host == "api.openai.com"
    assert endpoint_of({"OPENAI_BASE_URL": "http://x:1/v1", "OPENAI_MODEL": "m"}).model == "m"


def test_neither_key_nor_password_is_shown():
    endpoint = Endpoint("http://me:password@x:1/v1", KEY)
    assert KEY not in repr(endpoint)
    assert endpoint.host == "x:1"


def said(role: str, content: str) -> SimpleNamespace:
    return SimpleNamespace(role=role, content=content)


def test_the_conversation_is_what_people_and_the_agent_said():
    action = SimpleNamespace(tool="search", output="…")
    history = [said("user", "a"), action, said("assistant", "b"), said("assistant", "")]
    assert conversation(history, "c") == [Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]


@given(
    history=st.lists(st.builds(said, st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=9)), max_size=30),
    room=st.integers(0, 60),
)
def test_a_conversation_is_bounded_starts_with_a_person_and_ends_with_the_message(history, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "TURNS_CHARS_MAX", room)
        patch.setattr(chat, "TURNS_MAX", 10)
        turns = conversation(history, "now")
    assert turns[-1] == Turn("user", "now")
    assert turns[0].role == "user"
    assert len(turns) <= 11
    assert sum(len(turn.content) for turn in turns[:-1]) <= max(room - 3, 0)


# --- the agent ------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_agent_tells_the_model_what_was_said_before_and_writes_down_what_comes(tmp_path, monkeypatch):
    usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    first = [delta(reasoning_content="Hm."), delta(content="Hello"), delta(content=" you"), delta("stop")]
    second = [delta(content="Bye"), delta("length")]
    fake = FakeEndpoint([(200, [*first, chunk(choices=[], usage=usage), DONE]), (200, [*second, DONE])])
    app = Runstone()
    chat.register(app)
    async with listening(fake) as endpoint, app.running(store=f"sqlite:///{tmp_path}/runs.db") as client:
        monkeypatch.setenv("OPENAI_BASE_URL", endpoint.base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        monkeypatch.setenv("OPENAI_MODEL", "model")
        run = await client.start("chat", message="hi")
        assert (await run.result(timeout_s=30)).output == "Hello you"
        again = await client.start("chat", message="bye", thread_id=run.thread_id)
        assert (await again.result(timeout_s=30)).output == "Bye"
        page = await client.event_page(run.thread_id, limit=1_000)
    assert [(turn["role"], turn["content"]) for turn in fake.requests[1]["body"]["messages"]] == [
        ("user", "hi"),
        ("assistant", "Hello you"),
        ("user", "bye"),
    ]
    (used,) = [event.data for event in page.events if event.type == "usage"]
    assert (used["input_tokens"], used["output_tokens"]) == (7, 5)
    assert [event.data["value"] for event in page.events if event.data.get("name") == "finish_reason"] == ["length"]
    assert KEY not in str([event.data for event in page.events])
