"""What a later attempt finds of the tools that earlier ones called, and what it must not call again."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from runstone import Action, ActionDiverged, ActionInterrupted, Run, Runstone, ToolError
from tests.runtime.mortal import die, mortal, note
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HERE = "tests.runtime.test_replay:app"

app = Runstone()
paid = asyncio.Event()


class Receipt(BaseModel):
    order: int
    paid: bool


@app.tool
async def counts(what: str) -> int:
    return note(what)


@app.tool
async def pay(order: int) -> Receipt:
    note(f"pay {order}")
    return Receipt(order=order, paid=True)


@app.tool
def refuses(order: int) -> None:
    note(f"refuses {order}")
    raise LookupError(f"no order {order}")


@app.tool
async def ships(order: int, dies: bool = True) -> str:
    """Is not finished when the process dies in it."""
    note(f"ships {order}")
    if dies:
        die()
    return f"shipped {order}"


@app.tool(idempotent=True)
async def stores(order: int, lives: int, action: Action) -> str:
    """Dies in every attempt before the given one."""
    run = Run.current()
    assert run is not None
    note(f"stores {order} as {action.idempotency_key}")
    if run.attempt < lives:
        die()
    return action.idempotency_key


@app.tool(idempotent=True)
async def reads(what: str) -> str:
    note(f"reads {what}")
    return what


# --- finished calls -----------------------------------------------------------------------------------------


@app.agent
async def finished(run: Run) -> dict[str, str]:
    receipt = await pay(order=1)
    try:
        await refuses(order=2)
        error = "none"
    except ToolError as failure:
        error = f"{failure.type}: {failure}"
    if run.attempt < 3:
        die()
    return {"receipt": repr(receipt), "error": error}


async def test_a_finished_call_gives_its_result_or_its_error_again_and_is_not_made_again(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("finished")
        actions = await place.actions(run)

    assert run.attempt == 3
    assert run.output == {"receipt": "Receipt(order=1, paid=True)", "error": "LookupError: no order 2"}
    assert place.ledger == ["pay 1", "refuses 2"]
    assert [(action.tool, action.status) for action in actions] == [("pay", "success"), ("refuses", "error")]


@app.agent
async def equal_calls(run: Run) -> list[int]:
    found = []
    for _ in range(4):
        found.append(await counts("x"))
        if run.attempt == 1 and len(found) == 3:
            die()
    return found


async def test_the_nth_of_equal_calls_gives_the_nth_result(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("equal_calls")
    assert run.output == [1, 2, 3, 4]
    assert place.ledger == ["x"] * 4


@app.agent
async def called_by_key(run: Run) -> list[Any]:
    """Each attempt gives other inputs; one call is known by its key, also from another task."""
    found: list[Any] = [await counts.options(key="first")(f"by attempt {run.attempt}")]
    found += await asyncio.gather(counts.options(key="aside")(f"aside in {run.attempt}"))
    try:
        await ships.options(key="parcel")(run.attempt, dies=run.attempt == 1)
    except ActionInterrupted:
        found.append("interrupted")
    return found


async def test_a_call_with_a_key_is_found_again_whatever_its_input(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("called_by_key")
        executing = await place.events(run, "tool_executing")
    assert run.output == [1, 2, "interrupted"]
    assert place.ledger == ["by attempt 1", "aside in 1", "ships 1"]
    assert [event.data.get("key") for event in executing] == ["first", "aside", "parcel"]


@app.tool(idempotent=True, approval="always")
async def transfers(amount: int) -> int:
    note(f"transfers {amount}")
    run = Run.current()
    if run is not None and run.attempt == 1:
        die()
    return amount


@app.agent
async def another_amount(run: Run) -> int:
    """Under the same key, each attempt wants to transfer ten times as much."""
    return await transfers.options(key="rent")(10**run.attempt)


async def test_a_yes_to_one_input_is_none_to_another_that_comes_under_its_key(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("another_amount")
        async with asyncio.timeout(60), aclosing(run.events()) as events:
            async for event in events:
                if event.type == "approval_requested":
                    await place.client.approve(str(event.data["approval_id"]))
        requested = await place.events(run, "approval_requested")
        assert [event.data["input"] for event in requested] == [{"amount": 10}, {"amount": 100}]
        assert (await place.ended(run)).output == 100
        assert not place.findings()
    assert place.ledger == ["transfers 10", "transfers 100"]


@app.agent
async def key_or_not(run: Run) -> list[int]:
    """A call without a key is not the one with a key, though their inputs are equal."""
    found = [await counts.options(key="k")("x")]
    if run.attempt == 1:
        die()
    found.append(await counts("x"))
    return found


async def test_a_key_names_one_call_and_no_other(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        assert (await place.finished("key_or_not")).output == [1, 2]
    assert place.ledger == ["x", "x"]


# --- interrupted calls ----------------------------------------------------------------------------------------


@app.agent
async def interrupted(run: Run) -> str:
    try:
        return await ships(1)
    except ActionInterrupted as error:
        note(str(error))
        if run.attempt == 2:
            die()
        return "not known"


async def test_an_interrupted_call_is_not_made_again_and_the_agent_is_told_so_in_every_attempt(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("interrupted")
        (action,) = await place.actions(run)

    assert (run.output, run.attempt, action.status) == ("not known", 3, "interrupted")
    told = (
        f"ships was under way when an earlier attempt died ({action.action_id}); whether it took effect is not known."
    )
    assert place.ledger == ["ships 1", told, told]


@app.agent
async def uncaught(run: Run) -> None:
    await ships(1)


async def test_a_run_that_does_not_cope_with_an_interrupted_call_fails_by_that_name(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("uncaught")
    assert run.error is not None
    assert (run.status, run.error.type) == ("failed", "ActionInterrupted")
    assert "whether it took effect is not known" in run.error.message
    assert place.ledger == ["ships 1"]


@app.agent
async def stored(run: Run) -> list[str]:
    return [await stores(1, 3), await stores(1, 3)]  # type: ignore[call-arg]


async def test_an_idempotent_call_is_made_again_with_the_same_key_until_it_has_ended(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("stored")
        executing = await place.events(run, "tool_executing")
        actions = await place.actions(run)

    one, two, _, other = [str(event.data["action_id"]) for event in executing]
    assert run.output == [one, other]
    assert [event.data.get("retry_of") for event in executing] == [None, one, two, None]
    assert [action.status for action in actions] == ["interrupted", "interrupted", "success", "success"]
    assert place.ledger == [f"stores 1 as {one}"] * 3 + [f"stores 1 as {other}"]


@app.tool(idempotent=True)
async def outer(dies_in: int) -> int:
    """Calls another tool, which has its effect, before it dies."""
    receipt = await pay(7)
    paid.set()
    run = Run.current()
    assert run is not None
    if run.attempt == dies_in:
        die()
    await asyncio.sleep(0 if run.attempt > 1 else 3600)
    return receipt.order


@app.agent
async def calls_inside(run: Run) -> int:
    return await outer(1)


@app.agent
async def gives_up(run: Run) -> int:
    if run.attempt == 1:
        call = asyncio.ensure_future(outer(0))
        await paid.wait()
        call.cancel()
        await asyncio.wait({call})
        await run.flush()
        die()
    return await outer(0)


@pytest.mark.parametrize("agent", ["calls_inside", "gives_up"])
async def test_what_an_interrupted_tool_had_called_is_not_called_again_when_it_is_made_again(
    zygote: Zygote, tmp_path: Path, agent: str
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished(agent)
    assert run.output == 7
    assert place.ledger == ["pay 7"]


@app.agent
async def records_others(run: Run) -> list[str]:
    """A block that records somebody else's work is run by every attempt, and so is what it does itself."""
    found = []
    async with run.action("somebody else", {"order": 3}) as action:
        found.append(repr(await pay(3)))
        action.complete("done")
    if run.attempt == 1:
        die()
    found.append(repr(await pay(3)))
    return found


async def test_a_tool_that_was_called_while_somebody_elses_work_was_recorded_is_not_called_again(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("records_others")
    assert run.output == ["Receipt(order=3, paid=True)"] * 2
    assert place.ledger == ["pay 3", "pay 3"]


@app.agent
async def records_its_namesake(run: Run) -> str:
    """Somebody else's work that is named like a tool of one's own."""
    async with run.action("counts", {"what": "x"}) as action:
        action.complete(99)
    if run.attempt == 1:
        die()
    return str(await counts("x"))


async def test_what_somebody_else_did_is_not_taken_for_a_call_of_a_tool_of_that_name(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("records_its_namesake")
    assert run.output == "1"
    assert place.ledger == ["x"]


# --- another path ---------------------------------------------------------------------------------------------


@app.agent
async def diverges(run: Run, how: str) -> list[Any]:
    """Takes another path in its second attempt than in its first."""
    number = run.attempt
    found: list[Any]
    if how == "own task":
        found = [await counts(f"path {number}")]
    elif how == "other tasks":
        found = [*await asyncio.gather(counts(f"path {number}"), counts(f"side {number}"))]
    elif how == "idempotent":
        found = [await reads(f"path {number}")]
    elif how == "beside":
        found = [] if number == 1 else [*await asyncio.gather(counts("another"))]
        found.append(await counts("own"))
    elif how == "longer":
        found = [await counts(f"path {step}") for step in range(number)]
    else:
        found = [await counts(f"path {number}"), await reads("x")] if number == 1 else [await reads("x")]
    if number == 1:
        die()
    return found


@pytest.mark.parametrize(
    ("how", "output", "ledger"),
    [
        ("other tasks", [3, 4], ["path 1", "side 1", "path 2", "side 2"]),
        ("idempotent", ["path 2"], ["reads path 1", "reads path 2"]),
        ("longer", [1, 2], ["path 0", "path 1"]),
        ("fewer", ["x"], ["path 1", "reads x"]),
        ("beside", [2, 1], ["own", "another"]),
    ],
)
async def test_a_path_that_may_differ_is_taken(
    zygote: Zygote, tmp_path: Path, how: str, output: object, ledger: list[str]
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("diverges", {"how": how})
    assert run.output == output
    assert place.ledger == ledger


async def test_a_call_that_the_attempt_before_did_not_make_is_refused_where_its_own_may_have_had_an_effect(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("diverges", {"how": "own task"})
    assert run.error is not None
    assert run.error.type == ActionDiverged.__name__
    assert place.ledger == ["path 1"]


@app.agent
async def beside(run: Run) -> list[int]:
    """A call in a task of its own is made late; the run's own task makes others of the same tool meanwhile."""
    own = asyncio.Event()

    async def late() -> int:
        if run.attempt == 2:
            await own.wait()
        return await counts("beside")

    task = asyncio.create_task(late())
    found = [await counts("one")]
    if run.attempt == 1:
        await task
        die()
    found.append(await counts("two"))
    own.set()
    return [*found, await task]


async def test_a_call_that_another_task_has_yet_to_make_again_does_not_look_like_another_path(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("beside")
    assert run.error is None
    assert sorted(place.ledger) == ["beside", "one", "two"]
