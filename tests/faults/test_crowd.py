"""A thousand runs that wait for people and ten thousand in the queue: no slot taken, ready at once after a kill."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from runstone import commands as c
from runstone.brokers.local import LocalBroker
from runstone.client import Client
from runstone.clock import SystemClock
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.stores.sqlite import SqliteStore
from tests.stores.making import new_run
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WAITING, QUEUED, SLOTS = 1_000, 10_000, 50
AT_ONCE = 100
READY_S = 5.0
KIB_A_WAITING_RUN = 40  # docs/operating.md says 25 to 30
SETTINGS = {"RUNSTONE_SLOTS": str(SLOTS)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "tests.faults.crowd_agents:app")
    yield process
    process.kill()


@asynccontextmanager
async def client_of(server: ServerProcess) -> AsyncIterator[Client]:
    async with Client(server.url) as client:
        yield client


async def start_many(client: Client, agent: str, count: int) -> None:
    turns = asyncio.Semaphore(AT_ONCE)

    async def start() -> None:
        async with turns:
            await client.start(agent)

    await asyncio.gather(*(start() for _ in range(count)))


async def queue_many(store_url: str, agent: str, count: int) -> None:
    """Into the store of a server that is down: by the same commands, without the requests."""
    clock = SystemClock()
    log = Log(SqliteStore(store_url, clock), LocalBroker(), clock, Metrics())
    await log.start()
    await asyncio.gather(*(log.append(c.start_run("local", new_run(agent=agent))) for _ in range(count)))
    await log.stop()


async def unfinished(client: Client, **expected: int) -> None:
    """Until so many runs have these statuses."""
    async with asyncio.timeout(60):
        while True:
            text = (await client._http.request("GET", "/metrics")).decode()
            found = {m[1]: int(float(m[2])) for m in re.finditer(r'runstone_runs{status="(\w+)"} (\S+)', text)}
            if all(found.get(status) == count for status, count in expected.items()):
                return
            await asyncio.sleep(0.2)


def rss_kib(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


async def test_a_crowd_takes_no_slot_little_memory_and_no_time_at_a_restart(server: ServerProcess) -> None:
    server.start(**SETTINGS)
    async with client_of(server) as client:
        await start_many(client, "asks", AT_ONCE)
        await unfinished(client, waiting=AT_ONCE)
        before = rss_kib(server.pid)
        await start_many(client, "asks", WAITING - AT_ONCE)
        await unfinished(client, waiting=WAITING, queued=0)
        assert (rss_kib(server.pid) - before) / (WAITING - AT_ONCE) < KIB_A_WAITING_RUN
        await start_many(client, "holds", SLOTS)
        await unfinished(client, running=SLOTS)
        await start_many(client, "quick", 1)
        await unfinished(client, waiting=WAITING, running=SLOTS, queued=1)

    server.kill()
    await queue_many(server.store_url, "quick", QUEUED)
    started = time.monotonic()
    server.start(**SETTINGS)
    assert time.monotonic() - started < READY_S

    async with client_of(server) as client:
        await unfinished(client, waiting=WAITING, running=0, queued=0)
        open_ones = await client.approvals(status="open", limit=WAITING + 1)
        assert len(open_ones) == WAITING
        answered = open_ones[::100]
        for approval in answered:
            await client.approve(approval.approval_id)
        for approval in answered:
            run = await client.run(approval.run_id).result(timeout_s=30)
            assert (run.status, run.output, run.attempt) == ("completed", "yes", 2)
        assert len(await client.runs(status="completed", limit=2 * QUEUED)) == QUEUED + SLOTS + 1 + len(answered)
