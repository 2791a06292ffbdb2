"""The check may stand beside a server that writes: it finds nothing that is not there, and nobody waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runstone.client import Client
from runstone.verify import Checked
from tests.support.server import ServerProcess
from tests.verify.conftest import Store

pytestmark = pytest.mark.anyio

RUNS = 60  # that end while the store is checked again and again
STREAMS = 8


async def check(store: Store) -> Checked:
    """One whole check, while this process goes on; what it finds fails the test."""
    assert await asyncio.to_thread(store.lines) == []
    assert store.checked is not None
    return store.checked


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_a_store_that_is_being_written_is_as_promised_at_every_moment(tmp_path: Path, journal_mode: str) -> None:
    server = ServerProcess(tmp_path, journal_mode=journal_mode)
    server.start()
    store = Store(server.database)
    store.url = server.store_url
    done = asyncio.Event()
    ended = 0

    async def stream(client: Client) -> None:
        """Runs that stream, call tools, fail, and are cancelled, some of them in one thread."""
        nonlocal ended
        thread = await client.create_thread()
        while not done.is_set():
            runs = [
                await client.start("tokens", {"count": 300}, thread_id=thread.thread_id),
                await client.start("thinker", "why?", thread_id=thread.thread_id),
                await client.start("fails", "so", message="again"),
                await client.start("tokens", {"count": 100_000, "delay_s": 0.001}, thread_key="shared"),
            ]
            await runs[-1].cancel()
            for run in runs:
                await run.result(timeout_s=60)
                ended += 1

    try:
        async with Client(server.url) as client, asyncio.TaskGroup() as group:
            for _ in range(STREAMS):
                group.create_task(stream(client))
            counts: list[Checked] = []
            while ended < RUNS:
                counts.append(await check(store))
            done.set()
        assert len({count.events for count in counts}) > 3, "the store was not written while it was checked"
        assert max(count.runs_unfinished for count in counts) > 0
        assert server.terminate() == 0
    finally:
        server.kill()
    last = await check(store)
    assert last.runs_ended == ended
    assert last.runs_unfinished == 0
