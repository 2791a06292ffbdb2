"""SIGTERM: everybody is told, what was said is kept, and the process ends in time, whatever its agents do."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support.history import History, runs_of
from tests.support.live import Live
from tests.support.ordeal import check_store
from tests.support.server import ServerProcess
from tests.support.watchers import SocketWatcher, StreamWatcher, attach

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SHUTDOWN_S = 25.0  # what is promised for the worst case
QUICK_S = 6.0  # when nothing stands in the way, on a busy machine
HURRY_S = 12.0  # after a second signal, likewise


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path, "tests.support.hardy:app")
    yield process
    process.kill()


@asynccontextmanager
async def live(server: ServerProcess) -> AsyncIterator[Live]:
    server.start()
    async with httpx2.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as http:
        yield Live(http, server.port)


async def ended(server: ServerProcess, *signals_at: float) -> tuple[int, float]:
    """SIGTERM at each of these seconds; the exit code, and how long it took from the first on."""
    started = time.monotonic()
    for at in signals_at or (0.0,):
        await asyncio.sleep(max(started + at - time.monotonic(), 0))
        os.kill(server.pid, signal.SIGTERM)
    code = await asyncio.to_thread(server.wait, 60)
    took = time.monotonic() - started
    server.kill()  # it is gone; this closes its pipe
    return code, took


async def said(live: Live, run: dict[str, Any], text: str) -> None:
    """Until the run has said that."""
    async with asyncio.timeout(20):
        while True:
            page = await live.http.get(f"/v1/threads/{run['thread_id']}/messages", params={"role": "assistant"})
            if any(text in message["content"] for message in page.json()["messages"]):
                return


async def test_clients_are_told_and_text_is_kept_and_the_next_start_goes_on(server: ServerProcess) -> None:
    history = History()
    socket = SocketWatcher(history, "socket")
    async with live(server) as one:
        running = [await one.start("worker", {"tag": f"r{number}x", "words": 20_000}) for number in range(3)]
        queued = [
            await one.start("worker", {"tag": "q", "words": 5, "messages": 1}, run["thread_id"]) for run in running
        ]
        streams = [StreamWatcher(history, f"stream {number}", one.http) for number in range(3)]
        for stream, run in zip(streams, running, strict=True):
            stream.watch([run["thread_id"]])
        socket.watch([run["thread_id"] for run in running])
        watching = await attach([socket, *streams], server.url)
        waiting = asyncio.create_task(one.http.get(f"/v1/runs/{running[0]['run_id']}?wait_s=60"))
        for run in running:
            await said(one, run, "x20")
        code, took = await ended(server)
        assert code == 0, server.log.read_text()
        assert took < QUICK_S
        await asyncio.gather(*watching)
        assert (await waiting).status_code in {200, 503}
    assert socket.closed_with == [1012]
    assert [stream.closed_with for stream in streams] == [["restarting"]] * 3
    assert "Traceback" not in server.log.read_text()

    async with live(server) as two:
        for run, next_run in zip(running, queued, strict=True):
            assert (await two.ended(next_run))["status"] == "completed"
            log = await two.log(run["thread_id"])
            history.compare(run["thread_id"], log)
            told = runs_of(log)[run["run_id"]]
            assert told.end is not None
            assert told.end.data["error"]["type"] == "WorkerLost"
            assert told.end.data["error"]["retryable"] is True
            assert [*told.status.values()] == ["partial"]
            assert len(*told.messages.values()) > 20
    assert (await ended(server))[0] == 0
    check_store(server.store_url)


async def test_a_server_with_nothing_to_do_ends_at_once(server: ServerProcess) -> None:
    async with live(server):
        code, took = await ended(server)
    assert code == 0
    assert took < QUICK_S


async def test_a_cancel_that_was_asked_for_before_is_the_end_that_the_next_start_finds(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("mule", {})
        await said(one, run, "before")
        await one.post(f"/v1/runs/{run['run_id']}/cancel", reason="enough")
        server.kill()
    async with live(server) as two:
        found = await two.ended(run)
        assert found["status"] == "cancelled"
        end = runs_of(await two.log(run["thread_id"]))[run["run_id"]].end
        assert end is not None
        assert end.data["reason"] == "enough"


async def test_an_agent_that_ignores_its_cancel_does_not_keep_the_server(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("mule", {})
        await said(one, run, "before")
        code, took = await ended(server)
    assert code == 0, server.log.read_text()
    assert took < SHUTDOWN_S
    assert "cannot be listened on" not in server.log.read_text()


async def test_a_second_signal_hurries(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("mule", {})
        await said(one, run, "before")
        code, took = await ended(server, 0.0, 0.2)
    assert code in {0, 1}, server.log.read_text()
    assert took < HURRY_S
    assert "cannot be listened on" not in server.log.read_text()
    assert code == 0 or "Nothing acknowledged is lost" in server.log.read_text()


async def test_a_tool_in_a_thread_does_not_keep_the_server(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("patient", {"seconds": 90})
        await said(one, run, "before")
        code, took = await ended(server)
    assert code == 0, server.log.read_text()
    assert took < SHUTDOWN_S
    async with live(server) as two:
        assert (await two.ended(run))["error"]["type"] == "WorkerLost"
        (action,) = (await two.http.get(f"/v1/threads/{run['thread_id']}/actions")).json()["actions"]
        assert action["status"] == "interrupted"


async def test_an_agent_that_holds_the_loop_for_a_while_delays_the_end_and_is_named(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("blocker", {"seconds": 4})
        await asyncio.sleep(1)  # nothing in the server can say that it is held
        code, took = await ended(server)
    assert code == 0, server.log.read_text()
    assert took < 4 + QUICK_S
    assert "blocker" in server.log.read_text()
    async with live(server) as two:
        assert (await two.ended(run))["status"] in {"completed", "failed"}
        await said(two, run, "before")


@pytest.mark.torture
async def test_an_agent_that_holds_the_loop_for_ever_does_not_keep_a_server_that_nobody_hurries(
    server: ServerProcess,
) -> None:
    async with live(server) as one:
        await one.start("blocker", {"seconds": 3600})
        await asyncio.sleep(1)
        code, took = await ended(server)
    assert code == 1
    assert SHUTDOWN_S - 1 < took < SHUTDOWN_S + 2


async def test_an_agent_that_holds_the_loop_for_ever_does_not_keep_the_server(server: ServerProcess) -> None:
    async with live(server) as one:
        run = await one.start("blocker", {"seconds": 3600})
        await asyncio.sleep(1)
        code, took = await ended(server, 0.0, 1.0)
    assert code == 1
    assert took < HURRY_S
    assert "blocker" in server.log.read_text()
    assert "the shutdown did not end in time" in server.log.read_text()
    async with live(server) as two:
        assert (await two.ended(run))["error"]["type"] == "WorkerLost"
