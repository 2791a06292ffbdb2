"""A supervisor and those it calls, killed anywhere: they end as if nothing had happened, and nobody is called twice."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from runstone import Action, AgentError, Run, RunFailed, Runstone
from runstone.client import Event
from runstone.states import TERMINAL_EVENTS
from tests.runtime.mortal import die, mortal, note
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HERE = "tests.runtime.test_families_that_die:app"

app = Runstone()


@app.tool(idempotent=True)
async def look_up(order: int, action: Action) -> str:
    note(f"look up {order} as {action.idempotency_key}")
    return f"order {order}"


@app.agent
async def clerk(run: Run, order: int) -> str:
    found: str = await look_up(order)  # type: ignore[call-arg]
    await run.say(found)
    if order == 13:
        raise AgentError("13 is no order")
    note(f"clerk {order} is done")
    return found


@app.agent
async def office(run: Run, orders: list[int]) -> list[str]:
    found: list[str] = await asyncio.gather(*[run.call("clerk", order) for order in orders])
    return found


@app.agent
async def supervisor(run: Run) -> dict[str, Any]:
    """One call, then two side by side, one of which calls two more, then one that fails, then a report."""
    first = await run.call("clerk", 1)
    second, office = await asyncio.gather(run.call("clerk", 2), run.call("office", [3, 4]))
    try:
        await run.call("clerk", 13)
        failure = "none"
    except RunFailed as error:
        failure = f"{error.type}: {error}"

    async def report() -> str:
        note("report")
        await run.say(f"{first}, {second}")
        return "reported"

    return {"found": [first, second, *office], "failure": failure, "report": await run.step("report", report)}


UNDISTURBED = {
    "found": ["order 1", "order 2", "order 3", "order 4"],
    "failure": "AgentError: 13 is no order",
    "report": "reported",
}
CALLED = {("clerk", "1"), ("clerk", "2"), ("office", "[3, 4]"), ("clerk", "3"), ("clerk", "4"), ("clerk", "13")}


def children(events: list[Event]) -> dict[str, list[Event]]:
    """The events of each run that was called, by its id."""
    found: dict[str, list[Event]] = {}
    for event in events:
        if event.type == "run_queued" and "parent_run_id" in event.data:
            found[str(event.run_id)] = []
        if event.run_id in found:
            found[event.run_id].append(event)
    return found


def check_family(events: list[Event]) -> None:
    """Each was called once and ended once; each of its attempts but the last was superseded."""
    called = children(events)
    assert Counter((e[0].data["agent"], str(e[0].data["input"])) for e in called.values()) == Counter(CALLED)
    for of_child in called.values():
        types = [event.type for event in of_child]
        assert sum(kind in TERMINAL_EVENTS for kind in types) == 1
        assert types[-1] in TERMINAL_EVENTS
        assert types[1] == "agent_started"
        attempts = [event.attempt for event in of_child if event.type == "agent_started"]
        assert attempts == list(range(1, len(attempts) + 1))
        superseded = [event.data["attempt"] for event in of_child if event.type == "attempt_superseded"]
        assert superseded == attempts[:-1]


@pytest.mark.timeout(300)
async def test_killed_after_one_commit_or_another_a_family_ends_as_if_nothing_had_happened(
    zygote: Zygote, tmp_path: Path
) -> None:
    await kill_at(zygote, tmp_path, count(2, 5))


@pytest.mark.torture
@pytest.mark.timeout(600)
async def test_killed_after_any_commit_a_family_ends_as_if_nothing_had_happened(zygote: Zygote, tmp_path: Path) -> None:
    await kill_at(zygote, tmp_path, count(1))


async def kill_at(zygote: Zygote, tmp_path: Path, positions: Iterator[int]) -> None:
    """Until a position is beyond the end of the run."""
    attempts_of_children = 0
    for position in positions:
        folder = tmp_path / str(position)
        folder.mkdir()
        async with mortal(zygote, folder, HERE, RUNSTONE_FAILPOINTS=f"after_commit=kill:{position}") as place:
            run = await place.client.start("supervisor", key="the run")
            ended = await place.ended(run)
            events = await place.events(run)
            (report,) = await place.messages(run)
            said = await place.client.messages(run.thread_id, children=True, role="assistant")

            assert (ended.status, ended.output) == ("completed", UNDISTURBED), f"killed after commit {position}"
            check_family(events)
            assert report.content == "order 1, order 2"
            assert sorted(message.content for message in said if message.run_id != run.run_id) == [
                *["order 1", "order 13", "order 2", "order 3", "order 4"]
            ]
            done = Counter(line for line in place.ledger if line.endswith("is done"))
            assert all(count <= 2 for count in done.values())  # twice where the end of the child was not committed
            assert place.ledger.count("report") <= 2
            assert place.findings() == []
            attempts_of_children += sum(
                event.type == "attempt_superseded" for e in children(events).values() for event in e
            )
        if not place.deaths:
            break
    assert position > 15
    assert attempts_of_children  # of those that were under way when they were killed


# --- one death, in a place that is known ---------------------------------------------------------------------------

under_way: set[int] = set()
both = asyncio.Event()


@app.agent
async def waits_once(run: Run, number: int) -> str:
    """Is under way when its first attempt dies, and ends in the second."""
    await run.say(f"attempt {run.attempt} of {number}")
    if run.attempt == 1:
        under_way.add(number)
        if len(under_way) == 2:
            both.set()
        await asyncio.sleep(3600)
    return f"{number} in attempt {run.attempt}"


@app.agent
async def dies_with_children(run: Run) -> list[Any]:
    """One child has ended and two are under way when it dies."""
    found = [await run.call("clerk", 1)]
    calls = [asyncio.ensure_future(run.call("waits_once", number)) for number in (1, 2)]
    if run.attempt == 1:
        await both.wait()
        die()
    return [*found, *await asyncio.gather(*calls)]


async def test_a_child_that_has_ended_gives_its_output_and_one_that_was_under_way_goes_on_as_its_next_attempt(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("dies_with_children")
        events = await place.events(run)
        shown = await place.client.messages(run.thread_id, children=True)
        superseded = await place.client.messages(run.thread_id, children=True, superseded=True, status="superseded")

    assert run.output == ["order 1", "1 in attempt 2", "2 in attempt 2"]
    ended, *others = children(events).values()
    assert [event.attempt for event in ended if event.type == "agent_started"] == [1]
    by_content = {message.content: message.message_id for message in superseded}
    for number, child in enumerate(others, 1):
        assert [event.attempt for event in child if event.type == "agent_started"] == [1, 2]
        (gone,) = [event for event in child if event.type == "attempt_superseded"]
        assert (gone.data["attempt"], gone.data["reason"]) == (1, "lost")
        assert gone.data["messages"] == [by_content[f"attempt 1 of {number}"]]
        assert child[child.index(gone) + 1].type == "agent_started"
    assert len(by_content) == 2
    assert sorted(message.content for message in shown) == ["attempt 2 of 1", "attempt 2 of 2", "order 1"]


@app.agent
async def calls_by_key(run: Run) -> list[Any]:
    """The same input three times, once by a key; another key with another input in each attempt."""
    found = [
        await run.call("numbered", None),
        await run.call("numbered", None, key="k"),
        await run.call("numbered", {"text": f"attempt {run.attempt}"}, key="other"),
        await run.call("numbered", None),
    ]
    if run.attempt == 1:
        die()
    return found


@app.agent
async def numbered(run: Run, text: str | None = None) -> int:
    return note(text)


async def test_a_child_is_found_again_by_its_key_or_as_the_nth_of_equal_calls(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("calls_by_key")
    assert run.output == [1, 2, 3, 4]
    assert place.ledger == ["None", "None", "attempt 1", "None"]


@app.agent
async def asks_before_it_calls_again(run: Run) -> str:
    """Its child is under way when it dies; the next attempt waits for a person before it calls it again."""
    if run.attempt > 1:
        await run.approve("go on?")
    else:
        under_way.add(0)
    try:
        return str(await run.call("waits_once", 1))
    except RunFailed as error:
        return f"{error.run_status}: {error.run_id}"


async def test_a_child_that_is_cancelled_before_it_is_called_again_is_not_started_again(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("asks_before_it_calls_again")
        await place.seen(run, "message_completed")
        place.kill()
        asked = await place.seen(run, "approval_requested")
        (child,) = [found for found in await place.client.runs(thread_id=run.thread_id) if found.agent == "waits_once"]
        await place.client.run(child.run_id).cancel("not that one")
        await place.client.approve(str(asked.data["approval_id"]))
        ended = await place.ended(run)
        (of_child,) = children(await place.events(run)).values()
        assert place.findings() == []

    assert ended.output == f"cancelled: {child.run_id}"
    assert [event.type for event in of_child if event.type.startswith("agent_")] == ["agent_started", "agent_cancelled"]
    assert of_child[-1].data["reason"] == "not that one"


@app.agent
async def step_that_calls(run: Run) -> list[Any]:
    """The same calls in a step and after it."""

    async def work() -> list[str]:
        return [await run.call("clerk", 1), str(await run.call("numbered", None))]

    found = [await run.step("work", work)]
    if run.attempt == 1:
        die()
    found.append(await run.call("numbered", None))
    if run.attempt == 2:
        die()
    return found


async def test_children_of_a_recorded_step_are_not_taken_for_calls_after_it(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("step_that_calls")
    assert run.output == [["order 1", "3"], 4]
    assert [line for line in place.ledger if line == "None"] == ["None", "None"]
