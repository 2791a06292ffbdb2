"""A hint that is lost costs time, never a cancel or an end."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runstone import Run, Runstone
from runstone.client import Client
from runstone.config import load
from runstone.runtime import worker
from runstone.server import System
from tests.log.support import Lossy

pytestmark = pytest.mark.anyio

app = Runstone()
started: asyncio.Event
stopped: asyncio.Event


@app.agent
async def silent(run: Run) -> None:
    """Says nothing, so that no refused append can tell it that it is over."""
    started.set()
    try:
        await asyncio.sleep(3600)
    finally:
        stopped.set()


@pytest.mark.parametrize("how", ["cancelled", "thread deleted"])
async def test_a_silent_agent_is_stopped_though_every_hint_is_lost(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    global started, stopped
    started, stopped = asyncio.Event(), asyncio.Event()
    monkeypatch.setattr(worker, "POLL_S", 0.05)
    system = System(load({"store": f"sqlite:///{tmp_path}/runs.db"}, {}), app.agents, broker=Lossy())
    await system.start()
    try:
        async with Client.in_process(system.gateway) as client, asyncio.timeout(20):
            run = await client.start("silent")
            await started.wait()
            if how == "cancelled":
                await run.cancel()
            else:
                await client.delete_thread(run.thread_id)
            await stopped.wait()
    finally:
        await system.stop()
