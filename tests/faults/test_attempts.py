"""How often a run is taken up again: as often as it is let go of, and so many times when its worker dies."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.support import hardy
from tests.support.forked import MODULES, DiedAtStart, ForkedServer
from tests.support.history import RunHistory, runs_of
from tests.support.live import Live
from tests.support.ordeal import check_store
from tests.support.watchers import GONE
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote(*MODULES, "tests.support.hardy")
    yield found
    found.close()


@pytest.fixture
def server(zygote: Zygote, tmp_path: Path) -> Iterator[ForkedServer]:
    server = ForkedServer(zygote, tmp_path, "tests.support.hardy:app")
    yield server
    server.kill()


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as http:
        yield http


def up(server: ForkedServer, http: httpx2.AsyncClient) -> Live:
    http.base_url = httpx2.URL(server.start(RUNSTONE_GRACE_S="0").url)
    return Live(http, server.port)


async def told(live: Live, run: dict[str, Any]) -> RunHistory:
    return runs_of(await live.log(run["thread_id"]))[run["run_id"]]


async def said(live: Live, run: dict[str, Any], attempt: int) -> None:
    """Until an attempt has said something."""
    async with asyncio.timeout(20):
        while (found := await told(live, run)).attempt < attempt or not any(found.texts()):
            pass


async def test_a_run_that_kills_its_worker_each_time_fails_after_three_attempts_and_others_go_on(
    server: ForkedServer, http: httpx2.AsyncClient
) -> None:
    live = up(server, http)
    others = [await live.start("steady", {"steps": 60}) for _ in range(3)]
    once = await live.start("fragile", {"tag": "f", "words": 20_000, "messages": 1})
    await said(live, once, 1)
    deaths, deadly = 0, None
    while deadly is None:
        try:
            deadly = await live.ended(await live.post("/v1/runs", agent="deadly", key="deadly"))
        except GONE:
            deaths += server.kill() == -signal.SIGKILL
            while True:
                try:
                    live = up(server, http)
                    break
                except DiedAtStart:
                    deaths += 1
    assert deaths == 3
    assert (deadly["status"], deadly["error"]["type"], deadly["attempt"]) == ("failed", "MaxAttempts", 3)
    history = await told(live, deadly)
    assert (history.left, history.texts()) == (["lost", "lost"], ["attempt 3"])
    for other in others:
        found = await live.ended(other)
        assert (found["status"], found["output"], found["attempt"]) == ("completed", 60, 4)
    found = await live.ended(once)
    assert (found["status"], found["error"]["type"], found["attempt"]) == ("failed", "WorkerLost", 1)
    server.kill()
    check_store(server.store_url)


@pytest.mark.parametrize(
    ("left", "error"),
    [
        (["released"] * 4, None),
        (["lost", "released", "lost", "released"], None),
        (["released", "lost", "lost", "released", "lost"], "MaxAttempts"),
    ],
)
async def test_only_attempts_that_were_lost_count(
    server: ForkedServer, http: httpx2.AsyncClient, left: list[str], error: str | None
) -> None:
    live = up(server, http)
    run = await live.start("worker", {"tag": "w", "words": 1500, "messages": 1})
    for attempt, how in enumerate(left, start=1):
        await said(live, run, attempt)
        assert (server.terminate() if how == "released" else server.kill()) == (0 if how == "released" else -9)
        live = up(server, http)
    found = await live.ended(run)
    history = await told(live, run)
    if error is None:
        assert (found["status"], found["attempt"], history.left) == ("completed", len(left) + 1, left)
        assert history.texts() == [hardy.said("w", 1500)]
    else:
        assert (found["error"]["type"], found["attempt"], history.left) == (error, len(left), left[:-1])
    server.kill()
    check_store(server.store_url)
