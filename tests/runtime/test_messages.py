"""What an agent says: messages and their parts, live and afterwards, with any text there is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runstone import AgentError, Run, Runstone, server, values
from runstone.errors import TooLarge
from runstone.resources import Run as Ended
from runstone.verify import Finding, verify
from tests.runtime.support import Place, running

pytestmark = pytest.mark.anyio

app = Runstone()
HIGH, LOW = "\ud83d", "\ude00"  # the halves of 😀


@app.agent
async def speaks(run: Run, deltas: list[str]) -> int:
    async with run.message() as message:
        for delta in deltas:
            await message.write(delta)
    return len(message.text)


@app.agent
async def thinks_then_says(run: Run, how: str) -> AsyncIterator[str] | str | None:
    await run.think("hm, ")
    await run.think("so")
    if how == "message":
        async with run.message() as message:
            await message.write("answer")
    elif how == "say":
        await run.say("answer")
    elif how == "metadata":
        async with run.message(metadata={"kind": "final"}) as message:
            await message.write("answer")
    elif how == "return":
        return "answer"
    return None


@app.agent
async def thinks_and_yields(run: Run) -> AsyncIterator[str]:
    await run.think("hm")
    yield "answer"


@app.agent
async def parts(run: Run) -> None:
    async with run.message(metadata={"b": 1, "a": [None]}) as message:
        await message.think("why")
        await message.write("one ")
        await message.write("two")
        await message.part({"type": "file", "url": "https://example.org/x.png", "media_type": "image/png"})
        await message.write("three")
        await message.part({"type": "data", "value": {"n": 1}})
        await message.part({"type": "source", "url": "https://example.org", "title": "a\ud800b"})


@app.agent
async def two_at_once(run: Run) -> None:
    async with run.message() as one, run.message() as two:
        await one.write("a")
        await two.write("1")
        await one.write("b")
        await two.think("hm")
        await two.write("2")
        await one.write("c")


@app.agent
async def leaves_open(run: Run, how: str) -> None:
    await run.think("begun")
    if how == "error":
        raise AgentError("no more")
    if how == "wait":
        await run.flush()
        await asyncio.sleep(3600)


@app.agent
async def breaks_off(run: Run, how: str) -> None:
    await run.say("before")
    async with run.message() as message:
        await message.write("half a sen")
        if how == "error":
            raise ValueError("a bug")
        await run.flush()
        await asyncio.sleep(3600)


@app.agent(timeout_s=0.3)
async def too_slow(run: Run) -> None:
    async with run.message() as message:
        await message.write("half a sen")
        await asyncio.sleep(3600)


@app.agent
async def misuses(run: Run, how: str) -> None:
    async with run.message() as message:
        await message.write("x")
        if how == "not text":
            await message.write(7)  # type: ignore[arg-type]
        if how == "odd part":
            await message.part({"type": "text", "text": "x"})
        if how == "large part":
            await message.part({"type": "data", "value": "x" * (600 << 10)})
    if how == "after the end":
        await message.write("y")


@app.agent
async def yields_numbers(run: Run) -> AsyncIterator[str]:
    yield "one"
    yield 2  # type: ignore[misc]


cleaned: list[str] = []


@app.agent
async def yields_for_ever(run: Run) -> AsyncIterator[str]:
    try:
        while True:
            yield "x" * 8000
    finally:
        await asyncio.sleep(0.2)
        cleaned.append(run.id)


async def said(place: Place, run: Ended, message_id: str | None = None) -> str:
    """The text of a run's message as a viewer puts it together, with every offset checked."""
    text: dict[int, str] = {}
    for event in await place.events(run, "message_delta"):
        if message_id in {None, event.data["message_id"]}:
            part, delta = event.data["part"], event.data["delta"]
            assert isinstance(part, int)
            assert isinstance(delta, str)
            assert event.data["offset"] == len(text.get(part, ""))
            text[part] = text.get(part, "") + delta
    return "".join(text[part] for part in sorted(text))


ODD = {
    "nothing": [],
    "empty deltas": ["", "a", "", "b", ""],
    "only empty deltas": ["", ""],
    "one character each": list("one by one 🗿é"),
    "nul": ["a\0", "\0b"],
    "a pair split across deltas": ["a" + HIGH, LOW + "b"],
    "a pair split around an empty delta": [HIGH, "", LOW],
    "a pair in one delta": [HIGH + LOW],
    "a lone high surrogate at the end": ["a", HIGH],
    "a lone high surrogate before text": [HIGH, "a"],
    "a lone low surrogate": [LOW, "a" + LOW],
    "two high surrogates": [HIGH, HIGH, LOW],
    "controls": ['\x00\x01\x1b\x7f\u2028\u2029\r\n\t"\\'],
    "one MiB": ["x" * (1 << 20)],
    "one MiB of four bytes each": ["🗿" * (1 << 18)],
}


@pytest.mark.parametrize("deltas", ODD.values(), ids=ODD.keys())
async def test_any_text_is_said_as_it_is_with_halves_of_emoji_joined(tmp_path: Path, deltas: list[str]) -> None:
    whole = "".join(deltas).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    app = Runstone()

    @app.agent
    async def says(run: Run) -> int:
        async with run.message() as message:
            for delta in deltas:
                await message.write(delta)
        return len(message.text)

    async with running(app, tmp_path) as place:
        run = await place.finished("says")
        message = await place.message(run)
        assert (run.status, run.output) == ("completed", len(whole))
        assert message.content == whole
        assert await said(place, run) == whole
        (completed,) = await place.events(run, "message_completed")
        assert completed.data["length"] == len(whole)
        for event in await place.events(run, "message_delta"):
            assert len(str(event.data["delta"]).encode()) <= 32 << 10


texts = st.lists(st.text(st.sampled_from(["a", "\0", "🗿", HIGH, LOW, "é"]), max_size=4), max_size=12)


@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(cuts=st.lists(texts, min_size=20, max_size=20))
async def test_however_a_text_is_cut_it_is_the_same_text(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[list[str]]
) -> None:
    app = Runstone()

    @app.agent
    async def says(run: Run, number: int) -> None:
        async with run.message() as message:
            for delta in cuts[number]:
                await message.write(delta)

    async with running(app, tmp_path_factory.mktemp("cut")) as place:
        runs = [await place.start("says", number) for number in range(len(cuts))]
        for deltas, handle in zip(cuts, runs, strict=True):
            run = await place.ended(handle)
            assert await said(place, run) == (await place.message(run)).content == values.mend("".join(deltas))


@pytest.mark.parametrize("how", ["message", "say", "return"])
async def test_thoughts_open_the_message_that_is_said_next(tmp_path: Path, how: str) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("thinks_then_says", how)
        message = await place.message(run)
        assert message.status == "completed"
        assert message.content == "answer"
        assert message.parts == [{"type": "reasoning", "text": "hm, so"}, {"type": "text", "text": "answer"}]


async def test_a_generators_thoughts_are_in_its_message(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        message = await place.message(await place.finished("thinks_and_yields"))
        assert [part["type"] for part in message.parts] == ["reasoning", "text"]


async def test_thoughts_alone_are_a_complete_message(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        message = await place.message(await place.finished("leaves_open", "return"))
        assert (message.status, message.content, message.parts) == (
            "completed",
            "",
            [{"type": "reasoning", "text": "begun"}],
        )


async def test_a_message_with_metadata_is_one_of_its_own(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("thinks_then_says", "metadata")
        thought, answer = await place.client.messages(run.thread_id, run_id=run.run_id, role="assistant")
        assert [thought.status, answer.status] == ["completed", "completed"]
        assert (answer.content, answer.metadata) == ("answer", {"kind": "final"})


async def test_parts_are_numbered_in_the_order_they_were_said(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("parts")
        message = await place.message(run)
        assert [part["type"] for part in message.parts] == ["reasoning", "text", "file", "text", "data", "source"]
        assert message.content == "one twothree"
        assert message.metadata == {"a": [None], "b": 1}
        assert message.parts[-1]["title"] == "a\ufffdb"
        kinds = ("agent_thinking", "message_delta", "message_part")
        numbers = [event.data["part"] for event in await place.events(run, *kinds)]
        assert numbers == sorted(numbers)  # type: ignore[type-var]
        assert set(numbers) == set(range(6))
        (started,) = await place.events(run, "message_started")
        assert started.metadata == {"a": [None], "b": 1}


async def test_two_messages_may_be_open_at_once(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("two_at_once")
        one, two = await place.messages(run)
        assert (one.content, two.content) == ("abc", "12")
        assert [part["type"] for part in two.parts] == ["text", "reasoning", "text"]
        assert await said(place, run, one.message_id) == "abc"


async def test_a_message_can_be_read_whole_while_it_streams(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("breaks_off", "wait")
        await place.seen(run, "message_delta", 2)
        *_, message = await place.messages(run)
        assert (message.status, message.content) == ("streaming", "half a sen")
        thread = await place.client.thread(run.thread_id)
        assert thread.last_message is not None
        assert (thread.last_message.status, thread.last_message.content) == ("streaming", "half a sen")
        await run.cancel()
        await place.ended(run)


@pytest.mark.parametrize(
    ("agent", "input", "reason", "status"),
    [
        ("breaks_off", "error", "error", "failed"),
        ("breaks_off", "wait", "cancelled", "cancelled"),
        ("too_slow", None, "timeout", "failed"),
        ("leaves_open", "error", "error", "failed"),
        ("leaves_open", "wait", "cancelled", "cancelled"),
    ],
)
async def test_text_said_before_an_error_a_cancel_or_a_timeout_is_kept_and_marked(
    tmp_path: Path, agent: str, input: Any, reason: str, status: str
) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start(agent, input)
        if status == "cancelled":
            await place.seen(handle, "message_started", 2 if agent == "breaks_off" else 1)
            await place.seen(handle, "message_delta" if agent == "breaks_off" else "agent_thinking")
            await handle.cancel()
        run = await place.ended(handle)
        assert run.status == status
        message = (await place.messages(run))[-1]
        assert (message.status, message.reason) == ("partial", reason)
        assert "".join(str(part["text"]) for part in message.parts) in {"half a sen", "begun"}
        completed = (await place.events(run, "message_completed"))[-1]
        assert (completed.data["status"], completed.data["reason"]) == ("partial", reason)
        assert (await place.types(run))[-1] == f"agent_{status}"


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("not text", "TypeError"),
        ("odd part", "Invalid"),
        ("large part", "TooLarge"),
        ("after the end", "RuntimeError"),
    ],
)
async def test_what_cannot_be_said_fails_the_run_and_keeps_what_was(tmp_path: Path, how: str, error: str) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("misuses", how)
        assert run.error is not None
        assert (run.status, run.error.type) == ("failed", error)
        assert (await place.message(run)).content == "x"


async def test_a_generator_that_yields_no_text_fails_and_keeps_what_it_said(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("yields_numbers")
        assert run.error is not None
        assert run.error.type == "TypeError"
        assert (await place.message(run)).content == "one"


async def test_a_stopped_generator_has_cleaned_up_before_its_run_ends(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("yields_for_ever")
        await place.seen(handle, "message_delta")
        await handle.cancel()
        run = await place.ended(handle)
        assert run.status == "cancelled"
        assert cleaned == [run.run_id]


async def test_a_message_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstone.runtime.message.MESSAGE_BYTES_MAX", 100_000)
    async with running(app, tmp_path) as place:
        run = await place.finished("speaks", ["é" * 30_000, "é" * 30_000])
        assert run.error is not None
        assert run.error.type == "TooLarge"
        assert len((await place.message(run)).content.encode()) <= 100_000


@app.agent
async def says_too_much(run: Run) -> str:
    """Asks for what cannot be recorded, and copes with that."""
    return str(await run.step("coping", _too_much, run))


async def _too_much(run: Run) -> str:
    much = "x" * 900_000
    with pytest.raises(TooLarge):
        async with run.message(metadata={"much": much}) as message:
            await message.write("never said")
    with pytest.raises(TooLarge):
        async with run.action("search", call_id=much):
            pass
    with pytest.raises(TooLarge):
        await run.ask("Which one?", Literal[much])
    await run.say("so much for that")
    return "coped"


async def test_what_is_too_large_to_begin_has_not_begun_and_nothing_contains_it(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("says_too_much")
        assert (run.status, run.output) == ("completed", "coped"), run.error
        assert (await place.message(run)).content == "so much for that"
        assert await place.actions(run) == []
    found: list[Finding] = []
    with server.audit(f"sqlite:///{tmp_path}/runs.db") as audit:
        verify(audit, found.append, lambda _what, _done, _all: None, hold_s=None)
    assert [finding.line() for finding in found] == []


async def test_ten_thousand_deltas_a_second_and_two_hundred_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    app = Runstone()
    count, each = 200, 100

    @app.agent
    async def streams(run: Run, number: int) -> None:
        async with run.message() as message:
            for delta in range(each):
                await message.write(f"{number}.{delta} ")

    async with running(app, tmp_path) as place:
        started = time.monotonic()
        handles = [await place.start("streams", number) for number in range(count)]
        runs = [await place.ended(handle) for handle in handles]
        seconds = time.monotonic() - started
        for number, run in enumerate(runs):
            whole = "".join(f"{number}.{delta} " for delta in range(each))
            assert (run.status, (await place.message(run)).content) == ("completed", whole)
            assert await said(place, run) == whole
        assert seconds < 30, f"{count * each} deltas took {seconds:.1f} s"


async def test_one_run_says_ten_thousand_deltas_in_a_second_or_so(tmp_path: Path) -> None:
    app = Runstone()

    @app.agent
    async def streams(run: Run) -> float:
        started = time.monotonic()
        async with run.message() as message:
            for delta in range(10_000):
                await message.write(f"{delta} ")
        return time.monotonic() - started

    async with running(app, tmp_path) as place:
        run = await place.finished("streams")
        assert await said(place, run) == "".join(f"{delta} " for delta in range(10_000))
        assert isinstance(run.output, float)
        assert run.output < 5  # a second on an idle machine; others may be using this one
