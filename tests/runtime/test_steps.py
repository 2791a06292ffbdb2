"""Steps: their results are recorded once, come back as what they are, and what is said inside stands."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from runstone import ActionInterrupted, Run, Runstone
from runstone.errors import Invalid, OutputTooLarge
from tests.runtime.mortal import die, mortal, note
from tests.runtime.support import running
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

HERE = "tests.runtime.test_steps:app"

app = Runstone()


@dataclass
class Point:
    x: int
    day: date


class Box(BaseModel):
    corners: tuple[Point, Point]


def make_point() -> Point:
    note("point")
    return Point(1, date(2026, 11, 20))


async def make_box(x: int, *, day: date) -> Box:
    note("box")
    return Box(corners=(Point(0, day), Point(x, day)))


def nothing() -> None:
    note("nothing")


def slow(number: int) -> dict[str, int]:
    note(f"slow {number}")
    time.sleep(0.01)
    return {"number": number}


@app.tool
async def unsafe(number: int) -> int:
    note(f"unsafe {number}")
    return number


@app.tool
async def dies_at(attempt: int) -> str:
    note(f"dies at {attempt}")
    run = Run.current()
    if run is not None and run.attempt == attempt:
        die()
    return "lived"


def hurt(run: Run) -> None:
    if run.attempt == 1:
        die()


@app.agent
async def typed(run: Run) -> list[str]:
    """What each kind of function gives, and what that is."""
    point = await run.step("point", make_point)
    box = await run.step("box", make_box, 2, day=date(2026, 1, 1))
    found = [point, box, await run.step("nothing", nothing), await run.step("slow", asyncio.to_thread, slow, 3)]
    found.append(await run.step("lambda", lambda: (1, 2)))
    if run.attempt < 3:
        die()
    return [repr(value) for value in found]


async def test_a_step_is_done_once_and_its_result_is_the_same_value_in_every_attempt(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("typed")

    assert (run.status, run.attempt, place.deaths) == ("completed", 3, 2)
    day = "datetime.date(2026, 11, 20)"
    first = "datetime.date(2026, 1, 1)"
    assert run.output == [
        f"Point(x=1, day={day})",
        f"Box(corners=(Point(x=0, day={first}), Point(x=2, day={first})))",
        "None",
        "{'number': 3}",
        "[1, 2]",  # nothing says that it is a tuple, so it is what JSON makes of it, in the first attempt too
    ]
    assert place.ledger == ["point", "box", "nothing", "slow 3"]


async def test_the_first_attempt_too_gets_what_the_annotation_says(tmp_path: Path) -> None:
    other = Runstone()

    def loose() -> Any:
        return Point(1, date(2026, 1, 1))

    def tight() -> Point:
        return Point(1, date(2026, 1, 1))

    @other.agent
    async def agent(run: Run) -> list[str]:
        return [type(await run.step("loose", loose)).__name__, type(await run.step("tight", tight)).__name__]

    async with running(other, tmp_path) as place:
        assert (await place.finished("agent")).output == ["dict", "Point"]


async def test_a_key_makes_one_step_in_an_attempt(tmp_path: Path) -> None:
    other = Runstone()
    done: list[int] = []

    @other.agent
    async def agent(run: Run) -> list[str]:
        await run.step("one", done.append, 1)
        with pytest.raises(ValueError, match="'one' was made before in this run"):
            await run.step("one", done.append, 2)
        with pytest.raises(ZeroDivisionError):
            await run.step("fails", lambda: 1 / 0)
        await run.step("fails", done.append, 3)  # it was not made, so it may be tried again
        with pytest.raises(ValueError, match="'fails' was made before"):
            await run.step("fails", done.append, 4)
        with pytest.raises(Invalid):
            await run.step("k" * 1000, done.append, 5)
        return ["went on"]

    async with running(other, tmp_path) as place:
        assert (await place.finished("agent")).output == ["went on"]
    assert done == [1, 3]


async def test_what_is_no_json_or_too_large_is_an_error_and_is_not_recorded(tmp_path: Path) -> None:
    other = Runstone()

    @other.agent
    async def agent(run: Run) -> int:
        with pytest.raises(OutputTooLarge):
            await run.step("large", lambda: "x" * (512 << 10))
        with pytest.raises(Invalid):
            await run.step("object", object)
        largest: str = await run.step("fits", lambda: "x" * ((512 << 10) - 2))
        return len(largest)

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        (recorded,) = await place.events(run, "step_completed")
    assert run.output == (512 << 10) - 2
    assert recorded.data == {"private": True}


@app.agent
async def fails_once(run: Run) -> str:
    def work() -> str:
        note(f"work {run.attempt}")
        if run.attempt == 1:
            raise ValueError("not yet")
        return "worked"

    try:
        return str(await run.step("work", work))
    except ValueError:
        die()
        raise


async def test_a_step_that_fails_is_not_recorded_and_done_again_by_the_next_attempt(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("fails_once")
    assert run.output == "worked"
    assert place.ledger == ["work 1", "work 2"]


# --- what is said in steps ---------------------------------------------------------------------------------


@app.agent
async def talks(run: Run) -> None:
    async def chapter(number: int) -> str:
        async with run.message() as message:
            await message.write(f"chapter {number}")
        return message.text

    await run.say(f"outside, before, {run.attempt}")
    await run.step("one", chapter, 1)
    await run.say(f"outside, between, {run.attempt}")
    if run.attempt == 1:
        await run.step("two", hurt, run)
    await run.step("two", chapter, 2)


async def test_what_is_said_in_a_step_stands_and_what_is_said_outside_is_superseded(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("talks")
        shown = await place.messages(run)
        everything = await place.client.messages(run.thread_id, run_id=run.run_id, superseded=True)
        (superseded,) = await place.events(run, "attempt_superseded")

    assert [message.content for message in shown] == [
        "chapter 1",
        "outside, before, 2",
        "outside, between, 2",
        "chapter 2",
    ]
    gone = [message for message in everything if message.status == "superseded"]
    assert [message.content for message in gone] == ["outside, before, 1", "outside, between, 1"]
    assert superseded.data == {
        "attempt": 1,
        "reason": "lost",
        "messages": [message.message_id for message in gone],
    }


@app.agent
async def half_a_step(run: Run) -> str:
    async def chapter() -> None:
        await run.say(f"said by {run.attempt}")
        hurt(run)

    await run.step("chapter", chapter)
    return "done"


async def test_what_is_said_in_a_step_that_was_not_recorded_is_superseded(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("half_a_step")
        assert [message.content for message in await place.messages(run)] == ["said by 2"]


@app.agent
async def returns_what_it_said(run: Run) -> str:
    async def speech() -> str:
        await run.say("the speech")
        return "the speech"

    text: str = await run.step("speech", speech)
    hurt(run)
    return text


@app.agent
async def returns_what_it_thought_about(run: Run) -> str:
    await run.step("thoughts", run.think, "hm")
    hurt(run)
    return "the answer"


async def test_a_returned_string_is_not_said_again_where_a_recorded_step_said_it(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("returns_what_it_said")
        assert [message.content for message in await place.messages(run)] == ["the speech"]


async def test_a_returned_string_is_said_where_a_recorded_step_only_thought(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("returns_what_it_thought_about")
        thought, said = await place.messages(run)
    assert thought.parts == [{"type": "reasoning", "text": "hm"}]
    assert said.content == "the answer"


@app.agent
async def thinks_before_the_step(run: Run) -> None:
    async def chapter() -> None:
        await run.say("chapter")

    await run.think(f"thought {run.attempt}")
    await run.step("chapter", chapter)
    hurt(run)


async def test_a_message_of_a_step_does_not_continue_a_thought_from_outside_that_will_be_superseded(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("thinks_before_the_step")
        said = [message.parts for message in await place.messages(run)]
    assert said == [[{"type": "text", "text": "chapter"}], [{"type": "reasoning", "text": "thought 2"}]]


async def test_a_message_that_a_step_leaves_open_closes_with_it(tmp_path: Path) -> None:
    other = Runstone()

    @other.agent
    async def agent(run: Run) -> None:
        async def opens() -> None:
            await run.think("in the step")

        await run.step("opens", opens)
        await run.say("after")

    async with running(other, tmp_path) as place:
        run = await place.finished("agent")
        thought, said = await place.messages(run)
        types = await place.types(run)
    assert [part["type"] for part in thought.parts] == ["reasoning"]
    assert said.content == "after"
    assert types.index("message_completed") < types.index("step_completed")


# --- what is done in steps ---------------------------------------------------------------------------------


@app.agent
async def inside_and_outside(run: Run) -> list[Any]:
    """The same calls, in a step and after it; dies between them, and once more at the end."""

    async def nested() -> int:
        found: int = await run.step("inner", unsafe, 1)
        return found

    async def work() -> list[int]:
        return [await unsafe(1), await run.step("nested", nested)]

    found = [await run.step("work", work)]
    if run.attempt == 1:
        die()
    found.append(await unsafe(1))
    if run.attempt == 2:
        die()
    found.append(await unsafe(2))
    return found


async def test_what_a_recorded_step_did_inside_is_not_taken_for_a_call_after_it(zygote: Zygote, tmp_path: Path) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("inside_and_outside")
        actions = await place.actions(run)

    assert run.output == [[1, 1], 1, 2]
    assert place.ledger == ["unsafe 1"] * 3 + ["unsafe 2"]
    assert [action.status for action in actions] == ["success"] * 4


@app.agent
async def finishes_inside(run: Run) -> int:
    """Dies after a call within a step, before the step is recorded."""

    async def work() -> int:
        found = await unsafe(1)
        hurt(run)
        return found

    result: int = await run.step("work", work)
    return result


async def test_a_finished_call_in_a_step_that_was_not_recorded_is_not_made_again(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("finishes_inside")
    assert run.output == 1
    assert place.ledger == ["unsafe 1"]


@app.agent
async def copes_in_a_step(run: Run) -> list[str]:
    """A call is interrupted; the next attempt copes with that in a step, makes the same call again, and dies."""

    async def try_it() -> str:
        try:
            return await dies_at(1)
        except ActionInterrupted:
            return "coped"

    found = [await run.step("try", try_it), await dies_at(1), str(await unsafe(1))]
    if run.attempt == 2:
        die()
    return found


async def test_an_interrupted_call_that_a_recorded_step_coped_with_is_not_met_again_outside(
    zygote: Zygote, tmp_path: Path
) -> None:
    async with mortal(zygote, tmp_path, HERE) as place:
        run = await place.finished("copes_in_a_step")
    assert run.output == ["coped", "lived", "1"]
    assert place.ledger == ["dies at 1", "dies at 1", "unsafe 1"]
