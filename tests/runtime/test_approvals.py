"""A run that asks people waits for their answer, and for nothing else: without a slot, without time, over any crash."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, WithJsonSchema

from runstone import ApprovalDenied, Run, Runstone
from runstone.client.runs import RunHandle
from runstone.errors import AlreadyDecided, Invalid, NotFound, TooLarge
from runstone.limits import APPROVAL_S_MAX, INPUT_BYTES_MAX, PROMPT_CHARS_MAX
from tests.runtime.mortal import Mortal, mortal
from tests.runtime.support import Place, running
from tests.support.zygote import Zygote

pytestmark = pytest.mark.anyio

HERE = "tests.runtime.asking_agents:app"


class Size(BaseModel):
    width: int
    height: int = 1


app = Runstone()
paid: list[int] = []


@pytest.fixture(autouse=True)
def _nothing_paid() -> None:
    paid.clear()


@app.tool(approval="always")
async def pay(order: int) -> str:
    paid.append(order)
    return f"paid {order}"


@app.agent
async def approves(run: Run, expires_in_s: float = 3600, input: object = None) -> dict[str, Any]:
    decision = await run.approve("May I?", input, expires_in_s=expires_in_s)  # type: ignore[arg-type]
    return {"yes": bool(decision), "status": decision.status, "by": decision.by, "comment": decision.comment}


@app.agent
async def pays(run: Run, orders: list[int]) -> list[str]:
    said = []
    for order in orders:
        try:
            said.append(await pay(order=order))
        except ApprovalDenied as denied:
            said.append(denied.detail)
    return said


@app.agent
async def measures(run: Run) -> int:
    size = await run.ask("How large?", Size)
    assert isinstance(size, Size)
    return size.width * size.height


@app.agent
async def asks_badly(run: Run, prompt: str = "?", expires_in_s: float = 1.0, input_bytes: int = 0) -> str:
    try:
        await run.approve(prompt, "x" * input_bytes, expires_in_s=expires_in_s)
    except (Invalid, TooLarge) as error:
        return error.code
    return "asked"


@app.agent
async def quick(run: Run) -> str:
    return "done"


async def asked(place: Place, run: RunHandle, count: int = 1) -> str:
    """The id of the run's open question, the `count`th that it asks."""
    event = await place.seen(run, "approval_requested", count)
    return str(event.data["approval_id"])


async def resolutions(place: Place, run: RunHandle) -> list[Any]:
    return [event.data["decision"] for event in await place.events(run, "approval_resolved")]


# --- what the agent gets -----------------------------------------------------------------------------------------


async def test_a_decision_is_true_only_when_a_person_approved(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        yes, no = await place.start("approves"), await place.start("approves")
        await place.client.approve(await asked(place, yes), comment="fine")
        await place.client.deny(await asked(place, no))
        approved, denied = (await place.ended(yes)).output, (await place.ended(no)).output
        assert approved == {"yes": True, "status": "approved", "by": "local", "comment": "fine"}
        assert denied == {"yes": False, "status": "denied", "by": "local", "comment": None}


async def test_an_answer_comes_as_the_type_that_was_asked_for(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("measures")
        question = await asked(place, run)
        with pytest.raises(Invalid) as caught:
            await place.client.answer(question, {"height": 2})
        assert [error["path"] for error in caught.value.errors] == ["value"]
        approval = await place.client.answer(question, {"width": 3, "height": 2})
        assert (approval.status, approval.value) == ("answered", {"width": 3, "height": 2})
        assert (await place.ended(run)).output == 6
        assert await run.approvals() == [approval]


async def test_a_question_that_nobody_answers_is_denied_to_the_agent(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("measures")
        await place.client.deny(await asked(place, run))
        ended = await place.ended(run)
        assert ended.error is not None
        assert (ended.status, ended.error.type) == ("failed", "ApprovalDenied")


async def test_a_question_whose_time_is_over_is_expired_and_the_run_goes_on(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("approves", {"expires_in_s": 0.001})
        ended = await place.ended(run)
        assert ended.output == {"yes": False, "status": "expired", "by": None, "comment": None}
        (approval,) = await run.approvals()
        with pytest.raises(AlreadyDecided, match="expired"):
            await place.client.approve(approval.approval_id)
        assert await resolutions(place, run) == ["expired"]


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"prompt": "x" * (PROMPT_CHARS_MAX + 1)}, "invalid"),
        ({"expires_in_s": 0}, "invalid"),
        ({"expires_in_s": APPROVAL_S_MAX + 1}, "invalid"),
        ({"input_bytes": INPUT_BYTES_MAX}, "too_large"),
    ],
)
async def test_what_cannot_be_asked_is_refused_before_anybody_sees_it(
    tmp_path: Path, given: dict[str, Any], code: str
) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("asks_badly", given)
        assert run.output == code
        assert await place.client.approvals() == []


@pytest.mark.parametrize(
    ("schema", "code"),
    [
        ({"$ref": "http://127.0.0.1:1/schema"}, "invalid"),
        ({"type": "nonsense"}, "invalid"),
        ({"description": "x" * INPUT_BYTES_MAX}, "too_large"),
    ],
)
async def test_what_nobody_could_answer_is_not_asked(tmp_path: Path, schema: dict[str, Any], code: str) -> None:
    odd = Runstone()

    @odd.agent
    async def asks(run: Run) -> str:
        try:
            await run.ask("Well?", Annotated[object, WithJsonSchema(schema)])
        except (Invalid, TooLarge) as error:
            return error.code
        return "asked"

    async with running(odd, tmp_path) as place:
        assert (await place.finished("asks")).output == code
        assert await place.client.approvals() == []


# --- tools that need a word ---------------------------------------------------------------------------------------


async def test_an_approved_call_is_made_with_the_id_that_was_kept_for_it(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("pays", [7])
        question = await asked(place, run)
        assert await place.actions(run) == []
        assert paid == []
        approval = await place.client.approve(question)
        assert (await place.ended(run)).output == ["paid 7"]
        (action,) = await place.actions(run)
        assert (action.action_id, action.status, action.input) == (approval.action_id, "success", {"order": 7})
        assert (approval.prompt, approval.input) == ("Run pay?", {"order": 7})
        order = ["approval_requested", "approval_resolved", "tool_executing", "tool_completed"]
        assert [type for type in await place.types(run) if type in order] == order


async def test_a_denied_call_is_never_made_and_raises_in_the_agent(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("pays", [7])
        await place.client.deny(await asked(place, run))
        assert (await place.ended(run)).output == ["pay was not approved: it is denied."]
        assert await place.actions(run) == []
        assert paid == []


async def test_two_calls_alike_are_asked_for_twice(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("pays", [7, 7])
        await place.client.approve(await asked(place, run))
        second = await asked(place, run, 2)
        assert paid == [7], "the second waits for a word of its own"
        await place.client.deny(second)
        assert (await place.ended(run)).output == ["paid 7", "pay was not approved: it is denied."]
        assert paid == [7]


# --- from anywhere --------------------------------------------------------------------------------------------------


async def test_who_watches_sees_the_answer_that_came_from_another_device(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place, place.app.client() as phone:
        run = await place.start("approves")
        seen = []
        async with asyncio.timeout(30), aclosing(run.events()) as events:
            async for event in events:
                seen.append(event.type)
                if event.type == "approval_requested":
                    (approval,) = await phone.approvals(status="open")
                    await phone.approve(approval.approval_id)
        assert seen[-3:] == ["approval_requested", "approval_resolved", "agent_completed"]


async def test_of_two_devices_that_decide_at_once_exactly_one_does(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place, place.app.client() as phone, place.app.client() as laptop:
        for _ in range(10):
            run = await place.start("approves")
            question = await asked(place, run)
            answers = await asyncio.gather(phone.approve(question), laptop.deny(question), return_exceptions=True)
            (refused,) = [answer for answer in answers if isinstance(answer, BaseException)]
            (taken,) = [answer for answer in answers if not isinstance(answer, BaseException)]
            assert isinstance(refused, AlreadyDecided)
            assert await resolutions(place, run) == [taken.status]
            output = (await place.ended(run)).output
            assert isinstance(output, dict)
            assert output["status"] == taken.status


async def test_another_user_sees_no_approval_and_decides_none(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place, place.app.client("bob") as bob:
        run = await place.start("approves")
        question = await asked(place, run)
        assert await bob.approvals() == await bob.run(run.run_id).approvals() == []
        for decide in (bob.approve(question), bob.deny(question), bob.answer(question, 1)):
            with pytest.raises(NotFound):
                await decide
        assert await resolutions(place, run) == []


# --- waiting ---------------------------------------------------------------------------------------------------------


async def test_waiting_for_people_is_no_running_time(tmp_path: Path) -> None:
    short = Runstone()

    @short.agent(timeout_s=0.5)
    async def hurries(run: Run) -> str:
        return (await run.approve("May I?", expires_in_s=1)).status

    async with running(short, tmp_path) as place:
        assert (await place.finished("hurries")).output == "expired"


async def test_a_run_that_waits_is_cancelled_with_its_question(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("approves")
        question = await asked(place, run)
        await run.cancel("enough")
        assert (await place.ended(run)).status == "cancelled"
        assert await resolutions(place, run) == ["cancelled"]
        with pytest.raises(AlreadyDecided, match="cancelled"):
            await place.client.approve(question)


async def test_a_deleted_thread_takes_its_questions_along(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run, other = await place.start("approves"), await place.start("approves")
        question, _ = await asked(place, run), await asked(place, other)
        await place.client.delete_thread(run.thread_id)
        assert [approval.run_id for approval in await place.client.approvals()] == [other.run_id]
        with pytest.raises(NotFound):
            await place.client.approve(question)


@pytest.mark.slow
async def test_a_thousand_runs_that_wait_take_no_slot_and_none_after_a_restart(tmp_path: Path) -> None:
    async with running(app, tmp_path, slots=2) as place:
        runs = await asyncio.gather(*[place.start("approves") for _ in range(1_000)])
        for run in runs:
            await asked(place, run)
        assert (await place.finished("quick")).status == "completed"
    async with running(app, tmp_path, slots=2) as place:
        assert (await place.finished("quick")).status == "completed"
        waiting = await place.client.approvals(status="open", limit=2_000)
        assert len(waiting) == 1_000
        assert {run.attempt for run in await place.client.runs(status="waiting", limit=2_000)} == {1}, (
            "none was taken up"
        )
        for approval in waiting[::250]:
            await place.client.approve(approval.approval_id)
            ended = await place.client.run(approval.run_id).result(timeout_s=30)
            assert (ended.status, ended.attempt) == ("completed", 2)
        assert len(await place.client.approvals(status="open", limit=2_000)) == 996


# --- over a crash ----------------------------------------------------------------------------------------------------


async def open_one(place: Mortal, run: RunHandle) -> Any:
    """What the run asks now; it may be dying and coming back."""
    async with asyncio.timeout(30), aclosing(run.events(types=["approval_requested"])) as events:
        async for _ in events:
            for approval in await run.approvals("open"):
                return approval
    raise AssertionError("nothing is asked")


async def test_what_was_answered_while_nobody_was_there_is_not_asked_again(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("asks")
        first = await asked(place, run)
        place.kill()
        assert (await run.refresh()).status == "waiting"
        await place.client.approve(first, comment="go on")
        second = await asked(place, run, 2)
        assert place.ledger == ["attempt 1", "attempt 2"]
        place.kill()
        waiting = await run.refresh()
        assert (waiting.status, waiting.attempt) == ("waiting", 2), "it is nobody's, and waits"
        await place.client.answer(second, 5)
        ended = await place.ended(run)
        assert ended.output == {"by": "local", "comment": "go on", "yes": True, "count": 5}
        assert place.ledger == ["attempt 1", "attempt 2", "attempt 3"]
        assert len(await place.events(run, "approval_requested")) == 2
        assert await resolutions(place, run) == ["approved", "answered"]


async def test_a_run_that_waits_for_nobodys_worker_is_cancelled_at_once(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("asks")
        await asked(place, run)
        place.kill()
        await run.refresh()
        ended = await run.cancel("enough")
        assert (ended.status, await resolutions(place, run)) == ("cancelled", ["cancelled"])
        assert place.ledger == ["attempt 1"]


async def test_a_death_between_the_word_and_the_call_asks_nobody_again(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("guarded")
        approval = await place.client.approve(await asked(place, run))
        assert (await place.ended(run)).output == "paid 1"
        assert place.deaths == 1
        assert place.ledger == ["pay 1 100"]
        (action,) = await place.actions(run)
        assert action.action_id == approval.action_id
        assert len(await place.events(run, "approval_requested")) == 1


async def test_a_word_is_good_only_for_the_input_that_was_shown(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("pays_another_sum")
        await place.client.approve(await asked(place, run))
        again = await open_one(place, run)
        assert again.input == {"order": 1, "cents": 200}
        assert place.ledger == []
        await place.client.approve(again.approval_id)
        assert (await place.ended(run)).output == "paid 1"
        assert place.ledger == ["pay 1 200"]


async def test_a_word_is_used_up_by_its_call_in_every_attempt(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("pays_twice")
        first = await place.client.approve(await asked(place, run))
        second = await open_one(place, run)
        assert second.approval_id != first.approval_id
        assert place.ledger == ["pay 1 100"], "the second call has no word yet"
        second = await place.client.approve(second.approval_id)
        assert (await place.ended(run)).output == ["paid 1", "paid 1"]
        assert place.ledger == ["pay 1 100"] * 2
        assert [action.action_id for action in await place.actions(run)] == [first.action_id, second.action_id]


async def test_what_was_denied_stays_denied_when_the_same_was_approved_later(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("is_denied_then_pays")
        await place.client.deny(await asked(place, run))
        await place.client.approve(await asked(place, run, 2))
        assert (await place.ended(run)).output == ["denied", "paid 1"]
        assert (place.deaths, place.ledger) == (1, ["pay 1 100"])
        assert await resolutions(place, run) == ["denied", "approved"]


async def test_a_childs_question_is_found_again_with_the_child(tmp_path: Path, zygote: Zygote) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.start("parent")
        first = await open_one(place, run)
        assert first.run_id != run.run_id
        assert (await run.refresh()).status == "waiting"
        place.kill()
        assert (await run.refresh()).status == "waiting"
        await place.client.approve(first.approval_id)
        async with asyncio.timeout(30):
            while not (left := await run.approvals("open")):
                await place.seen(run, "approval_requested", 2)
        await place.client.deny(left[0].approval_id)
        assert (await place.ended(run)).output == [True, False]
        assert place.ledger == ["attempt 1", "attempt 2"]
        assert [approval.status for approval in await run.approvals()] == ["approved", "denied"]
