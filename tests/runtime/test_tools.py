"""Tools: inside a run a call is an action, recorded before and after; outside it is the function."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from runstone import Action, Run, Runstone, ToolError
from runstone.errors import BadConfig
from tests.runtime.support import running

pytestmark = pytest.mark.anyio


class Hit(BaseModel):
    title: str
    score: float = 0.5
    found: datetime | None = None


class Filter(BaseModel):
    words: list[str]


app = Runstone()
let_go = threading.Event()


@app.tool
async def search(query: str, *, limit: int = 2) -> list[Hit]:
    return [Hit(title=f"{query} {number}", found=datetime(2026, 11, 20, tzinfo=UTC)) for number in range(limit)]


@app.tool
async def by_model(given: Filter) -> Filter:
    return Filter(words=given.words[::-1])


@app.tool
def in_thread(text: str) -> list[object]:
    run = Run.current()
    return [text.upper(), threading.current_thread().name, run.id if run else None]


@app.tool
async def tupled() -> tuple[int, set[str]]:
    return 1, {"a"}


@app.tool
async def untyped(value):
    return value


@app.tool
async def fails(how: str) -> None:
    if how == "exit":
        sys.exit(3)
    if how == "tool error":
        raise ToolError("NotFound", "no such page")
    if how == "timeout":
        raise TimeoutError("the tool's own")
    raise ValueError("a bug \ud800")


@app.tool
async def returns(what: str) -> object:
    return {"large": "x" * (513 << 10), "object": object(), "nan": float("nan"), "nul": "\0", "half": "\ud800"}[what]


@app.tool(timeout_s=0.1)
async def slow() -> None:
    await asyncio.sleep(3600)


@app.tool(timeout_s=0.1)
async def own_timeout() -> None:
    raise TimeoutError("not the tool's limit")


@app.tool(timeout_s=0.1)
def slow_in_thread() -> None:
    let_go.wait(20)


@app.tool
async def waits() -> None:
    await asyncio.sleep(3600)


@app.tool(private=True)
async def vault(secret: str) -> str:
    return secret + "!"


@app.tool
async def live(count: int, action: Action) -> str:
    for number in range(count):
        await action.write(f"line {number}\n")
    await action.write("x" + "\ud83d\ude00" * 9000)
    return action.action_id


@app.tool
async def outer(text: str) -> str:
    return (await untyped(text)) + "!"  # type: ignore[no-any-return]


@app.tool(name="renamed-1")
async def _renamed() -> None: ...


async def test_a_call_is_recorded_with_its_input_and_result_and_times(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> list[str]:
        return [type(hit).__name__ + hit.title for hit in await search("q", limit=1)]

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert run.output == ["Hitq 0"]
        (action,) = await place.actions(run)
        assert (action.tool, action.executor, action.status) == ("search", "server", "success")
        assert action.input == {"query": "q", "limit": 1}
        assert action.output == [{"found": "2026-11-20T00:00:00Z", "score": 0.5, "title": "q 0"}]
        assert action.error is None
        assert action.ended_at is not None
        executing, completed = await place.events(run, "tool_executing", "tool_completed")
        assert (action.started_at, action.ended_at, action.seq) == (executing.time, completed.time, executing.seq)
        assert executing.time <= completed.time
        assert isinstance(completed.data["duration_ms"], int)


@pytest.mark.parametrize(
    ("call", "result"),
    [
        (lambda: by_model(Filter(words=["a", "b"])), Filter(words=["b", "a"])),
        (tupled, (1, {"a"})),
        (lambda: untyped({"a": (1, 2)}), {"a": [1, 2]}),
        (lambda: untyped("x\0"), "x\0"),
        (lambda: returns("half"), "\ufffd"),
        (lambda: search(query="q", limit=0), []),
        (lambda: outer("x"), "x!"),
        (_renamed, None),
    ],
)
async def test_a_result_is_rebuilt_from_the_record_by_the_annotation(
    tmp_path: Path, call: Callable[[], Any], result: object
) -> None:
    got: list[object] = []

    @(one := Runstone()).agent
    async def agent(run: Run) -> None:
        got.append(await call())

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert (run.status, got) == ("completed", [result])


async def test_a_sync_tool_runs_in_a_thread_and_knows_its_run(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> Any:
        return await in_thread("x")

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert isinstance(run.output, list)
        text, thread, run_id = run.output
        assert (text, run_id) == ("X", run.run_id)
        assert str(thread).startswith("runstone-tool")


async def test_outside_a_run_a_tool_is_the_function() -> None:
    assert [hit.title for hit in await search("q", limit=1)] == ["q 0"]
    assert in_thread("x") == ["X", threading.current_thread().name, None]  # type: ignore[comparison-overlap]
    assert Run.current() is None
    assert search.__name__ == "search"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("call", "type", "message"),
    [
        (lambda: fails("bug"), "ValueError", "a bug \ufffd"),
        (lambda: fails("tool error"), "NotFound", "no such page"),
        (lambda: fails("timeout"), "TimeoutError", "the tool's own"),
        (lambda: fails("exit"), "SystemExit", "3"),
        (own_timeout, "TimeoutError", "not the tool's limit"),
        (slow, "Timeout", "slow took longer than 0.1 s"),
        (slow_in_thread, "Timeout", "slow_in_thread took longer than 0.1 s"),
        (lambda: returns("large"), "OutputTooLarge", None),
        (lambda: returns("object"), "Invalid", None),
        (lambda: returns("nan"), "Invalid", None),
        (search, "TypeError", None),
    ],
)
async def test_a_tool_that_fails_raises_a_tool_error_and_its_action_says_so(
    tmp_path: Path, call: Callable[[], Any], type: str, message: str | None
) -> None:
    let_go.clear()

    @(one := Runstone()).agent
    async def agent(run: Run) -> str:
        try:
            await call()
        except ToolError as error:
            await run.say("going on")
            return error.type
        return "no error"

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        let_go.set()
        assert (run.status, run.output) == ("completed", type)
        (action,) = await place.actions(run)
        assert action.status == "error"
        assert action.error is not None
        assert action.error.type == type
        if message is not None:
            assert action.error.message == message
        assert action.output is None


async def test_a_tool_that_exits_in_a_task_of_its_own_ends_nothing_but_its_call(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> list[str]:
        calls = [fails("exit"), fails("exit")]
        return [repr(outcome) for outcome in await asyncio.gather(*calls, return_exceptions=True)]

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert run.status == "completed"
        assert isinstance(run.output, list)
        assert all("ToolError" in str(outcome) for outcome in run.output)


async def test_an_input_that_cannot_be_recorded_calls_nothing(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run, how: str) -> None:
        await untyped(object() if how == "object" else "x" * (641 << 10))

    async with running(one, tmp_path) as place:
        for how, type in (("object", "Invalid"), ("large", "TooLarge")):
            run = await place.finished("agent", how)
            assert run.error is not None
            assert run.error.type == type
            assert await place.actions(run) == []


async def test_an_error_that_the_agent_does_not_catch_is_the_runs(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> None:
        await fails("bug")

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert run.error is not None
        assert (run.status, run.error.type) == ("failed", "ToolError")


async def test_the_tool_is_called_after_its_action_is_committed_and_the_agent_goes_on_after_its_result_is(
    tmp_path: Path,
) -> None:
    seen: list[list[tuple[str, str]]] = []

    @(one := Runstone()).tool
    async def looks(run_id: str) -> None:
        seen.append([(action.tool, action.status) for action in await place.actions(place.client.run(run_id))])

    @one.agent
    async def agent(run: Run) -> None:
        await looks(run.id)
        seen.append([(a.tool, a.status) for a in await place.client.actions(run.thread_id)])

    async with running(one, tmp_path) as place:
        original = place.actions

        async def actions(run: Any) -> Any:
            await run.refresh()
            return await original(run)

        place.actions = actions  # type: ignore[method-assign]
        run = await place.finished("agent")
        assert run.status == "completed"
        assert seen == [[("looks", "pending")], [("looks", "success")]]


async def test_calls_side_by_side_are_actions_of_their_own(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> Any:
        return await asyncio.gather(*[untyped(number) for number in range(20)], in_thread("x"))

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert isinstance(run.output, list)
        assert run.output[:20] == list(range(20))
        actions = await place.actions(run)
        assert [action.input for action in actions[:20]] == [{"value": number} for number in range(20)]
        assert {action.status for action in actions} == {"success"}
        events = await place.events(run, "tool_executing", "tool_completed")
        opened: set[object] = set()
        for event in events:
            if event.type == "tool_executing":
                opened.add(event.data["action_id"])
            else:
                opened.remove(event.data["action_id"])
        assert not opened


async def test_a_tool_that_calls_a_tool_leaves_an_action_inside_an_action(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> str:
        return str(await outer("x"))

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        kinds = [(e.type, e.data["action_id"]) for e in await place.events(run, "tool_executing", "tool_completed")]
        first, second = kinds[0][1], kinds[1][1]
        assert [action_id for _, action_id in kinds] == [first, second, second, first]


async def test_live_output_is_streamed_between_the_start_and_the_end_of_its_action(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> str:
        return await live(3)  # type: ignore[call-arg]

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        (action,) = await place.actions(run)
        assert action.input == {"count": 3}
        assert run.output == action.action_id
        types = [event.type for event in await place.events(run) if event.type.startswith("tool_")]
        assert types == ["tool_executing", *["tool_output"] * (len(types) - 2), "tool_completed"]
        outputs = await place.events(run, "tool_output")
        assert "".join(str(event.data["delta"]) for event in outputs) == "line 0\nline 1\nline 2\nx" + "😀" * 9000


async def test_a_private_tool_shows_that_it_ran_and_nothing_else(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> bool:
        return await vault("pass-word") == "pass-word!"

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert run.output is True
        events = await place.events(run, "tool_executing", "tool_completed")
        for event in events:
            assert event.data == {"action_id": event.data["action_id"], "private": True}
        assert all(b"pass-word" not in event.encode() for event in await place.events(run))
        (action,) = await place.actions(run)
        assert (action.input, action.output, action.status, action.tool) == (None, None, "success", "private")


async def test_an_agent_reads_in_its_history_what_private_tools_took_and_gave(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> list[object]:
        before = [[action.tool, action.input, action.output] for action in (await run.history()).actions]
        await vault("pass-word")
        return list(before)

    async with running(one, tmp_path) as place:
        first = await place.client.start("agent")
        await first.result(timeout_s=20)
        second = await place.client.start("agent", thread_id=first.thread_id)
        seen = (await second.result(timeout_s=20)).output
    assert seen == [["vault", {"secret": "pass-word"}, "pass-word!"]]


async def test_a_call_that_is_cancelled_is_interrupted(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> None:
        await waits()

    async with running(one, tmp_path) as place:
        handle = await place.start("agent")
        await place.seen(handle, "tool_executing")
        await handle.cancel()
        run = await place.ended(handle)
        assert run.status == "cancelled"
        (action,) = await place.actions(run)
        assert (action.status, action.error) == ("interrupted", None)
        assert action.ended_at is not None
        assert (await place.types(run))[-2:] == ["tool_completed", "agent_cancelled"]


async def test_a_sync_call_that_is_cancelled_is_interrupted_at_once(tmp_path: Path) -> None:
    begun, release = threading.Event(), threading.Event()

    @(one := Runstone()).tool
    def blocks() -> None:
        begun.set()
        release.wait(30)

    @one.agent
    async def agent(run: Run) -> None:
        await blocks()

    async with running(one, tmp_path) as place:
        handle = await place.start("agent")
        await asyncio.to_thread(begun.wait, 10)
        await handle.cancel()
        run = await place.ended(handle)
        release.set()
        assert run.status == "cancelled"
        assert [action.status for action in await place.actions(run)] == ["interrupted"]


async def test_what_somebody_else_runs_can_be_recorded_as_an_action(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> None:
        async with run.action("bash", {"command": "ls"}, call_id="call_7") as action:
            await action.write("file\n")
            action.complete({"exit": 0})
        async with run.action("quiet"):
            pass
        with pytest.raises(ToolError):
            async with run.action("bad", executor="provider"):
                raise KeyError("no")

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert run.status == "completed"
        bash, quiet, bad = await place.actions(run)
        assert (bash.executor, bash.input, bash.output) == ("agent", {"command": "ls"}, {"exit": 0})
        assert (quiet.status, quiet.input, quiet.output) == ("success", None, None)
        assert (bad.executor, bad.status) == ("provider", "error")
        assert bad.error is not None
        assert bad.error.type == "KeyError"
        assert (await place.events(run, "tool_executing"))[0].data["call_id"] == "call_7"


# --- what is refused when the module is loaded ------------------------------------------------------------------


async def generator() -> AsyncIterator[int]:
    yield 1


class Unreadable:
    """No JSON becomes one of these."""


async def unreadable() -> Unreadable:
    return Unreadable()


async def unknown_name() -> NotThere: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (generator, {}, "generator"),
        (unreadable, {}, "Unreadable"),
        (unknown_name, {}, "NotThere"),
        (unreadable, {"name": "a b"}, "a b"),
        (in_thread._function, {"timeout_s": 0}, "timeout_s"),
        (in_thread._function, {"timeout_s": float("nan")}, "timeout_s"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_at_once_and_says_why(
    function: Callable[..., Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        Runstone().tool(**options)(function)
    assert said in str(caught.value)
    assert caught.value.remedy
