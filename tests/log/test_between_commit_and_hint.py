"""Readers who come between a commit and its hint: they know from the store what memory does not have yet."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from msgspec import UNSET

from runstone import failpoints
from runstone.brokers.local import LocalBroker
from runstone.clock import SystemClock
from runstone.commands import NewThread, create_thread, update_thread
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.stores.sqlite import SqliteStore
from runstone.views import ThreadRef

pytestmark = pytest.mark.anyio


@pytest.fixture
async def log(store_url: str) -> AsyncIterator[Log]:
    clock = SystemClock()
    log = Log(SqliteStore(store_url, clock), LocalBroker(), clock, Metrics())
    await log.start()
    yield log
    failpoints.disarm_all()
    await log.stop()


async def test_a_reader_gets_from_the_store_what_is_committed_and_not_yet_in_memory(log: Log) -> None:
    made = await log.append(create_thread("alice", NewThread()))
    thread = ThreadRef(made.id, "alice")
    committed, go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hold() -> None:
        loop.call_soon_threadsafe(committed.set)
        go_on.wait(10)

    failpoints.arm("after_commit", hold)
    update = asyncio.create_task(log.append(update_thread("alice", made.id, title="stone", metadata=UNSET)))
    try:
        async with asyncio.timeout(5):
            await committed.wait()
            async with log.tail(thread, after=0, wake=lambda: None) as tail:
                assert tail.head == 2
                seqs: list[int] = []
                while tail.behind:
                    page = await tail.read()
                    assert page.events, "a reader that is behind must get on, or it turns for ever"
                    seqs += [event.seq for event in page.events]
                assert seqs == [1, 2]
    finally:
        go_on.set()
        await update
