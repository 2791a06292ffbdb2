"""What the server answers while somebody that it depends on fails: starts, readiness, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest

from runstone import AgentError, Run, Runstone
from runstone.client import AsgiTransport
from runstone.runtime.breakers import Breakers
from tests.support.clocks import ManualClock

pytestmark = pytest.mark.anyio

RECOVERY_S = 20.0


@dataclass
class Stage:
    """A running app on a clock that the test moves, and an HTTP client."""

    app: Runstone
    http: httpx2.AsyncClient
    clock: ManualClock
    curtain: asyncio.Event = field(default_factory=asyncio.Event)

    async def post(self, path: str = "/v1/runs", **body: object) -> httpx2.Response:
        return await self.http.post(path, json=body)

    async def ended(self, answer: httpx2.Response) -> str:
        assert answer.status_code == 201, answer.text
        run = (await self.http.get(f"/v1/runs/{answer.json()['run_id']}", params={"wait_s": 30})).json()
        return str(run["status"])

    async def break_it(self) -> None:
        """Opens the provider's breaker."""
        for _ in range(2):
            assert await self.ended(await self.post(agent="thinks", input="broken")) == "failed"

    async def ready(self) -> dict[str, Any]:
        answer = await self.http.get("/readyz")
        assert answer.status_code == 200
        found: dict[str, Any] = answer.json()
        return found

    async def metric(self, line: str) -> bool:
        return line in (await self.http.get("/metrics")).text.splitlines()


@pytest.fixture
async def stage(store_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    app, clock = Runstone(), ManualClock()
    holder: list[Stage] = []

    @app.agent(provider="llm")
    async def thinks(run: Run, how: str) -> str:
        if how == "broken":
            raise AgentError("no answer", retryable=True)
        if how == "held":
            await run.say("held")
            await holder[0].curtain.wait()
        return how

    @app.agent(provider="llm")
    async def thinks_too(run: Run) -> None: ...

    @app.agent
    async def plain(run: Run) -> None: ...

    class Timed(Breakers):
        """Breakers that see only the test's clock."""

        def __init__(self, _clock: object, *args: Any, **kwargs: Any) -> None:
            super().__init__(clock, *args, **kwargs)

    monkeypatch.setattr("runstone.server.Breakers", Timed)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.running(store=store_url, breaker_failures=2, breaker_recovery_s=RECOVERY_S))
        http = await stack.enter_async_context(
            httpx2.AsyncClient(base_url="http://127.0.0.1", transport=AsgiTransport(app.asgi, user_id="alice"))
        )
        holder.append(Stage(app, http, clock))
        yield holder[0]


async def test_a_start_behind_an_open_breaker_is_503_with_the_time_to_come_back(stage: Stage) -> None:
    await stage.break_it()
    stage.clock.seconds = 7.5
    answer = await stage.post(agent="thinks", input="well")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "13"
    said = answer.json()
    assert (said["code"], said["detail"]) == ("unavailable", "llm is failing; tried again in 13 s.")
    assert "Retry-After" in said["remedy"]
    assert (await stage.http.get("/v1/runs", params={"status": "queued"})).json()["runs"] == []
    thread = (await stage.post("/v1/threads")).json()["thread_id"]
    answer = await stage.post(f"/v1/threads/{thread}/runs", agent="thinks_too")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "13")
    assert await stage.metric('runstone_breaker_refusals_total{breaker="llm"} 2.0')


async def test_retry_after_is_at_least_a_second(stage: Stage) -> None:
    await stage.break_it()
    stage.clock.seconds = RECOVERY_S - 0.001
    assert (await stage.post(agent="thinks", input="well")).headers["retry-after"] == "1"


async def test_other_agents_start_and_what_is_wrong_is_said_first(stage: Stage) -> None:
    await stage.break_it()
    assert await stage.ended(await stage.post(agent="plain")) == "completed"
    assert (await stage.post(agent="thinks")).status_code == 422
    assert (await stage.post("/v1/threads/thr_none/runs", agent="thinks", input="well")).status_code == 404


async def test_a_run_that_was_started_before_is_answered_when_its_start_is_repeated(stage: Stage) -> None:
    first = await stage.post(agent="thinks", input="held", key="k")
    assert first.status_code == 201
    await stage.break_it()
    again = await stage.post(agent="thinks", input="held", key="k")
    assert (again.status_code, again.json()["run_id"]) == (200, first.json()["run_id"])
    assert (await stage.post(agent="thinks", input="other", key="k")).status_code == 422
    assert (await stage.post(agent="thinks", input="held", key="another")).status_code == 503
    stage.curtain.set()
    assert await stage.ended(first) == "completed"


async def test_a_start_that_is_only_repeated_does_not_take_the_turn(stage: Stage) -> None:
    await stage.post(agent="thinks", input="held", key="k")
    await stage.break_it()
    stage.clock.seconds = RECOVERY_S
    assert (await stage.post(agent="thinks", input="held", key="k")).status_code == 200
    assert (await stage.post(agent="thinks", input="other", key="k")).status_code == 422
    assert await stage.ended(await stage.post(agent="thinks", input="well")) == "completed"


async def test_however_many_start_at_once_after_the_recovery_time_one_run_tries(stage: Stage) -> None:
    await stage.break_it()
    stage.clock.seconds = RECOVERY_S
    answers = await asyncio.gather(*(stage.post(agent="thinks", input="held") for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [201] + [503] * 19
    assert {answer.headers["retry-after"] for answer in answers if answer.status_code == 503} == {"20"}
    stage.curtain.set()
    (started,) = [answer for answer in answers if answer.status_code == 201]
    assert await stage.ended(started) == "completed"
    answers = await asyncio.gather(*(stage.post(agent="thinks", input="well") for _ in range(20)))
    assert [answer.status_code for answer in answers] == [201] * 20


async def test_a_run_that_fails_in_its_turn_opens_the_breaker_again(stage: Stage) -> None:
    await stage.break_it()
    stage.clock.seconds = RECOVERY_S
    assert await stage.ended(await stage.post(agent="thinks", input="broken")) == "failed"
    answer = await stage.post(agent="thinks", input="well")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "20")


async def test_readiness_is_degraded_while_a_breaker_is_open_and_says_which_and_for_how_long(stage: Stage) -> None:
    assert await stage.ready() == {"status": "ready", "reasons": []}
    await stage.break_it()
    assert await stage.ready() == {"status": "degraded", "reasons": ["llm is failing; tried again in 20 s"]}
    assert await stage.metric('runstone_breaker_state{breaker="llm"} 2.0')
    stage.clock.seconds = RECOVERY_S
    assert await stage.ready() == {"status": "degraded", "reasons": ["llm is failing; one call tries it again"]}
    assert await stage.ended(await stage.post(agent="thinks", input="well")) == "completed"
    assert await stage.ready() == {"status": "ready", "reasons": []}
    assert await stage.metric('runstone_breaker_state{breaker="llm"} 0.0')
    async with stage.app.client("alice") as client:
        assert (await client.health()).status == "ready"
