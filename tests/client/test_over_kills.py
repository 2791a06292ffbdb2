"""A server is killed again and again in mid-run: all who look at it show the same text, and the rows say it too."""

from __future__ import annotations

import asyncio
import copy
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runstone.client import Client, Event, ThreadView
from runstone.service import Tasks
from tests.client.test_reducer import everything, fold, outlined, plain
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WAIT_S = 60.0


class Looking:
    """A client that stays attached to a thread over everything, and folds what it sees."""

    def __init__(self, client: Client, thread_id: str) -> None:
        self.client = client
        self.thread_id = thread_id
        self.view = ThreadView()
        self.events: list[Event] = []
        self._news = asyncio.Event()

    async def look(self) -> None:
        async with self.client.events(self.thread_id) as events:
            async for event in events:
                self.events.append(event)
                self.view.feed(event)
                self._news.set()

    async def sees(self, what: Callable[[Event], bool]) -> None:
        """Returns when such an event has come."""
        async with asyncio.timeout(WAIT_S):
            while not any(what(event) for event in self.events):
                self._news.clear()
                await self._news.wait()


@dataclass
class Tail:
    """`runstone tail`, in a process of its own."""

    process: asyncio.subprocess.Process
    lines: list[str] = field(default_factory=list)

    @classmethod
    async def of(cls, url: str, id: str) -> Tail:
        command = [sys.executable, "-m", "runstone", "tail", id, "--url", url]
        return cls(await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE))

    async def line(self, text: str) -> None:
        """Returns when such a line stands."""
        assert self.process.stdout is not None
        async with asyncio.timeout(WAIT_S):
            while not self.lines or text not in self.lines[-1]:
                line = (await self.process.stdout.readline()).decode()
                assert line, f"it ended without {text!r}: {self.lines}"
                self.lines.append(line.rstrip("\n"))

    async def rest(self) -> list[str]:
        """All lines, once it has ended by itself."""
        async with asyncio.timeout(WAIT_S):
            rest, _ = await self.process.communicate()
        return [*self.lines, *rest.decode().splitlines()]


@pytest.mark.timeout(180)
async def test_who_was_attached_who_resumed_and_who_came_late_show_the_same_text(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, "tests.client.mortal_agents:app").start()
    tasks = Tasks("test")
    try:
        async with Client(server.url) as client:
            run = await client.start("narrator", message="Tell me.")
            attached = Looking(client, run.thread_id)
            tasks.run(attached.look(), "attached")
            kept: list[ThreadView] = []

            await attached.sees(lambda event: event.data.get("tool") == "slow_search" and event.run_id == run.run_id)
            first = await Tail.of(server.url, run.run_id)
            await first.line("Attempt 1 begins.")
            kept.append(copy.deepcopy(attached.view))
            assert "1.19" in attached.view.messages()[-1].content
            server.kill()
            server.start()

            await attached.sees(lambda event: event.data.get("tool") == "slow_search" and event.run_id != run.run_id)
            second = await Tail.of(server.url, run.run_id)
            await second.line("Attempt 2 begins.")
            kept.append(copy.deepcopy(attached.view))
            server.kill()
            server.start()

            await attached.sees(lambda event: event.type == "approval_requested")
            kept.append(copy.deepcopy(attached.view))
            assert attached.view.run(run.run_id) == await run.refresh()
            assert [one.status for one in attached.view.runs()] == ["waiting", "completed"]
            server.kill()
            server.start()

            [asked] = await client.approvals()
            await client.approve(asked.approval_id)
            ended = await run.result(timeout_s=WAIT_S)
            assert (ended.status, ended.output) == ("completed", "help")
            await attached.sees(lambda event: event.type == "agent_completed" and event.run_id == run.run_id)

            late = Looking(client, run.thread_id)
            tasks.run(late.look(), "late")
            await late.sees(lambda event: event.type == "agent_completed" and event.run_id == run.run_id)
            assert late.events == attached.events
            assert everything(late.view) == everything(attached.view)
            for view in kept:
                async with asyncio.timeout(WAIT_S), client.events(run.thread_id, after=view.seq) as events:
                    while view.seq < attached.view.seq:
                        view.feed(await anext(events))
                assert everything(view) == everything(attached.view)
            of_run = fold([event async for event in run.events()])
            assert of_run.messages() == attached.view.messages()

            await assert_as_the_server_says(client, attached.view)
            check_the_text(attached.view)
            last = await Tail.of(server.url, run.run_id)
            check_terminals(await first.rest(), await second.rest(), await last.rest())
    finally:
        await tasks.stop()
        server.kill()


async def assert_as_the_server_says(client: Client, view: ThreadView) -> None:
    assert view.thread_id is not None
    for children in (False, True):
        for superseded in (False, True):
            shown = view.messages(children=children, superseded=superseded)
            said = await client.messages(view.thread_id, children=children, superseded=superseded)
            assert plain(shown) == plain(said)
        done = await client.actions(view.thread_id, children=children)
        assert outlined(plain(view.actions(children=children))) == outlined(plain(done))
    for run in view.runs():
        assert run == await client.run(run.run_id).refresh()
    assert view.approvals() == await client.approvals()
    assert view.state == await client.state(view.thread_id)
    assert view.thread == await client.thread(view.thread_id)


def text(messages: list[Any]) -> str:
    return "".join(message.content for message in messages)


def numbers(attempt: int) -> str:
    return "".join(f"{attempt}.{number} " for number in range(20))


def check_the_text(view: ThreadView) -> None:
    """What the last attempt said, once, and what was kept."""
    root, helper = view.runs()
    assert text(view.messages(run_id=root.run_id)) == (
        "Tell me."
        "This is kept: it was said in a step.\n"
        f"Attempt {root.attempt} begins.\n"
        f"{numbers(root.attempt)}and so on.\n"
        "Allowed: True.\n"
    )
    assert text(view.messages(run_id=helper.run_id)) == "Helper's attempt 2.\n"
    assert (root.attempt, helper.attempt) == (4, 2)
    superseded = [m for m in view.messages(children=True, superseded=True) if m.status == "superseded"]
    assert len(superseded) == 2 * (root.attempt - 1) + 1
    searches = [action.status for action in view.actions() if action.tool == "slow_search"]
    assert searches == ["interrupted"]
    assert [action.status for action in view.actions(run_id=helper.run_id)] == ["interrupted"]
    assert [action.tool for action in view.actions()] == ["look_up", "private", "slow_search"]
    assert view.state == {"seen": root.attempt}


def check_terminals(first: list[str], second: list[str], late: list[str]) -> None:
    """One was attached from the first attempt on, one from the second; one came when all was over."""
    for lines, seen in ((first, 1), (second, 2), (late, 4)):
        shown = "\n".join(lines)
        for attempt in (1, 2, 3, 4):
            assert shown.count(f"Attempt {attempt} begins.") == (attempt >= seen)
            assert shown.count(numbers(attempt).rstrip()) == (attempt >= seen)
        assert shown.count("This is kept") == 1
        for attempt in (1, 2, 3):
            [lost] = [line for line in lines if re.match(rf"— attempt {attempt}( of narrator)? was lost here", line)]
            assert ("what it said is superseded" in lost) == (attempt >= seen)
            assert lost.endswith(f"; attempt {attempt + 1} goes on —")
        assert "✓ completed" in lines[-1]
