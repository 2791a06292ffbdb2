"""The examples run as they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from examples import embedded
from examples.quickstart import app
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
