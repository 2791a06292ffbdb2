"""A real server as its clients see it: raw requests, raw events, the log to compare with."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec

from tests.support.server import ServerProcess


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    next_after: int
    head: int


def assert_same(seen: Sequence[bytes], log: Sequence[bytes]) -> None:
    """Says where they part, and nothing else: pytest's own diff of thousands of events takes minutes."""
    for index, (one, other) in enumerate(zip(seen, log, strict=False)):
        if one != other:
            raise AssertionError(f"event {index} is {one[:300]!r} and not {other[:300]!r}")
    if len(seen) != len(log):
        raise AssertionError(f"there are {len(seen)} events, and not {len(log)}")


class Live:
    """Commands for one server, and what its log says."""

    def __init__(self, http: httpx2.AsyncClient, port: int) -> None:
        self.http = http
        self.socket_url = f"ws://127.0.0.1:{port}/v1/ws"

    async def post(self, path: str, **body: object) -> dict[str, Any]:
        answer = await self.http.post(path, json=body)
        assert answer.is_success, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def thread(self) -> str:
        return str((await self.post("/v1/threads"))["thread_id"])

    async def start(self, agent: str, input: object, thread_id: str | None = None) -> dict[str, Any]:
        path = "/v1/runs" if thread_id is None else f"/v1/threads/{thread_id}/runs"
        return await self.post(path, agent=agent, input=input)

    async def finished(self, agent: str, input: object, thread_id: str | None = None) -> dict[str, Any]:
        return await self.ended(await self.start(agent, input, thread_id))

    async def ended(self, run: dict[str, Any]) -> dict[str, Any]:
        while run["ended_at"] is None:
            run = (await self.http.get(f"/v1/runs/{run['run_id']}", params={"wait_s": 60}, timeout=70)).json()
        return run

    async def log(self, thread_id: str, after: int = 0) -> list[bytes]:
        """The events of a thread as `GET events` gives them: their very bytes."""
        found: list[bytes] = []
        while True:
            params = {"after": after, "limit": 1000}
            answer = await self.http.get(f"/v1/threads/{thread_id}/events", params=params, timeout=60)
            page = msgspec.json.decode(answer.content, type=_Page)
            found += [bytes(event) for event in page.events]
            after = page.next_after
            if after >= page.head:
                return found


@asynccontextmanager
async def live(server: ServerProcess) -> AsyncIterator[Live]:
    async with httpx2.AsyncClient(base_url=server.url, timeout=30) as http:
        yield Live(http, server.port)
