"""Every run ends once, honestly: by its return, an error, a time-out, a cancel, or the end of its thread."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from runstone import AgentError, Run, Runstone
from runstone import events as e
from runstone.client.runs import RunHandle
from runstone.errors import NotFound, ThreadBusy
from runstone.states import TERMINAL_EVENTS
from tests.runtime.support import Place, running

pytestmark = pytest.mark.anyio

app = Runstone()
caught: list[str] = []
go_on = asyncio.Event()


class NoException(BaseException):
    """Not one that anybody expects."""


@app.agent
async def returns(run: Run, what: str) -> Any:
    return {
        "none": None,
        "text": "hello",
        "number": 7,
        "half": "\ud800",
        "large": "x" * (513 << 10),
        "object": object(),
        "nan": [float("nan")],
        "bytes": b"\xff",
        "huge": 2**70,
    }[what]


@app.agent
async def raises(run: Run, how: str) -> None:
    await run.say("so far")
    if how == "agent error":
        raise AgentError("for people to read \ud800", retryable=True)
    if how == "bug":
        raise ValueError("a secret")
    if how == "exit":
        sys.exit("bye")
    if how == "base":
        raise NoException("odd")
    if how == "cancels itself":
        raise asyncio.CancelledError
    if how == "group":
        async with asyncio.TaskGroup() as group:
            group.create_task(_boom())
    if how == "long":
        raise AgentError("x" * 20_000)


async def _boom() -> None:
    raise ValueError("in a task")


@app.agent
async def waits(run: Run) -> None:
    await run.say("waiting")
    await asyncio.sleep(3600)


@app.agent
async def cleans_up(run: Run, result: Any) -> Any:
    async with run.message() as message:
        await message.write("one ")
        await run.flush()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            caught.append(run.id)
            await message.write("two")
    return result


@app.agent
async def raises_when_cancelled(run: Run) -> None:
    await run.say("waiting")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        raise ValueError("while cleaning up") from None


@app.agent
async def ignores(run: Run, talks: bool) -> None:
    await run.say("waiting")
    while not go_on.is_set():
        try:
            await asyncio.sleep(0.02)
            if talks:
                await run.say("x")
        except asyncio.CancelledError:
            caught.append("ignored")


@app.agent
async def holds_on(run: Run) -> None:
    """Does not stop before it is let go."""
    await run.say("waiting")
    while not go_on.is_set():
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            caught.append("held on")
    await run.say("too late")
    caught.append("said it")


@app.agent(timeout_s=0.2)
async def too_long(run: Run, catches: bool) -> str:
    await run.say("begun")
    try:
        await asyncio.sleep(3600)
    except asyncio.CancelledError:
        if not catches:
            raise
    return "in time"


@app.agent
async def quick(run: Run) -> str:
    return "done"


@app.agent
async def breaks_the_store(run: Run) -> None:
    await run.say("so far")
    data = e.ToolCompleted(action_id="act_unknown", status="success", duration_ms=0)
    await run._outbox.append(run._attempt.draft(data))


@app.agent
async def open_things(run: Run) -> AsyncIterator[str]:
    yield "text"
    context = run.action("left open")
    await context.__aenter__()
    await run.think("hm")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    caught.clear()
    go_on.clear()


async def ends_once(place: Place, run: RunHandle | Any, terminal: str) -> None:
    """One terminal event, and it is the last of the run; nothing of the run is left open."""
    events = [event for event in await place.events(run) if event.run_id == run.run_id]
    assert [event.type for event in events if event.type in TERMINAL_EVENTS] == [terminal]
    assert events[-1].type == terminal
    assert all(message.status != "streaming" for message in await place.messages(run))
    assert all(action.status != "pending" for action in await place.actions(run))


# --- by return ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("what", "output"), [("none", None), ("text", "hello"), ("number", 7), ("half", "\ufffd")])
async def test_a_return_completes_the_run(tmp_path: Path, what: str, output: Any) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("returns", {"what": what})
        assert (run.status, run.output, run.error) == ("completed", output, None)
        await ends_once(place, run, "agent_completed")


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("large", "OutputTooLarge"),
        ("object", "TypeError"),
        ("nan", "TypeError"),
        ("bytes", "TypeError"),
        ("huge", "TypeError"),
    ],
)
async def test_an_output_that_cannot_be_kept_fails_the_run_and_is_never_cut(
    tmp_path: Path, what: str, error: str
) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("returns", {"what": what})
        assert run.error is not None
        assert (run.status, run.output, run.error.type) == ("failed", None, error)


async def test_a_generators_text_that_is_too_large_for_an_output_is_null_and_the_message_whole(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> AsyncIterator[str]:
        for _ in range(600):
            yield "x" * 1024

    async with running(one, tmp_path) as place:
        run = await place.finished("agent")
        assert (run.status, run.output) == ("completed", None)
        assert (await place.message(run)).content == "x" * (600 << 10)


async def test_what_is_open_at_a_return_is_closed(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("open_things")
        assert run.status == "completed"
        await ends_once(place, run, "agent_completed")
        assert [message.status for message in await place.messages(run)] == ["completed"]
        assert [action.status for action in await place.actions(run)] == ["interrupted"]


# --- by an error ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "type", "message"),
    [
        ("agent error", "AgentError", "for people to read \ufffd"),
        ("bug", "ValueError", None),
        ("exit", "SystemExit", None),
        ("base", "NoException", None),
        ("group", "ExceptionGroup", None),
        ("cancels itself", "CancelledError", "The agent cancelled itself."),
        ("long", "AgentError", "x" * 8000),
    ],
)
async def test_an_error_ends_the_run_as_failed_with_its_text_kept(
    tmp_path: Path, how: str, type: str, message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("raises", {"how": how})
        assert run.error is not None
        assert (run.status, run.error.type) == ("failed", type)
        assert run.error.retryable == (how == "agent error")
        if message is not None:
            assert run.error.message == message
        else:
            assert run.error.id is not None
            assert run.error.id in run.error.message
            assert "secret" not in run.error.message
            assert run.error.id in capsys.readouterr().out, "the server's log has it under that id"
        assert (await place.message(run)).content == "so far"
        await ends_once(place, run, "agent_failed")
        assert (await place.finished("quick")).status == "completed", "the server goes on"


async def test_debug_shows_the_messages_of_all_errors(tmp_path: Path) -> None:
    async with running(app, tmp_path, debug=True) as place:
        run = await place.finished("raises", {"how": "bug"})
        assert run.error is not None
        assert run.error.message == "a secret"


async def test_a_run_whose_words_the_store_refuses_ends_as_failed(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("breaks_the_store")
        assert run.status == "failed"
        assert (await place.message(run)).content == "so far"
        await ends_once(place, run, "agent_failed")


@pytest.mark.parametrize("catches", [False, True])
async def test_a_run_that_takes_too_long_fails_whatever_it_returns(tmp_path: Path, catches: bool) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("too_long", {"catches": catches})
        assert run.error is not None
        assert (run.status, run.output, run.error.type) == ("failed", None, "Timeout")
        assert "0.2 s" in run.error.message
        await ends_once(place, run, "agent_failed")


# --- by a cancel --------------------------------------------------------------------------------------------------


async def test_a_cancel_stops_the_agent_and_says_who_and_why(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("waits")
        await place.seen(handle, "message_completed")
        asked = await handle.cancel("enough")
        assert asked.status == "running"
        run = await place.ended(handle)
        assert (run.status, run.output, run.error) == ("cancelled", None, None)
        await ends_once(place, run, "agent_cancelled")
        requested, cancelled = await place.events(run, "cancel_requested", "agent_cancelled")
        assert (requested.data["by"], requested.data["reason"]) == ("local", "enough")
        assert "deadline" in requested.data
        assert cancelled.data == {"by": "local", "reason": "enough"}


async def test_a_second_cancel_writes_nothing_and_one_after_the_end_shows_the_run(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("cleans_up", {"result": 1})
        await place.seen(handle, "message_delta")
        await asyncio.gather(*[handle.cancel(f"try {number}") for number in range(5)])
        await place.ended(handle)
        assert (await handle.cancel("again")).status == "cancelled"
        assert len(await place.events(handle, "cancel_requested")) == 1
        await ends_once(place, handle, "agent_cancelled")


async def test_an_agent_that_catches_the_cancel_and_returns_is_still_cancelled_with_its_output(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("cleans_up", {"result": {"kept": True}})
        await place.seen(handle, "message_delta")
        await handle.cancel()
        run = await place.ended(handle)
        assert (run.status, run.output) == ("cancelled", {"kept": True})
        assert caught == [run.run_id]
        message = await place.message(run)
        assert (message.status, message.content) == ("completed", "one two"), "it may write until the deadline"


async def test_an_agent_that_raises_while_it_is_cancelled_is_cancelled(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("raises_when_cancelled")
        await place.seen(handle, "message_completed")
        await handle.cancel()
        assert (await place.ended(handle)).status == "cancelled"


@pytest.mark.parametrize("talks", [False, True])
async def test_an_agent_that_ignores_the_cancel_is_ended_at_the_deadline(
    tmp_path: Path, talks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runstone.runtime.executor.CANCEL_DEADLINE_S", 0.3)
    monkeypatch.setattr("runstone.service.STOP_S", 0.1)
    async with running(app, tmp_path) as place:
        handle = await place.start("ignores", {"talks": talks})
        await place.seen(handle, "message_completed")
        started = asyncio.get_running_loop().time()
        await handle.cancel()
        run = await place.ended(handle)
        assert run.status == "cancelled"
        assert 0.25 <= asyncio.get_running_loop().time() - started < 5
        assert "ignored" in caught
        await ends_once(place, run, "agent_cancelled")
        task = place.system.worker.registry.get(run.run_id).task
    assert not talks or task.done(), "who talks is told that its run has ended"
    go_on.set()
    await asyncio.wait({task}, timeout=10)
    assert task.done()


async def test_an_agent_that_goes_on_after_its_end_can_say_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runstone.runtime.executor.CANCEL_DEADLINE_S", 0.1)
    async with running(app, tmp_path) as place:
        handle = await place.start("holds_on")
        await place.seen(handle, "message_completed")
        await handle.cancel()
        run = await place.ended(handle)
        types = await place.types(run)
        task = place.system.worker.registry.get(run.run_id).task
        go_on.set()
        await asyncio.wait({task}, timeout=10)
        assert task.done()
        assert "held on" in caught
        assert "said it" not in caught
        assert await place.types(run) == types


async def test_a_queued_run_is_cancelled_at_once_and_never_starts(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        first = await place.start("waits")
        second = await place.start("quick", thread_id=first.thread_id)
        await place.seen(first, "message_completed")
        assert (await second.cancel()).status == "cancelled"
        await first.cancel()
        await place.ended(first)
        started = await place.events(first, "agent_started")
        assert [event.run_id for event in started] == [first.run_id]
        await ends_once(place, second, "agent_cancelled")


async def test_a_cancel_that_races_the_completion_ends_the_run_once(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handles = [await place.start("quick") for _ in range(40)]
        await asyncio.gather(*[handle.cancel() for handle in handles])
        for handle in handles:
            run = await place.ended(handle)
            assert run.status in {"completed", "cancelled"}
            await ends_once(place, run, f"agent_{run.status}")
            asked = await place.events(run, "cancel_requested")
            assert len(asked) == (run.status == "cancelled"), "after a cancel was asked for the end is a cancel"


async def test_a_cancel_of_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        with pytest.raises(NotFound):
            await place.client.run("run_unknown").cancel()
        run = await place.start("waits")
        async with app.client(user_id="bob") as bob:
            with pytest.raises(NotFound):
                await bob.run(run.run_id).cancel()
        await run.cancel()
        await place.ended(run)


async def test_deleting_a_thread_stops_its_agent(tmp_path: Path) -> None:
    @(one := Runstone()).agent
    async def agent(run: Run) -> None:
        await run.say("waiting")
        try:
            await asyncio.sleep(3600)
        finally:
            caught.append("stopped")

    async with running(one, tmp_path) as place:
        handle = await place.start("agent")
        await place.seen(handle, "message_completed")
        task = place.system.worker.registry.get(handle.run_id).task
        await place.client.delete_thread(handle.thread_id)
        await asyncio.wait({task}, timeout=10)
        assert caught == ["stopped"]
        with pytest.raises(NotFound):
            await handle.refresh()


# --- a busy thread ----------------------------------------------------------------------------------------------------


async def test_enqueue_runs_one_after_the_other(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        first = await place.start("waits")
        others = [await place.start("quick", thread_id=first.thread_id) for _ in range(3)]
        await place.seen(first, "message_completed")
        assert [(await other.refresh()).status for other in others] == ["queued"] * 3
        await first.cancel()
        for other in others:
            assert (await place.ended(other)).status == "completed"
        started = await place.events(first, "agent_started")
        assert [event.run_id for event in started] == [run.run_id for run in (first, *others)]


async def test_interrupt_cancels_the_others_and_starts_when_they_have_ended(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        first = await place.start("cleans_up", {"result": None})
        waiting = await place.start("quick", thread_id=first.thread_id)
        await place.seen(first, "message_delta")
        last = await place.start("quick", thread_id=first.thread_id, on_busy="interrupt")
        assert last.interrupted == [first.run_id, waiting.run_id]
        assert (await place.ended(last)).status == "completed"
        assert [(await run.refresh()).status for run in (first, waiting)] == ["cancelled", "cancelled"]
        ends = [e for e in await place.events(last) if e.type in {"agent_cancelled", "agent_started"}]
        order = [(event.type, event.run_id) for event in ends]
        assert order.index(("agent_started", last.run_id)) > order.index(("agent_cancelled", first.run_id))


async def test_reject_refuses_and_writes_nothing(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        first = await place.start("waits")
        await place.seen(first, "message_completed")
        types = await place.types(first)
        with pytest.raises(ThreadBusy):
            await place.start("quick", thread_id=first.thread_id, on_busy="reject")
        assert await place.types(first) == types
        await first.cancel()
        await place.ended(first)
        run = await place.start("quick", thread_id=first.thread_id, on_busy="reject")
        assert (await place.ended(run)).status == "completed"


async def test_more_runs_than_slots_wait_their_turn(tmp_path: Path) -> None:
    one = Runstone()
    under_way: list[int] = [0, 0]
    full = asyncio.Event()

    @one.agent
    async def agent(run: Run) -> None:
        under_way[0] += 1
        under_way[1] = max(under_way)
        if under_way[0] == 3:
            full.set()
        await full.wait()
        await asyncio.sleep(0.01)
        under_way[0] -= 1

    async with running(one, tmp_path, slots=3) as place:
        handles = [await place.start("agent") for _ in range(20)]
        for handle in handles:
            assert (await place.ended(handle)).status == "completed"
        assert under_way == [0, 3]
