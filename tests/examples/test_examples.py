"""The examples run as they are."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections import Counter
from contextlib import aclosing
from pathlib import Path

import httpx2
import pytest

from examples import embedded
from examples.quickstart import app
from examples.supervisor import app as office
from runstone.client import Client
from runstone.client.runs import RunHandle
from tests.support.server import ServerProcess

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.anyio


async def test_the_quickstart_answers_from_its_shelf(store_url: str) -> None:
    async with app.running(store=store_url) as client:
        run = await client.start("researcher", "why is the sea blue?")
        ended = await run.result(timeout_s=10)
        shouted = await (await client.start("shout", "hello there")).result(timeout_s=10)

    assert "absorbs" in str(ended.output)
    assert shouted.output == "HELLO THERE "


async def test_a_runstone_mounted_in_fastapi_serves_its_streams_and_its_in_process_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNSTONE_STORE", f"sqlite:///{tmp_path}/runs.db")
    transport = httpx2.ASGITransport(embedded.api, client=("127.0.0.1", 1))
    async with (
        embedded.api.router.lifespan_context(embedded.api),
        httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700") as http,
    ):
        answer = (await http.post("/welcome/alice")).json()
        agents = (await http.get("/agents/v1/agents")).json()
        unknown = await http.get(f"/agents/v1/runs/{answer['run_id']}")  # alice's; the web's user is local

    assert answer["said"] == "Hello, alice!"
    assert [agent["name"] for agent in agents["agents"]] == ["greeter"]
    assert unknown.status_code == 404


def test_the_follower_prints_what_the_run_says(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, target="examples.quickstart:app").start()
    try:
        done = subprocess.run(
            [sys.executable, "examples/follow.py", "why is the sky blue?"],
            cwd=ROOT,
            env=os.environ | {"RUNSTONE_URL": server.url},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    finally:
        server.kill()

    assert done.returncode == 0, done.stderr
    assert "scatters blue light" in done.stdout
    assert "completed at seq" in done.stdout


def test_the_example_of_a_test_passes() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "examples/testing_an_agent.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


REQUEST = "What went wrong with our deliveries in October, and who complained?"


async def test_the_supervisor_asks_those_that_it_needs_and_has_a_report_written(
    store_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(office, "PAUSE_S", 0.0)
    async with office.app.running(store=store_url) as client:
        ended = await (await client.start("supervisor", REQUEST)).result(timeout_s=20)
        other = await (await client.start("supervisor", "Is anybody unhappy?")).result(timeout_s=20)
        agents = [run.agent for run in await client.runs(thread_id=other.thread_id)]

    assert isinstance(ended.output, dict)
    assert ended.output["plan"] == {"months": ["2026-10"], "topics": ["complaints", "parcels"]}
    report = str(ended.output["report"])
    assert "9 orders" in report
    assert "Bo (order 1013, late): The rug took more than a week." in report
    assert "Order 1016 with Goose: lost after 14 days." in report
    assert sorted(agents) == ["complaints", "orders", "report", "supervisor", "triage"]


async def test_the_supervisor_that_is_killed_three_times_writes_the_same_report(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, target="examples.supervisor.app:app")
    try:
        server.start(SUPERVISOR_PAUSE_S="0.02")
        async with Client(server.url) as client:
            undisturbed = await (await client.start("supervisor", REQUEST)).result(timeout_s=20)
            run = await client.start("supervisor", REQUEST)
            for type, count in [("tool_executing", 1), ("agent_completed", 2), ("step_completed", 2)]:
                await seen(run, type, count)
                server.kill()
                server.start(SUPERVISOR_PAUSE_S="0.02")
            ended = await run.result(timeout_s=20)
            events = (await client.event_page(run.thread_id, limit=1000)).events
            shown = await client.messages(run.thread_id, role="assistant", children=True)
    finally:
        server.kill()

    assert isinstance(ended.output, dict)
    assert (ended.status, ended.attempt, ended.output) == ("completed", 4, undisturbed.output)
    called = Counter(str(event.data["agent"]) for event in events if event.type == "run_queued")
    assert called == Counter(["supervisor", "triage", "orders", "complaints", "parcels", "report"])
    assert "".join(message.content for message in shown if message.content[:1] in {"#", "\n"}) == ended.output["report"]


async def seen(run: RunHandle, type: str, count: int) -> None:
    """Waits until the run has said so many events of a type, counted from its start."""
    async with asyncio.timeout(20), aclosing(run.events()) as events:
        async for event in events:
            count -= event.type == type
            if not count:
                return
    raise AssertionError(f"the run ended without {type}")
