"""What a tool-using agent leaves in the log, event by event."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from runstone import Run, Runstone
from tests.runtime.support import running

pytestmark = pytest.mark.anyio

app = Runstone()


@app.tool
async def look_up(query: str) -> list[str]:
    return [query, query.upper()]


@app.agent
async def researcher(run: Run, question: str) -> str:
    await run.think("Where would this be written down?")
    hits = await look_up(query=question)
    async with run.message() as message:
        for hit in hits:
            await message.write(hit + " ")
    return message.text


FIVE = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


async def test_five_events_come_in_order_each_with_user_thread_run_and_time(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    async with running(app, tmp_path) as place:
        run = await place.finished("researcher", "why?")
        events = await place.events(run, *FIVE)
    assert [event.type for event in events] == FIVE
    for event in events:
        assert event.user_id == "local"
        assert event.thread_id == run.thread_id
        assert event.run_id == run.run_id
        assert event.attempt == 1
        assert before <= event.time <= datetime.now(UTC)
    assert [event.time for event in events] == sorted(event.time for event in events)
    assert len({event.seq for event in events}) == 5
    started, thinking, executing, completed, ended = (event.data for event in events)
    assert started["agent"] == "researcher"
    assert thinking["delta"] == "Where would this be written down?"
    assert (executing["tool"], executing["input"], executing["executor"]) == ("look_up", {"query": "why?"}, "server")
    assert completed["action_id"] == executing["action_id"]
    assert (completed["status"], completed["output"]) == ("success", ["why?", "WHY?"])
    assert ended["output"] == "why? WHY? "


async def test_everything_that_a_run_says_is_in_the_log_in_the_order_it_was_said(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("researcher", message="why?")
        types = await place.types(run)
    merged = [kind for index, kind in enumerate(types) if not index or types[index - 1] != kind]  # deltas may merge
    assert merged == [
        "thread_created",
        "user_message",
        "run_queued",
        "agent_started",
        "message_started",
        "agent_thinking",
        "tool_executing",
        "tool_completed",
        "message_delta",
        "message_completed",
        "agent_completed",
    ]


async def test_a_viewer_sees_the_events_while_the_run_is_under_way_and_the_same_ones_later(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.start("researcher", "why?")
        live = [event async for event in run.events()]
        later = await place.events(run)
        assert live[-1].type == "agent_completed"
        assert [event.encode() for event in live] == [event.encode() for event in later if event.run_id == run.run_id]
