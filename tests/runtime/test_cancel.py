"""Stop means stop: in each state of a run, from two devices at once, against all that may come in between."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runstone import Run, Runstone
from runstone.client.runs import RunHandle
from runstone.states import TERMINAL_EVENTS
from tests.runtime.support import Place, running

pytestmark = pytest.mark.anyio

DEADLINE_S = 0.5


go_on = asyncio.Event()  # what ignores every cancel ends with the test
thread_goes_on = threading.Event()


@pytest.fixture(autouse=True)
def _fresh() -> None:
    go_on.clear()
    thread_goes_on.clear()


@pytest.fixture(autouse=True)
def _short_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstone.runtime.executor.CANCEL_DEADLINE_S", DEADLINE_S)
    monkeypatch.setattr("runstone.commands.runs.CANCEL_DEADLINE_S", DEADLINE_S)


def agents(*, without: str = "") -> Runstone:
    app = Runstone()

    @app.tool
    async def stubborn() -> None:
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)

    @app.tool
    def in_thread() -> None:
        thread_goes_on.wait(20)

    @app.tool
    async def careful() -> None:
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.01)

    async def sleeps(run: Run) -> None:
        await run.say("before")
        await asyncio.sleep(3600)

    async def asks(run: Run) -> str:
        await run.approve("May I?")
        return "went on"

    async def calls(run: Run) -> None:
        await run.call("sleeps")

    async def uses_stubborn(run: Run) -> None:
        await stubborn()

    async def uses_thread(run: Run) -> None:
        await in_thread()

    async def uses_careful(run: Run) -> None:
        await careful()

    async def quick(run: Run) -> str:
        return "done"

    for function in (sleeps, asks, calls, uses_stubborn, uses_thread, uses_careful, quick):
        if function.__name__ != without:
            app.agent(function)
    return app


async def ends_once(place: Place, run: RunHandle, *, asked: int = 1) -> None:
    """The log tells it: the cancel once, then one end, and nothing of the run after it; nothing is left open."""
    events = await place.events(run)
    own = [event for event in events if event.run_id == run.run_id]
    types = [event.type for event in own]
    assert types.count("cancel_requested") == asked
    assert [type for type in types if type in TERMINAL_EVENTS] == ["agent_cancelled"]
    assert types[-1] == "agent_cancelled"
    assert all(action.status != "pending" for action in await place.actions(run))
    opened = {event.data["approval_id"] for event in events if event.type == "approval_requested"}
    assert opened == {event.data["approval_id"] for event in events if event.type == "approval_resolved"}


async def twice_at_once(run: RunHandle, place: Place) -> None:
    other = place.app.client()
    async with other:
        one, two = await asyncio.gather(run.cancel("one"), other.run(run.run_id).cancel("two"))
        assert {one.run_id, two.run_id} == {run.run_id}


async def queued(place: Place) -> RunHandle:
    first = await place.start("sleeps")
    return await place.start("quick", thread_id=first.thread_id)


def under_way(agent: str, seen: str) -> Callable[[Place], Awaitable[RunHandle]]:
    async def start(place: Place) -> RunHandle:
        run = await place.start(agent)
        await place.seen(run, seen)
        return run

    return start


STATES: dict[str, Callable[[Place], Awaitable[RunHandle]]] = {
    "queued": queued,
    "running": under_way("sleeps", "message_completed"),
    "waiting": under_way("asks", "approval_requested"),
    "calling": under_way("calls", "message_completed"),
    "in a careful tool": under_way("uses_careful", "tool_executing"),
    "in a tool that ignores it": under_way("uses_stubborn", "tool_executing"),
    "in a tool in a thread": under_way("uses_thread", "tool_executing"),
}


@pytest.mark.parametrize("state", STATES)
async def test_two_devices_at_once_make_one_cancel_and_one_end_within_the_deadline(tmp_path: Path, state: str) -> None:
    async with running(agents(), tmp_path) as place:
        run = await STATES[state](place)
        await twice_at_once(run, place)
        async with asyncio.timeout(DEADLINE_S + 5):
            ended = await run.result()
        assert ended.status == "cancelled"
        await ends_once(place, run)
        go_on.set()
        thread_goes_on.set()


async def test_a_cancel_that_races_the_end_leaves_one_end_whoever_was_first(tmp_path: Path) -> None:
    async with running(agents(), tmp_path) as place:
        runs = [await place.start("quick") for _ in range(100)]
        await asyncio.gather(*(run.cancel() for run in runs))
        statuses = set()
        for run in runs:
            ended = await place.ended(run)
            statuses.add(ended.status)
            types = [event.type for event in await place.events(run) if event.run_id == run.run_id]
            assert sum(type in TERMINAL_EVENTS for type in types) == 1
            assert types[-1] in TERMINAL_EVENTS
            assert ("cancel_requested" in types) <= (ended.status == "cancelled")
        assert statuses <= {"completed", "cancelled"}


async def test_a_cancel_that_races_the_answer_leaves_one_end(tmp_path: Path) -> None:
    async with running(agents(), tmp_path) as place:
        for _ in range(20):
            run = await place.start("asks")
            approval_id = (await place.seen(run, "approval_requested")).data["approval_id"]
            await asyncio.gather(run.cancel(), place.client.approve(str(approval_id)), return_exceptions=True)
            assert (await place.ended(run)).status in {"completed", "cancelled"}
            types = [event.type for event in await place.events(run) if event.run_id == run.run_id]
            assert sum(type in TERMINAL_EVENTS for type in types) == 1
            assert types.count("approval_resolved") == 1


@pytest.mark.parametrize("agent", ["asks", "sleeps"])
async def test_what_nobody_runs_ends_at_once(tmp_path: Path, agent: str) -> None:
    """Its worker is gone, and nobody claims it: it waits for a person, or no worker knows its agent."""
    async with running(agents(), tmp_path) as place:
        run = await place.start(agent)
        await place.seen(run, "approval_requested" if agent == "asks" else "message_completed")
    async with running(agents(without=agent), tmp_path) as place:
        again = place.client.run(run.run_id)
        assert (await again.refresh()).status == ("waiting" if agent == "asks" else "running")
        assert (await again.cancel("enough")).status == "cancelled", "in the answer to the cancel itself"
        await ends_once(place, again)
