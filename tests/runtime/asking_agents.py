"""Agents that ask people, in a process of their own; some of them die between an answer and what it allows."""

from __future__ import annotations

from typing import Any, cast

from runstone import ApprovalDenied, Run, Runstone
from runstone.runtime.answers import Answers
from runstone.store import RecordedApproval
from tests.runtime.mortal import die, note

app = Runstone()


class Deadly:
    """Answers that kill who gets them, before anything comes of it."""

    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    async def wait(self, run_id: str, approval_id: str) -> RecordedApproval:
        await self._answers.wait(run_id, approval_id)
        die()
        raise AssertionError("unreachable")


def dies_of_an_answer(run: Run) -> None:
    run._attempt.answers = cast(Answers, Deadly(run._attempt.answers))


@app.tool(approval="always")
async def pay(order: int, cents: int = 100) -> str:
    note(f"pay {order} {cents}")
    return f"paid {order}"


@app.agent
async def asks(run: Run) -> dict[str, Any]:
    """Counts its attempts, and asks both ways."""
    note(f"attempt {run.attempt}")
    decision = await run.approve("May I?", {"n": 1})
    count = await run.ask("How many?", int)
    return {"by": decision.by, "comment": decision.comment, "yes": bool(decision), "count": count}


@app.agent
async def guarded(run: Run) -> str:
    if run.attempt == 1:
        dies_of_an_answer(run)
    return await pay(order=1)


@app.agent
async def pays_another_sum(run: Run) -> str:
    """By its key the call is the same one; what was approved of it is not."""
    if run.attempt == 1:
        dies_of_an_answer(run)
    return await pay.options(key="the order")(order=1, cents=100 * run.attempt)


@app.agent
async def pays_twice(run: Run) -> list[str]:
    """Dies once its first call is done, and finds it again while the second still has to be asked for."""
    first = await pay(order=1)
    if run.attempt == 1:
        die()
    return [first, await pay(order=1)]


@app.agent
async def is_denied_then_pays(run: Run) -> list[str]:
    try:
        denied = await pay(order=1)
    except ApprovalDenied:
        denied = "denied"
    paid = await pay(order=1)
    if run.attempt == 1:
        die()
    return [denied, paid]


@app.agent
async def child(run: Run) -> bool:
    return bool(await run.approve("May the child?"))


@app.agent
async def parent(run: Run) -> list[bool]:
    note(f"attempt {run.attempt}")
    return [await run.call("child"), await run.call("child")]
