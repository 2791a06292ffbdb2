"""Agents that call agents: one family of runs, that waits, fails, stops and goes on together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from structlog.testing import capture_logs

from runstone import AgentError, Run, RunFailed, Runstone
from runstone.client import Event
from runstone.client.runs import RunHandle
from runstone.errors import Invalid, UnknownAgent
from runstone.resources import Run as RunResource
from runstone.states import TERMINAL_EVENTS
from tests.runtime.support import WAIT_S, Place, running

pytestmark = pytest.mark.anyio

app = Runstone()
seen: list[str] = []
let_go = asyncio.Event()


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    seen.clear()
    monkeypatch.setitem(globals(), "let_go", asyncio.Event())  # of this test's loop


class Report(BaseModel):
    number: int


@app.agent
async def reports(run: Run, number: int) -> Report:
    await run.say(f"report {number}")
    return Report(number=number)


@app.agent
async def counts(run: Run, to: int) -> AsyncIterator[str]:
    for number in range(to):
        yield f"{number} "


@app.agent
async def fails(run: Run, how: str) -> None:
    if how == "bug":
        raise LookupError("a secret")
    raise AgentError("for all to read")


@app.agent
async def sleeps(run: Run, how: str = "sleeps") -> str:
    """Waits to be let go; may not want to stop, or take its time."""
    await run.say("here")
    while not let_go.is_set():
        try:
            await let_go.wait()
        except asyncio.CancelledError:
            seen.append(f"{how} is to stop")
            if how == "ignores":
                continue
            raise
    return "slept"


@app.agent(timeout_s=0.2)
async def hurries(run: Run) -> None:
    await asyncio.sleep(3600)


@app.agent
async def asks(run: Run, prompt: str) -> bool:
    return bool(await run.approve(prompt))


@app.agent
async def calls(run: Run, agent: str, input: Any = None) -> Any:
    return await run.call(agent, input)


@app.agent
async def copes(run: Run, agent: str, input: Any = None) -> Any:
    """Calls, tells what came of it, and goes on."""
    try:
        return repr(await run.call(agent, input))
    except RunFailed as error:
        await run.say("went on")
        return {"run_id": error.run_id, "status": error.run_status, "type": error.type, "message": str(error)}


@app.agent
async def side_by_side(run: Run, calls: list[tuple[str, Any]]) -> list[Any]:
    return await asyncio.gather(*[run.call(agent, input) for agent, input in calls])


async def family(place: Place, root: RunResource | RunHandle) -> list[RunResource]:
    """The run and its descendants, in the order they were begun."""
    runs = await place.client.runs(thread_id=root.thread_id)
    return sorted(runs, key=lambda run: run.first_seq or 0)


async def child_of(place: Place, root: RunHandle, agent: str) -> RunHandle:
    """A descendant, once it has said something."""
    async with asyncio.timeout(WAIT_S), aclosing(root.events()) as events:
        agents: dict[str | None, str] = {}
        async for event in events:
            if event.type == "run_queued":
                agents[event.run_id] = str(event.data["agent"])
            elif event.type in {"message_completed", "approval_requested"} and agents.get(event.run_id) == agent:
                assert event.run_id is not None
                handle = place.client.run(event.run_id)
                await handle.refresh()
                return handle
    raise AssertionError(f"no {agent} was heard of")


def ends(events: list[Event]) -> list[tuple[str | None, str, object]]:
    return [(event.run_id, event.type, event.data.get("reason")) for event in events if event.type in TERMINAL_EVENTS]


# --- calls ---------------------------------------------------------------------------------------------------


async def test_a_call_gives_what_the_called_agent_returns_as_its_annotation_says(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        one = await place.finished("copes", {"agent": "reports", "input": 7})
        other = await place.finished("calls", {"agent": "counts", "input": 3})
        root, child = await family(place, one)

    assert one.output == "Report(number=7)"
    assert other.output == "0 1 2 "
    assert (child.parent_run_id, child.root_run_id, child.attempt) == (root.run_id, root.run_id, 1)
    assert (child.agent, child.input, child.output, child.status) == ("reports", 7, {"number": 7}, "completed")


async def test_an_input_may_be_what_json_can_be_made_of(tmp_path: Path) -> None:
    other = Runstone()

    @other.agent
    async def child(run: Run, report: Report, others: list[Report]) -> int:
        return report.number + sum(other.number for other in others)

    @other.agent
    async def agent(run: Run) -> int:
        with pytest.raises(Invalid, match="input"):
            await run.call("child", {"report": object()})
        found: int = await run.call("child", {"report": Report(number=1), "others": [Report(number=2)]})
        return found

    async with running(other, tmp_path) as place:
        assert (await place.finished("agent")).output == 3


async def test_a_family_has_one_slot_however_large_it_is(tmp_path: Path) -> None:
    async with running(app, tmp_path, slots=1) as place:
        many = [("calls", {"agent": "reports", "input": number}) for number in range(5)]
        run = await place.finished("side_by_side", {"calls": many})
    assert run.output == [{"number": number} for number in range(5)]


async def test_each_level_is_a_part_of_the_one_above_and_ends_before_it(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        chain = {"agent": "calls", "input": {"agent": "calls", "input": {"agent": "reports", "input": 1}}}
        run = await place.finished("calls", chain)
        runs = await family(place, run)
        events = await place.events(run)

    assert run.output == {"number": 1}
    assert [member.agent for member in runs] == ["calls", "calls", "calls", "reports"]
    assert [member.parent_run_id for member in runs] == [None, *[member.run_id for member in runs[:-1]]]
    assert {member.root_run_id for member in runs} == {run.run_id}
    assert [run_id for run_id, _, _ in ends(events)] == [member.run_id for member in reversed(runs)]


async def test_an_agent_that_does_not_exist_and_an_input_that_does_not_fit_are_errors_where_the_call_is(
    tmp_path: Path,
) -> None:
    other = Runstone()

    @other.agent
    async def child(run: Run, number: int) -> None: ...

    @other.agent
    async def agent(run: Run) -> str:
        with pytest.raises(UnknownAgent, match="no agent 'nobody'"):
            await run.call("nobody")
        with pytest.raises(Invalid, match="number"):
            await run.call("child", {"number": "many"})
        with pytest.raises(Invalid, match="key"):
            await run.call("child", 1, key="k" * 1000)
        return "went on"

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        assert run.output == "went on"
        assert [member.run_id for member in await family(place, run)] == [run.run_id]


async def test_what_children_say_is_shown_where_it_is_asked_for_and_in_the_stream_of_the_root(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        two = [["reports", 1], ["calls", {"agent": "counts", "input": 2}]]
        handle = await place.start("side_by_side", {"calls": two})
        async with asyncio.timeout(WAIT_S), aclosing(handle.events()) as stream:
            streamed = [event async for event in stream]
        shown = await place.client.messages(handle.thread_id)
        everything = await place.client.messages(handle.thread_id, children=True)
        of_root = await place.client.messages(handle.thread_id, run_id=handle.run_id, children=True)
        all_events = [event for event in await place.events(handle) if event.run_id is not None]

    assert shown == []
    assert sorted(message.content for message in everything) == ["0 1 ", "0 1 ", "report 1"]  # who returns text says it
    assert of_root == everything
    assert [event.seq for event in streamed] == [event.seq for event in all_events]
    assert len({event.run_id for event in streamed}) == 4


# --- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "type", "message"),
    [("bug", "LookupError", "LookupError: look for err_"), ("said", "AgentError", "for all to read")],
)
async def test_a_failed_child_is_an_error_that_its_caller_can_catch(
    tmp_path: Path, how: str, type: str, message: str
) -> None:
    async with running(app, tmp_path) as place:
        with capture_logs() as logs:
            run = await place.finished("copes", {"agent": "fails", "input": how})
        _, child = await family(place, run)

    assert run.status == "completed"
    assert isinstance(run.output, dict)
    assert (run.output["run_id"], run.output["status"], run.output["type"]) == (child.run_id, "failed", type)
    assert str(run.output["message"]).startswith(message)
    assert child.status == "failed"
    assert "a background task died" not in [line["event"] for line in logs]


async def test_a_failed_child_that_nobody_catches_fails_its_caller_too(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("calls", {"agent": "calls", "input": {"agent": "fails", "input": "said"}})
        assert run.error is not None
        assert (run.error.type, run.error.message) == ("RunFailed", "for all to read")
        assert [member.status for member in await family(place, run)] == ["failed"] * 3


async def test_a_child_has_its_own_time(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("copes", {"agent": "hurries"})
    assert isinstance(run.output, dict)
    assert (run.output["status"], run.output["type"]) == ("failed", "Timeout")


# --- stops ------------------------------------------------------------------------------------------------------


async def test_a_cancel_reaches_everybody_below_and_they_end_first(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("calls", {"agent": "calls", "input": {"agent": "sleeps"}})
        await child_of(place, handle, "sleeps")
        await handle.cancel("enough")
        run = await place.ended(handle)
        root, middle, low = await family(place, run)
        events = await place.events(run)

    assert seen == ["sleeps is to stop"]
    assert ends(events) == [
        (low.run_id, "agent_cancelled", "parent"),
        (middle.run_id, "agent_cancelled", "parent"),
        (root.run_id, "agent_cancelled", "enough"),
    ]


async def test_a_child_that_does_not_stop_ends_with_its_caller_at_the_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runstone.runtime.executor.CANCEL_DEADLINE_S", 0.3)
    async with running(app, tmp_path) as place:
        handle = await place.start("calls", {"agent": "sleeps", "input": "ignores"})
        await child_of(place, handle, "sleeps")
        started = asyncio.get_running_loop().time()
        with capture_logs() as logs:
            await handle.cancel()
            run = await place.ended(handle)
            took = asyncio.get_running_loop().time() - started
            root, child = await family(place, run)
            let_go.set()
            task = place.system.worker.registry.get(child.run_id).task
            await asyncio.wait({task}, timeout=WAIT_S)
        events = await place.events(run)

    assert 0.25 <= took < 5
    assert set(seen) == {"ignores is to stop"}
    assert [end[:2] for end in ends(events)] == [(child.run_id, "agent_cancelled"), (root.run_id, "agent_cancelled")]
    assert events[-1].run_id == root.run_id
    assert "a background task died" not in [line["event"] for line in logs]


async def test_a_cancel_of_a_child_alone_is_an_error_in_its_caller_which_goes_on(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        handle = await place.start("copes", {"agent": "sleeps"})
        child = await child_of(place, handle, "sleeps")
        await child.cancel("not this one")
        run = await place.ended(handle)
        assert (await child.refresh()).status == "cancelled"

    assert run.status == "completed"
    assert isinstance(run.output, dict)
    assert (run.output["run_id"], run.output["status"], run.output["type"]) == (child.run_id, "cancelled", "Cancelled")


async def test_a_child_that_is_ended_over_its_head_is_an_error_in_its_caller_which_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deadline of its cancel is enforced by the look at what is past its time, before its attempt does so."""
    monkeypatch.setattr("runstone.commands.runs.CANCEL_DEADLINE_S", 0.1)
    monkeypatch.setattr("runstone.runtime.executor.CANCEL_DEADLINE_S", 4.0)
    async with running(app, tmp_path) as place:
        handle = await place.start("copes", {"agent": "sleeps", "input": "ignores"})
        child = await child_of(place, handle, "sleeps")
        await child.cancel()
        run = await place.ended(handle)
        let_go.set()

    assert run.status == "completed"
    assert isinstance(run.output, dict)
    assert (run.output["run_id"], run.output["status"]) == (child.run_id, "cancelled")


async def test_a_call_that_is_given_up_ends_the_child_and_the_caller_goes_on(tmp_path: Path) -> None:
    other = Runstone()
    begun = asyncio.Event()

    @other.agent
    async def child(run: Run) -> None:
        begun.set()
        await asyncio.sleep(3600)

    @other.agent
    async def agent(run: Run) -> str:
        call = asyncio.ensure_future(run.call("child"))
        await begun.wait()
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await run.say("it has ended")
        return "went on"

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        _, called = await family(place, run)
        events = await place.events(run)
    assert run.output == "went on"
    assert ends(events) == [(called.run_id, "agent_cancelled", "parent"), (run.run_id, "agent_completed", None)]
    types = [event.type for event in events]
    assert types.index("agent_cancelled") < types.index("message_started")


async def test_a_call_that_is_given_up_while_it_begins_leaves_no_child_behind(tmp_path: Path) -> None:
    other = Runstone()

    @other.agent
    async def child(run: Run) -> None:
        await asyncio.sleep(3600)

    @other.agent
    async def agent(run: Run) -> str:
        call = asyncio.ensure_future(run.call("child"))
        await asyncio.sleep(0)  # it has asked for its child, and has no answer yet
        call.cancel()
        with suppress(asyncio.CancelledError):
            await call
        await run.say("it has ended")
        return "went on"

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        events = await place.events(run)
    assert run.output == "went on"
    (called,) = [event for event in events if event.type == "run_queued" and event.run_id != run.run_id]
    assert ends(events) == [(called.run_id, "agent_cancelled", "parent"), (run.run_id, "agent_completed", None)]
    types = [event.type for event in events]
    assert types.index("agent_cancelled") < types.index("message_started")


async def test_a_child_that_is_left_behind_in_a_task_ends_before_its_caller(tmp_path: Path) -> None:
    other = Runstone()
    begun = asyncio.Event()

    @other.agent
    async def child(run: Run) -> None:
        try:
            async with run.message() as message:
                await message.write("half")
                begun.set()
                await asyncio.sleep(3600)
        finally:
            seen.append("stopped")

    left = []

    @other.agent
    async def agent(run: Run) -> str:
        left.append(asyncio.ensure_future(run.call("child")))
        await begun.wait()
        return "done"

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        _, called = await family(place, run)
        events = await place.events(run)
        (message,) = await place.client.messages(run.thread_id, run_id=called.run_id, children=True)
        await asyncio.wait(left, timeout=WAIT_S)
        assert left[0].exception() is not None

    assert run.status == "completed"
    assert seen == ["stopped"]
    assert ends(events) == [(called.run_id, "agent_cancelled", "parent"), (run.run_id, "agent_completed", None)]
    assert (message.content, message.status, message.reason) == ("half", "partial", "cancelled")


async def test_the_end_of_the_callers_time_ends_its_child(tmp_path: Path) -> None:
    other = Runstone()

    @other.agent
    async def child(run: Run) -> None:
        await asyncio.sleep(3600)

    @other.agent(timeout_s=0.2)
    async def agent(run: Run) -> None:
        await run.call("child")

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        _, called = await family(place, run)
        events = await place.events(run)
    assert ends(events) == [(called.run_id, "agent_cancelled", "parent"), (run.run_id, "agent_failed", None)]
    assert run.error is not None
    assert run.error.type == "Timeout"


# --- waiting ----------------------------------------------------------------------------------------------------


async def test_a_root_waits_while_all_that_it_called_waits_and_runs_while_one_of_them_does(tmp_path: Path) -> None:
    async with running(app, tmp_path, slots=1) as place:
        handle = await place.start("side_by_side", {"calls": [["asks", "may I?"], ["sleeps", "sleeps"]]})
        asking = await child_of(place, handle, "asks")
        await child_of(place, handle, "sleeps")
        assert (await asking.refresh()).status == "waiting"
        assert (await handle.refresh()).status == "running"

        let_go.set()
        sleeper = next(run for run in await family(place, handle) if run.agent == "sleeps")
        await place.ended(place.client.run(sleeper.run_id))
        assert (await handle.refresh()).status == "waiting"
        assert (await place.client.thread(handle.thread_id)).status == "waiting"

        other = await place.finished("reports", 1)  # the only slot is free meanwhile
        assert other.status == "completed"

        approval = next(event for event in await place.events(handle) if event.type == "approval_requested")
        await place.client.approve(str(approval.data["approval_id"]))
        run = await place.ended(handle)
    assert run.output == [True, "slept"]
