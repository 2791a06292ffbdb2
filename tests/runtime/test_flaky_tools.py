"""Tools and providers that fail: what the log says of it, whom it stops, and whom it does not."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from runstone import Action, AgentError, Run, RunFailed, Runstone, ToolError
from runstone.errors import BadConfig, Unavailable
from runstone.runtime import resilience
from tests.runtime.support import Place, running

pytestmark = pytest.mark.anyio


class World:
    """What the tools of these tests depend on: how often it fails from now on, and how often it was asked."""

    def __init__(self) -> None:
        self.failures = 0
        self.asked = 0
        self.let_go, self.ended = threading.Event(), threading.Event()
        self.reached = asyncio.Event()

    def ask(self) -> str:
        self.asked += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError(f"no answer {self.asked}")
        return "an answer"


def flaky(world: World) -> Runstone:
    app = Runstone()
    tools = tools_of(app, world)
    users_of(app, tools)
    thinkers_of(app, world, tools)
    return app


def tools_of(app: Runstone, world: World) -> dict[str, Any]:
    @app.tool(retries=3, idempotent=True)
    async def search(query: str, action: Action) -> str:
        await action.write(f"asking for {query}\n")
        return world.ask()

    @app.tool(retries=3, idempotent=True)
    def search_in_thread(query: str) -> str:
        return world.ask()

    @app.tool(retries=1, idempotent=True, private=True)
    async def balance(query: str) -> str:
        return world.ask()

    @app.tool
    async def once(query: str) -> str:
        return world.ask()

    @app.tool(provider="maps")
    async def route(query: str) -> str:
        return world.ask()

    @app.tool(provider="maps")
    async def place(query: str) -> str:
        return world.ask()

    @app.tool
    async def picky(query: str) -> str:
        raise AgentError(f"there is no {query}")

    @app.tool(timeout_s=0.05)
    def hangs(query: str) -> str:
        world.let_go.wait(20)
        world.ended.set()
        return "late"

    return {tool.name: tool for tool in (search, search_in_thread, balance, once, route, place, picky, hangs)}


def users_of(app: Runstone, tools: dict[str, Any]) -> None:
    @app.agent
    async def uses(run: Run, tool: str, query: str = "stone") -> str:
        return str(await tools[tool](query=query))

    @app.agent
    async def tries(run: Run, tool: str, times: int) -> list[str]:
        said = []
        for number in range(times):
            try:
                said.append(str(await tools[tool](query=f"stone {number}")))
            except ToolError as error:
                said.append(f"{error.type}: {error.detail}")
        return said


def thinkers_of(app: Runstone, world: World, tools: dict[str, Any]) -> None:
    @app.agent(provider="llm")
    async def thinks(run: Run, how: str) -> str:
        match how:
            case "broken":
                raise ConnectionError("no answer")
            case "overloaded":
                raise AgentError("overloaded", retryable=True)
            case "wrong":
                raise AgentError("ask for something else")
            case "tool":
                world.failures = 1
                await tools["once"](query="stone")
            case "waits":
                world.reached.set()
                await asyncio.Event().wait()
        return how

    @app.agent(provider="llm", timeout_s=0.05)
    async def thinks_for_long(run: Run) -> None:
        await asyncio.Event().wait()

    @app.agent
    async def asks(run: Run, how: str) -> str:
        try:
            return str(await run.call("thinks", how))
        except RunFailed as error:
            return error.type


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def there(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """The app, with pauses of hundredths of a second."""
    monkeypatch.setattr(resilience, "PAUSE_FIRST_S", 0.01)
    monkeypatch.setattr(resilience, "PAUSE_MAX_S", 0.05)
    async with running(flaky(world), tmp_path) as place:
        yield place
    world.let_go.set()


def open_for_s(there: Place, name: str) -> float | None:
    found: float | None = there.system.gateway._breakers.open_for_s(name)
    return found


async def fail(there: Place, world: World, tool: str, times: int = 5) -> None:
    world.failures = times
    run = await there.finished("tries", {"tool": tool, "times": times})
    assert run.output is not None
    world.failures = 0


# --- retries -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tool", ["search", "search_in_thread"])
async def test_a_call_that_fails_is_made_again_within_one_action_and_the_log_says_so(
    there: Place, world: World, tool: str
) -> None:
    world.failures = 2
    run = await there.finished("uses", {"tool": tool})
    assert (run.status, run.output) == ("completed", "an answer")
    (action,) = await there.actions(run)
    assert (action.status, action.output) == ("success", "an answer")
    events = [event for event in await there.events(run) if "action_id" in event.data and event.type != "tool_output"]
    assert [event.type for event in events] == ["tool_executing", "agent_retrying", "agent_retrying", "tool_completed"]
    pauses_ms = 0
    for number, event in enumerate(events[1:3], 1):
        data: Any = event.data
        assert data["action_id"] == action.action_id
        assert data["try"] == number
        assert data["error"] == {"type": "ConnectionError", "message": f"no answer {number}"}
        assert 10 * number <= data["delay_ms"] <= 15 * number + 1
        recovery = datetime.fromisoformat(data["expected_recovery"]) - event.time
        assert abs(recovery - timedelta(milliseconds=data["delay_ms"])) < timedelta(seconds=1)
        pauses_ms += data["delay_ms"]
        begun = events[number + 1].time - event.time
        assert begun >= timedelta(milliseconds=data["delay_ms"] - 1)
    duration_ms: Any = events[3].data["duration_ms"]
    assert duration_ms >= pauses_ms - 1
    metrics = there.system.metrics.exposition().decode()
    assert f'runstone_tool_retries_total{{tool="{tool}"}} 2.0' in metrics


async def test_a_call_that_fails_too_often_is_an_error_with_what_it_failed_of_last(there: Place, world: World) -> None:
    world.failures = 4
    run = await there.finished("tries", {"tool": "search", "times": 1})
    assert run.output == ["ConnectionError: no answer 4"]
    assert world.asked == 4
    (action,) = await there.actions(run)
    assert action.status == "error"
    assert len(await there.events(run, "agent_retrying")) == 3


async def test_a_tool_that_says_that_its_caller_was_wrong_is_not_called_again_and_opens_nothing(there: Place) -> None:
    run = await there.finished("tries", {"tool": "picky", "times": 10})
    assert run.output == [f"AgentError: there is no stone {number}" for number in range(10)]
    assert await there.events(run, "agent_retrying") == []
    assert open_for_s(there, "picky") is None


async def test_the_retry_of_a_private_tool_says_nothing_but_that_it_is_one(there: Place, world: World) -> None:
    world.failures = 1
    run = await there.finished("uses", {"tool": "balance", "query": "secret"})
    (event,) = await there.events(run, "agent_retrying")
    (action,) = await there.actions(run)
    assert event.data == {"action_id": action.action_id, "private": True}


async def test_a_run_that_is_cancelled_in_a_pause_ends_at_once(
    there: Place, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resilience, "PAUSE_FIRST_S", 60.0)
    monkeypatch.setattr(resilience, "PAUSE_MAX_S", 60.0)
    world.failures = 1
    run = await there.start("uses", {"tool": "search"})
    retrying = await there.seen(run, "agent_retrying")
    assert int(str(retrying.data["delay_ms"])) >= 60_000
    await run.cancel()
    ended = await there.ended(run)
    assert ended.status == "cancelled"
    (action,) = await there.actions(ended)
    assert action.status == "interrupted"
    assert world.asked == 1


# --- timeouts ----------------------------------------------------------------------------------------------------


async def test_a_timeout_ends_the_wait_for_a_thread_but_not_the_thread(there: Place, world: World) -> None:
    run = await there.finished("tries", {"tool": "hangs", "times": 1})
    assert run.output == ["Timeout: hangs took longer than 0.05 s"]
    assert not world.ended.is_set()
    world.let_go.set()
    assert await asyncio.to_thread(world.ended.wait, 20)


async def test_timeouts_open_the_breaker_and_then_no_thread_is_begun(there: Place, world: World) -> None:
    run = await there.finished("tries", {"tool": "hangs", "times": 7})
    assert isinstance(run.output, list)
    assert run.output[:5] == ["Timeout: hangs took longer than 0.05 s"] * 5
    assert [str(said).split(";")[0] for said in run.output[5:]] == ["CircuitOpen: hangs is failing"] * 2


# --- breakers of tools ---------------------------------------------------------------------------------------------


async def test_a_tool_that_keeps_failing_is_left_alone_for_everybody_and_no_other_is(
    there: Place, world: World
) -> None:
    await fail(there, world, "once")
    asked = world.asked
    async with there.app.client("bob") as bob:
        refused = await (await bob.start("tries", {"tool": "once", "times": 1})).result(timeout_s=30)
        assert refused.output is not None
        assert str(refused.output).startswith("['CircuitOpen: once is failing; tried again in ")
        assert world.asked == asked
        (action,) = await bob.actions(refused.thread_id)
        assert action.status == "error"
        other = await (await bob.start("uses", {"tool": "search"})).result(timeout_s=30)
        assert other.output == "an answer"


async def test_tools_of_one_provider_have_one_breaker(there: Place, world: World) -> None:
    await fail(there, world, "route")
    assert open_for_s(there, "route") is None
    assert open_for_s(there, "maps") is not None
    run = await there.finished("tries", {"tool": "place", "times": 1})
    assert str(run.output).startswith("['CircuitOpen: maps is failing; tried again in ")


async def test_a_call_under_way_waits_until_the_breaker_lets_it_try(world: World, tmp_path: Path) -> None:
    world.failures = 1
    async with running(flaky(world), tmp_path, breaker_failures=1, breaker_recovery_s=1.5) as there:
        run = await there.finished("uses", {"tool": "search"})
        assert run.output == "an answer"
        (event,) = await there.events(run, "agent_retrying")
        assert int(str(event.data["delay_ms"])) >= 1490
        assert open_for_s(there, "search") is None


# --- breakers of agents ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "counts"), [("broken", True), ("overloaded", True), ("wrong", False), ("tool", False)])
async def test_which_ends_of_a_run_speak_against_its_provider(
    there: Place, world: World, how: str, counts: bool
) -> None:
    for _ in range(5):
        assert (await there.finished("thinks", how)).status == "failed"
        there.system.gateway._breakers.report("once", failed=False)  # the tool's own is not looked at here
    assert (open_for_s(there, "llm") is not None) is counts


async def test_a_run_that_takes_too_long_speaks_against_its_provider(there: Place) -> None:
    for _ in range(5):
        assert (await there.finished("thinks_for_long")).status == "failed"
    assert open_for_s(there, "llm") is not None


async def test_a_cancelled_run_says_nothing_of_its_provider_and_a_completed_one_that_it_works(
    there: Place, world: World
) -> None:
    for _ in range(4):
        await there.finished("thinks", "broken")
    for _ in range(2):
        world.reached.clear()
        run = await there.start("thinks", "waits")
        await world.reached.wait()
        await run.cancel()
        assert (await there.ended(run)).status == "cancelled"
    assert open_for_s(there, "llm") is None
    await there.finished("thinks", "well")
    await there.finished("thinks", "broken")
    assert open_for_s(there, "llm") is None


async def test_a_run_that_another_calls_counts_too(there: Place) -> None:
    for _ in range(5):
        assert (await there.finished("asks", "broken")).output == "ConnectionError"
    assert open_for_s(there, "llm") is not None


async def test_runs_under_way_go_on_behind_an_open_breaker(there: Place, world: World) -> None:
    under_way = await there.start("thinks", "waits")
    await world.reached.wait()
    for _ in range(5):
        await there.finished("thinks", "broken")
    assert open_for_s(there, "llm") is not None
    assert (await under_way.refresh()).status == "running"
    await under_way.cancel()
    assert (await there.ended(under_way)).status == "cancelled"


async def test_a_client_waits_for_as_long_as_the_server_says_and_starts_then(world: World, tmp_path: Path) -> None:
    async with running(flaky(world), tmp_path, breaker_failures=1, breaker_recovery_s=0.8) as there:
        await there.finished("thinks", "broken")
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert (await there.finished("thinks", "well")).output == "well"
        assert loop.time() - before >= 0.9  # a second: Retry-After has whole ones
        assert open_for_s(there, "llm") is None


async def test_a_client_that_would_wait_for_too_long_is_told_at_once(world: World, tmp_path: Path) -> None:
    async with running(flaky(world), tmp_path, breaker_failures=1, breaker_recovery_s=600) as there:
        await there.finished("thinks", "broken")
        with pytest.raises(Unavailable, match=r"llm is failing; tried again in (600|599) s") as caught:
            await there.start("thinks", "well")
        assert "runs that were started before go on" in caught.value.remedy


# --- registration --------------------------------------------------------------------------------------------------


def test_retries_need_an_idempotent_tool() -> None:
    with pytest.raises(BadConfig, match="pays has retries, but is not idempotent") as caught:

        @Runstone().tool(retries=1)
        async def pays() -> None: ...

    assert "idempotent=True" in caught.value.remedy


@pytest.mark.parametrize("retries", [-1, 11])
def test_retries_have_a_bound(retries: int) -> None:
    with pytest.raises(BadConfig, match="retries must be 0 to 10"):

        @Runstone().tool(retries=retries, idempotent=True)
        async def search() -> None: ...


def test_a_provider_has_a_name_like_everything_else() -> None:
    with pytest.raises(BadConfig, match="provider 'a b'"):

        @Runstone().tool(provider="a b")
        async def search() -> None: ...

    with pytest.raises(BadConfig, match="provider ''"):

        @Runstone().agent(provider="")
        async def thinks(run: Run) -> None: ...


async def test_outside_a_run_a_tool_is_the_plain_function() -> None:
    asked = 0

    @Runstone().tool(retries=3, idempotent=True)
    async def search() -> None:
        nonlocal asked
        asked += 1
        raise ConnectionError("down")

    for _ in range(10):
        with pytest.raises(ConnectionError):
            await search()
    assert asked == 10
