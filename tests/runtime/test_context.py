"""The rest of what a run gives its agent: history, state, usage, titles, events of its own, and who and when it is."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runstone import Run, Runstone
from runstone.errors import Invalid, TooLarge
from tests.runtime.support import running

pytestmark = pytest.mark.anyio

app = Runstone()
kept: dict[str, Any] = {}


@app.tool
async def large() -> str:
    return "x" * (500 << 10)


@app.tool
async def keeps_current() -> str | None:
    run = Run.current()
    return None if run is None else run.id


@app.agent(timeout_s=90)
async def looks(run: Run) -> dict[str, Any]:
    return {
        "id": run.id,
        "thread_id": run.thread_id,
        "user": run.user,
        "attempt": run.attempt,
        "prompt": run.prompt,
        "metadata": run.metadata,
        "deadline": run.deadline.isoformat(),
    }


@app.agent
async def remembers(run: Run, text: str) -> str:
    history = await run.history()
    kept["history"] = history
    await keeps_current()
    await run.say(f"reply to {text}")
    return " | ".join(f"{message.role}: {message.content}" for message in history.messages)


@app.agent
async def calls_many(run: Run, count: int) -> None:
    for _ in range(count):
        await large()


@app.agent
async def counts(run: Run, value: Any) -> Any:
    before = await run.state.get("count", "unset")
    await run.state.set("count", value, public=True)
    await run.state.set("secret", {"hidden": value})
    return [before, await run.state.get("count", "unset"), await run.state.get("secret")]


@app.agent
async def uses(run: Run) -> None:
    await run.usage("m-1", input_tokens=10, output_tokens=20, cached_input_tokens=5, cost=0.25, provider="p")
    await run.usage("m-2", input_tokens=1, output_tokens=2, reasoning_tokens=7, raw={"id": "resp_1", "n": 1})


@app.agent
async def names(run: Run, title: str) -> None:
    await run.set_title(title)
    await run.emit("progress", {"done": 0.5})
    await run.emit("nothing")


@app.agent
async def misuses(run: Run, how: str) -> None:
    calls: dict[str, Any] = {
        "no title": lambda: run.set_title(""),
        "long title": lambda: run.set_title("x" * 1001),
        "no name": lambda: run.emit(""),
        "no JSON": lambda: run.emit("x", object()),  # type: ignore[arg-type]
        "large value": lambda: run.emit("x", "x" * (513 << 10)),
        "no key": lambda: run.state.set("", 1),
        "large state": lambda: run.state.set("x", "x" * (513 << 10)),
        "no tokens": lambda: run.usage("m", input_tokens=-1, output_tokens=0),
        "too many tokens": lambda: run.usage("m", input_tokens=2**63, output_tokens=0),
        "half a token": lambda: run.usage("m", input_tokens=0.5, output_tokens=0),  # type: ignore[arg-type]
        "no cost": lambda: run.usage("m", input_tokens=0, output_tokens=0, cost=float("nan")),
        "no model": lambda: run.usage("", input_tokens=0, output_tokens=0),
        "much history": lambda: run.history(1001),
    }
    try:
        await calls[how]()
    except (Invalid, TooLarge) as error:
        kept["error"] = error
    await run.say("still here")


async def test_a_run_knows_who_and_what_it_is(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        before = datetime.now(UTC)
        run = await place.finished("looks", message="hello", metadata={"source": "test"})
        found = run.output
        assert isinstance(found, dict)
        deadline = datetime.fromisoformat(str(found.pop("deadline")))
        assert before + timedelta(seconds=89) < deadline < datetime.now(UTC) + timedelta(seconds=91)
        assert found == {
            "id": run.run_id,
            "thread_id": run.thread_id,
            "user": "local",
            "attempt": 1,
            "prompt": "hello",
            "metadata": {"source": "test"},
        }
        assert run.metadata == {"source": "test"}


async def test_the_prompt_is_the_messages_text_and_input_alone_has_none(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        parts = [{"type": "text", "text": "see "}, {"type": "data", "value": 1}, {"type": "text", "text": "this"}]
        run = await place.finished("looks", {}, message={"parts": parts})
        assert isinstance(run.output, dict)
        assert run.output["prompt"] == "see this"
        run = await place.finished("looks", {})
        assert isinstance(run.output, dict)
        assert run.output["prompt"] is None


async def test_the_current_run_is_that_of_the_calling_task(tmp_path: Path) -> None:
    one = Runstone()
    barrier = asyncio.Barrier(2)

    @one.agent
    async def agent(run: Run) -> list[bool]:
        await barrier.wait()

        async def child() -> Run | None:
            return Run.current()

        return [Run.current() is run, await child() is run, await asyncio.create_task(child()) is run]

    async with running(one, tmp_path) as place:
        handles = [await place.start("agent") for _ in range(2)]
        for handle in handles:
            assert (await place.ended(handle)).output == [True, True, True]
        assert Run.current() is None


async def test_history_is_what_was_in_the_thread_before_the_run_oldest_first(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        first = await place.finished("remembers", "one")
        assert first.output == ""
        second = await place.finished("remembers", "two", thread_id=first.thread_id)
        assert second.output == "user: one | assistant: reply to one"
        third = await place.finished("remembers", "three", thread_id=first.thread_id)
        assert third.output == "user: one | assistant: reply to one | user: two | assistant: reply to two"
        history = kept["history"]
        assert [message.content for message in history.messages] == [
            message.content for message in await place.client.messages(first.thread_id)
        ][:4]
        assert [action.run_id for action in history.actions] == [first.run_id, second.run_id]


async def test_history_has_imported_messages_and_is_cut_at_its_limit(tmp_path: Path) -> None:
    one = Runstone()

    @one.agent
    async def agent(run: Run, limit: int) -> list[str]:
        return [message.content for message in (await run.history(limit)).messages]

    async with running(one, tmp_path) as place:
        said = [
            {"role": "user" if n % 2 else "assistant", "parts": [{"type": "text", "text": str(n)}]} for n in range(6)
        ]
        thread = await place.client.create_thread(messages=said)
        for limit, expected in ((1000, "012345"), (2, "45")):
            run = await place.finished("agent", limit, thread_id=thread.thread_id)
            assert run.output == list(expected)


async def test_history_has_all_large_actions_though_they_come_in_several_pages(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("calls_many", 12)
        await place.finished("remembers", "x", thread_id=run.thread_id)
        assert [len(action.output) for action in kept["history"].actions] == [500 << 10] * 12


async def test_state_is_the_threads_and_the_last_value_wins(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("counts", {"value": 1})
        thread_id = run.thread_id
        assert run.output == ["unset", 1, {"hidden": 1}]
        assert await place.client.state(thread_id) == {"count": 1}
        run = await place.finished("counts", {"value": [2]}, thread_id=thread_id)
        assert run.output == [1, [2], {"hidden": [2]}]
        run = await place.finished("counts", {"value": None}, thread_id=thread_id)
        assert run.output == [[2], "unset", {"hidden": None}]
        assert await place.client.state(thread_id) == {}
        changed = await place.events(run, "state_changed")
        assert [event.data for event in changed[::2]] == [{"key": "count", "value": v} for v in (1, [2], None)]
        assert [event.data for event in changed[1::2]] == [{"private": True}] * 3


async def test_usage_is_summed_and_each_call_is_an_event(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("uses")
        assert run.usage is not None
        sums = {
            "input_tokens": 11,
            "output_tokens": 22,
            "cached_input_tokens": 5,
            "reasoning_tokens": 7,
            "cost": 0.25,
        }
        assert run.usage.model_dump() == sums
        first, second = await place.events(run, "usage")
        assert (first.data["model"], first.data["provider"], first.data["cost"]) == ("m-1", "p", 0.25)
        assert second.raw == {"id": "resp_1", "n": 1}
        (completed,) = await place.events(run, "agent_completed")
        assert completed.data["usage"] == sums


async def test_a_title_and_events_of_its_own(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("names", "On \ud800 stones")
        assert (await place.client.thread(run.thread_id)).title == "On \ufffd stones"
        progress, nothing = await place.events(run, "custom")
        assert progress.data == {"name": "progress", "value": {"done": 0.5}}
        assert nothing.data == {"name": "nothing", "value": None}
        (updated,) = await place.events(run, "thread_updated")
        assert updated.data == {"title": "On \ufffd stones", "by": "names"}


@pytest.mark.parametrize(
    "how",
    [
        "no title",
        "long title",
        "no name",
        "no JSON",
        "large value",
        "no key",
        "large state",
        "no tokens",
        "too many tokens",
        "half a token",
        "no cost",
        "no model",
        "much history",
    ],
)
async def test_what_is_out_of_bounds_is_refused_and_the_run_goes_on(tmp_path: Path, how: str) -> None:
    kept.pop("error", None)
    async with running(app, tmp_path) as place:
        run = await place.finished("misuses", how)
        assert run.status == "completed"
        assert "error" in kept
        assert (await place.messages(run))[-1].content == "still here"
