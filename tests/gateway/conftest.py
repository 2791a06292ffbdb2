"""What the gateway's tests share: an app of their own, and raw HTTP clients of two users in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from runstone import AgentError, ApprovalDenied, Run, Runstone
from runstone.client import AsgiTransport


@dataclass
class Stage:
    """A running app, a client for each of two users, and the curtain that agents wait for."""

    app: Runstone
    alice: httpx2.AsyncClient
    bob: httpx2.AsyncClient
    curtain: asyncio.Event = field(default_factory=asyncio.Event)

    async def thread(self, **body: object) -> str:
        made = await self.alice.post("/v1/threads", json=body)
        assert made.status_code in {200, 201}, made.text
        return str(made.json()["thread_id"])

    async def start(self, agent: str, *, thread_id: str | None = None, **body: object) -> dict[str, Any]:
        """A run of alice's, as the answer to its start shows it."""
        path = "/v1/runs" if thread_id is None else f"/v1/threads/{thread_id}/runs"
        made = await self.alice.post(path, json={"agent": agent, **body})
        assert made.status_code in {200, 201}, made.text
        answer: dict[str, Any] = made.json()
        return answer

    async def finished(self, agent: str, *, thread_id: str | None = None, **body: object) -> dict[str, Any]:
        run = await self.start(agent, thread_id=thread_id, **body)
        ended: dict[str, Any] = (await self.alice.get(f"/v1/runs/{run['run_id']}", params={"wait_s": 30})).json()
        assert ended["status"] in {"completed", "failed", "cancelled"}, ended
        return ended

    async def asked(self, agent: str, **body: Any) -> dict[str, Any]:
        """What a new run of alice's asks, as the list shows it."""
        run = await self.start(agent, **body)
        async with self.app.client("alice") as client, aclosing(client.run(str(run["run_id"])).events()) as events:
            async for event in events:
                if event.type == "approval_requested":
                    break
        page = (await self.alice.get("/v1/approvals", params={"run_id": run["run_id"]})).json()
        (approval,) = page["approvals"]
        return dict(approval)

    async def said(self, run: dict[str, Any]) -> None:
        """Returns once a `held` run has spoken."""
        async with (
            self.app.client("alice") as client,
            aclosing(client.events(str(run["thread_id"]), types=["message_delta"])) as events,
        ):
            async for event in events:
                if event.run_id == run["run_id"]:
                    return


def _agents(app: Runstone, stage: list[Stage]) -> None:
    @app.tool
    async def look_up(query: str) -> list[str]:
        return [query, query.upper()]

    @app.tool(private=True)
    async def secret(word: str) -> str:
        return word[::-1]

    @app.agent
    async def say(run: Run, text: str) -> int:
        """Says a text."""
        async with run.message() as message:
            await message.write(text)
        return len(text)

    @app.agent
    async def held(run: Run, text: str = "held") -> str:
        """Speaks, then waits for the curtain."""
        async with run.message() as message:
            await message.write(text)
            await run.flush()
            await stage[0].curtain.wait()
        return text

    @app.agent
    async def keeper(run: Run, shown: str, hidden: str) -> None:
        await run.state.set("shown", shown, public=True)
        await run.state.set("hidden", hidden)

    @app.agent
    async def tooler(run: Run, word: str) -> None:
        await look_up(query=word)
        await secret(word=word)

    @app.agent
    async def fails(run: Run, message: str) -> None:
        await run.say("so far")
        raise AgentError(message)

    @app.agent
    async def approves(run: Run, expires_in_s: float = 3600) -> str:
        """Asks a person, and says what they decided."""
        decision = await run.approve("May I?", {"n": 1}, expires_in_s=expires_in_s)
        return decision.status

    @app.agent
    async def asks(run: Run) -> object:
        try:
            return await run.ask("How many, and where?", dict[str, int])
        except ApprovalDenied:
            return "denied"

    @app.agent
    async def asks_anything(run: Run) -> object:
        return await run.ask("Well?", object)

    @app.agent
    async def parent(run: Run) -> object:
        return await run.call("approves")

    @app.agent
    async def anything(run: Run, value: object) -> object:
        return value


@pytest.fixture
async def stage(store_url: str) -> AsyncIterator[Stage]:
    app = Runstone()
    holder: list[Stage] = []
    _agents(app, holder)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.running(store=store_url))
        clients = [
            await stack.enter_async_context(
                httpx2.AsyncClient(base_url="http://127.0.0.1", transport=AsgiTransport(app.asgi, user_id=user))
            )
            for user in ("alice", "bob")
        ]
        holder.append(Stage(app, clients[0], clients[1]))
        yield holder[0]
