"""After a crash the next start goes on with what was under way, or ends it honestly, and takes up the queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest

from runstone import Run, Runstone
from runstone.client import Client
from runstone.client.runs import RunHandle
from tests.runtime.support import running
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "tests.runtime.recovery_agents:app")
    yield process
    process.kill()


async def said(run: RunHandle, type: str) -> None:
    async with asyncio.timeout(30), aclosing(run.events()) as events:
        async for event in events:
            if event.type == type:
                return


async def test_a_start_after_a_kill_goes_on_with_what_was_under_way_and_starts_what_was_queued(
    server: ServerProcess,
) -> None:
    server.start()
    async with Client(server.url) as client:
        lost = await client.start("under_way")
        cancelled = await client.start("ignores")
        resumed = await client.start("resumes")
        queued = await client.start("quick", thread_id=lost.thread_id)
        await said(lost, "tool_executing")
        await said(cancelled, "message_completed")
        await said(resumed, "message_completed")
        await cancelled.cancel("enough")
        server.kill()
        server.start()

        run = await lost.result(timeout_s=30)
        assert run.error is not None
        assert (run.status, run.error.type, run.error.retryable) == ("failed", "WorkerLost", True)
        (message,) = await client.messages(run.thread_id, run_id=run.run_id)
        assert (message.status, message.reason, message.content) == ("partial", "error", "half a sen🗿")
        assert message.parts[0] == {"type": "reasoning", "text": "hm"}
        (action,) = await client.actions(run.thread_id, run_id=run.run_id)
        assert action.status == "interrupted"

        run = await resumed.result(timeout_s=30)
        assert (run.status, run.output, run.attempt) == ("completed", "attempt 2", 2)
        messages = await client.messages(run.thread_id, run_id=run.run_id, superseded=True)
        assert [(m.status, m.content) for m in messages] == [("superseded", "attempt 1"), ("completed", "attempt 2")]
        assert [m.content for m in await client.messages(run.thread_id, run_id=run.run_id)] == ["attempt 2"]

        assert (await cancelled.result(timeout_s=30)).status == "cancelled"
        run = await queued.result(timeout_s=30)
        assert (run.status, run.output) == ("completed", "done")

        types = [(e.type, e.run_id) for e in (await client.event_page(run.thread_id)).events if e.run_id]
        assert types.index(("agent_failed", lost.run_id)) < types.index(("agent_started", queued.run_id))


async def test_what_a_run_had_said_is_kept_by_a_shutdown_and_the_next_start_goes_on(tmp_path: Path) -> None:
    @(app := Runstone()).agent
    async def talks(run: Run) -> int:
        async with run.message() as message:
            await message.write(str(run.attempt) * 1000)
            if run.attempt == 1:
                await asyncio.sleep(3600)
        return run.attempt

    async with running(app, tmp_path) as place:
        handle = await place.start("talks")
        await place.seen(handle, "agent_started")
        run_id, thread_id = handle.run_id, handle.thread_id
        while (await handle.refresh()).status == "queued" or not await place.client.messages(thread_id):
            await asyncio.sleep(0)
    async with running(app, tmp_path) as place:
        run = await place.client.run(run_id).result(timeout_s=10)
        assert (run.status, run.output) == ("completed", 2)
        messages = await place.client.messages(thread_id, superseded=True)
        assert [(m.content, m.status) for m in messages] == [("1" * 1000, "superseded"), ("2" * 1000, "completed")]
        events = (await place.client.event_page(thread_id, types=["attempt_superseded"])).events
        assert [event.data["reason"] for event in events] == ["released"]


@pytest.mark.parametrize("agent", ["ignores", "in_thread", "under_way"])
async def test_sigterm_ends_the_process_whatever_its_agents_do(server: ServerProcess, agent: str) -> None:
    server.start(RUNSTONE_GRACE_S="0.5")
    async with Client(server.url) as client:
        run = await client.start(agent)
        await said(run, "message_completed" if agent == "ignores" else "tool_executing")
    started = time.monotonic()
    assert server.terminate() == 0
    assert time.monotonic() - started < 25


async def test_an_agent_that_blocks_the_loop_is_named_and_the_server_goes_on(server: ServerProcess) -> None:
    server.start()
    async with Client(server.url) as client:
        blocking = await client.start("blocks_the_loop", 2.5)
        other = await client.start("quick")
        assert (await blocking.result(timeout_s=30)).output == "done"
        assert (await other.result(timeout_s=30)).status == "completed"
        log = server.log.read_text()
        assert "holds the event loop" in log
        assert "blocks_the_loop" in log
        metrics = await client._http.request("GET", "/metrics")
        assert b"runstone_loop_blocked_total 1.0" in metrics
