"""Runs of a real app in this process, with short words for what tests look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

from runstone import Runstone
from runstone.client import Client, Event
from runstone.client.runs import RunHandle
from runstone.resources import Action, Message, Run

WAIT_S = 30.0


class Place:
    """A running app and its client."""

    def __init__(self, app: Runstone, client: Client) -> None:
        self.app = app
        self.client = client

    async def start(self, agent: str, *args: Any, **kwargs: Any) -> RunHandle:
        return await self.client.start(agent, *args, **kwargs)

    async def finished(self, agent: str, *args: Any, **kwargs: Any) -> Run:
        """A run, from its start to its end."""
        return await self.ended(await self.start(agent, *args, **kwargs))

    async def ended(self, run: RunHandle) -> Run:
        return await run.result(timeout_s=WAIT_S)

    async def events(self, run: Run | RunHandle, *types: str) -> list[Event]:
        """All events of the run's thread, or those of these types."""
        found: list[Event] = []
        while True:
            page = await self.client.event_page(run.thread_id, after=found[-1].seq if found else 0, limit=1000)
            if not page.events:
                assert [event.seq for event in found] == list(range(1, len(found) + 1))
                return [event for event in found if not types or event.type in types]
            found += page.events

    async def types(self, run: Run | RunHandle) -> list[str]:
        return [event.type for event in await self.events(run)]

    async def messages(self, run: Run | RunHandle) -> list[Message]:
        return await self.client.messages(run.thread_id, run_id=run.run_id)

    async def message(self, run: Run | RunHandle) -> Message:
        """The one message that the run's agent wrote."""
        (message,) = await self.client.messages(run.thread_id, run_id=run.run_id, role="assistant")
        return message

    async def actions(self, run: Run | RunHandle) -> list[Action]:
        return await self.client.actions(run.thread_id, run_id=run.run_id)

    async def seen(self, run: RunHandle, type: str, count: int = 1) -> Event:
        """Waits until the run has said something of a type, as a viewer would."""
        async with asyncio.timeout(WAIT_S), aclosing(run.events()) as events:
            async for event in events:
                if event.type == type:
                    count -= 1
                    if not count:
                        return event
        raise AssertionError(f"the run ended without {type}")

    @property
    def system(self) -> Any:
        """What runs behind the client."""
        assert self.app._system is not None
        return self.app._system


@asynccontextmanager
async def running(app: Runstone, folder: Path, **settings: Any) -> AsyncIterator[Place]:
    async with app.running(store=f"sqlite:///{folder}/runs.db", **settings) as client, client:
        yield Place(app, client)
