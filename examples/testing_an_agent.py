"""How to test an agent: the whole system in this process, on a real store, without a socket.

Run it with `pytest examples/testing_an_agent.py`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.quickstart import app

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_researcher_looks_on_the_shelf_before_it_answers(tmp_path: Path) -> None:
    async with app.running(store=f"sqlite:///{tmp_path}/runs.db") as client:
        run = await client.start("researcher", "why is the sky blue?")
        ended = await run.result(timeout_s=10)
        actions = await client.actions(run.thread_id)

    assert ended.status == "completed"
    assert "scatters" in str(ended.output)
    assert [(action.tool, action.status) for action in actions] == [("search", "success")]
