"""Timeouts, retries and circuit breakers of single calls, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
import stamina._core

from runstone.clock import to_datetime
from runstone.errors import AgentError, Invalid, StaleAttempt, ToolError
from runstone.metrics import Metrics
from runstone.runtime import resilience
from runstone.runtime.breakers import Breakers
from runstone.runtime.resilience import Calls, Policy
from tests.support.clocks import ManualClock

pytestmark = pytest.mark.anyio

RECOVERY_S = 30.0
WAIT_S = 10.0


class Bench:
    """Breakers that open after three failures, and a caller on them."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.metrics = Metrics()
        self.breakers = Breakers(self.clock, self.metrics, failures=3, recovery_s=RECOVERY_S)
        self.calls = Calls(self.breakers, self.clock, self.metrics, dice=lambda: 0.5)
        self.retries: list[tuple[int, float, str]] = []
        self.deadline = to_datetime(self.clock.now_us()) + timedelta(hours=1)

    async def call(
        self,
        call: Callable[[], Awaitable[Any]],
        name: str = "search",
        *,
        retries: int = 0,
        timeout_s: float | None = 5.0,
    ) -> Any:
        async def on_retry(number: int, pause_s: float, error: Exception) -> None:
            self.retries.append((number, pause_s, str(error)))

        policy = Policy(tool=name, breaker=name, timeout_s=timeout_s, retries=retries)
        async with asyncio.timeout(WAIT_S):
            return await self.calls.make(call, policy, deadline=self.deadline, on_retry=on_retry)

    async def fails(self, error: Exception, name: str = "search", **kwargs: Any) -> None:
        with pytest.raises(type(error)) as caught:
            await self.call(raising(error), name, **kwargs)
        assert caught.value is error

    async def opened(self, name: str = "search") -> None:
        """Opens a breaker."""
        for _ in range(3):
            await self.fails(ConnectionError("down"), name)
        assert self.breakers.open_for_s(name) == RECOVERY_S

    async def refused(self, name: str = "search", **kwargs: Any) -> ToolError:
        with pytest.raises(ToolError) as caught:
            await self.call(never, name, **kwargs)
        assert caught.value.type == "CircuitOpen"
        return caught.value

    def sample(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(name, labels)


def raising(*errors: Exception, result: object = "found") -> Callable[[], Awaitable[object]]:
    """Raises one error a call, the last of them for ever; unless a result comes after them."""
    left = list(errors)

    async def call() -> object:
        if left:
            raise left.pop(0) if len(left) > 1 or result != "found" else left[0]
        return result

    return call


async def works() -> str:
    return "found"


async def never() -> None:
    raise AssertionError("this call is not to be made")


class Held:
    """A call that is under way until the test ends it."""

    def __init__(self) -> None:
        self.called = asyncio.Event()
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.called.set()
        return await self.end


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses a hundredth as long."""
    monkeypatch.setattr(resilience, "PAUSE_FIRST_S", 0.005)
    monkeypatch.setattr(resilience, "PAUSE_MAX_S", 0.1)


# --- the breaker ------------------------------------------------------------------------------------------------


async def test_a_breaker_opens_after_so_many_failures_in_a_row_and_refuses_the_next_call_at_once(bench: Bench) -> None:
    for _ in range(2):
        await bench.fails(ConnectionError("down"))
        assert bench.breakers.open_for_s("search") is None
    await bench.fails(ConnectionError("down"))
    assert bench.breakers.open_for_s("search") == RECOVERY_S
    bench.clock.seconds = 11.5
    refusal = await bench.refused()
    assert refusal.detail == "search is failing; tried again in 19 s."
    assert bench.breakers.failing() == {"search": 18.5}


async def test_a_success_between_failures_begins_the_count_again(bench: Bench) -> None:
    for _ in range(4):
        await bench.fails(ConnectionError("down"))
        await bench.fails(ConnectionError("down"))
        assert await bench.call(works) == "found"
    assert bench.breakers.open_for_s("search") is None


async def test_a_breaker_that_opens_stops_no_other(bench: Bench) -> None:
    await bench.opened("search")
    assert await bench.call(works, "weather") == "found"
    await bench.refused("search")


async def test_after_the_recovery_time_one_call_is_let_through_and_its_success_closes(bench: Bench) -> None:
    await bench.opened()
    bench.clock.seconds = RECOVERY_S - 0.001
    await bench.refused()
    bench.clock.seconds = RECOVERY_S
    assert bench.breakers.open_for_s("search") == 0
    assert await bench.call(works) == "found"
    assert bench.breakers.open_for_s("search") is None
    assert bench.breakers.failing() == {}
    await bench.fails(ConnectionError("down"))
    assert await bench.call(works) == "found"  # the count began anew


async def test_however_many_ask_at_once_one_tries(bench: Bench) -> None:
    await bench.opened()
    bench.clock.seconds = RECOVERY_S
    held = Held()
    made = 0

    async def ask() -> str:
        nonlocal made

        async def call() -> str:
            nonlocal made
            made += 1
            return await held()

        try:
            return str(await bench.call(call))
        except ToolError as error:
            return error.detail

    asking = [asyncio.create_task(ask()) for _ in range(50)]
    await held.called.wait()
    async with asyncio.timeout(WAIT_S):
        while sum(task.done() for task in asking) < 49:
            await asyncio.sleep(0)
    held.end.set_result("found")
    answers = await asyncio.gather(*asking)
    assert made == 1
    assert sorted(answers) == ["found"] + ["search is failing; one call tries it again."] * 49
    assert bench.breakers.open_for_s("search") is None


async def test_a_failing_try_opens_it_again_for_as_long(bench: Bench) -> None:
    await bench.opened()
    bench.clock.seconds = RECOVERY_S + 5
    await bench.fails(ConnectionError("still down"))
    assert bench.breakers.open_for_s("search") == RECOVERY_S
    await bench.refused()
    bench.clock.seconds += RECOVERY_S
    assert await bench.call(works) == "found"


async def test_a_cancelled_try_gives_the_turn_back(bench: Bench) -> None:
    await bench.opened()
    bench.clock.seconds = RECOVERY_S
    for _ in range(3):
        held = Held()
        trying = asyncio.create_task(bench.call(held))
        await held.called.wait()
        await bench.refused()
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
    assert bench.breakers.open_for_s("search") == 0
    assert await bench.call(works) == "found"
    assert bench.breakers.open_for_s("search") is None


async def test_cancels_are_not_failures(bench: Bench) -> None:
    for _ in range(10):
        held = Held()
        trying = asyncio.create_task(bench.call(held))
        await held.called.wait()
        trying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trying
    assert bench.breakers.open_for_s("search") is None


@pytest.mark.parametrize(
    "error",
    [AgentError("no such city"), Invalid.at("input", "not JSON"), StaleAttempt("gone")],
    ids=lambda error: type(error).__name__,
)
async def test_what_the_caller_did_wrong_is_no_failure_no_success_and_not_tried_again(
    bench: Bench, error: Exception
) -> None:
    await bench.fails(ConnectionError("down"))
    await bench.fails(ConnectionError("down"))
    for _ in range(5):
        await bench.fails(error, retries=3)
    assert bench.retries == []
    assert bench.breakers.open_for_s("search") is None
    await bench.fails(ConnectionError("down"))
    assert bench.breakers.open_for_s("search") == RECOVERY_S
    bench.clock.seconds = RECOVERY_S
    await bench.fails(error)  # let through, and it says nothing
    assert bench.breakers.open_for_s("search") == 0
    assert await bench.call(works) == "found"


@pytest.mark.usefixtures("quick")
async def test_a_retryable_agent_error_is_a_failure(bench: Bench) -> None:
    await bench.fails(AgentError("overloaded", retryable=True), retries=1)
    assert [error for _, _, error in bench.retries] == ["overloaded"]
    await bench.fails(AgentError("overloaded", retryable=True))
    assert bench.breakers.open_for_s("search") == RECOVERY_S


async def test_what_a_call_failed_with_is_not_kept(bench: Bench) -> None:
    class Big:
        pass

    async def call() -> None:
        big = Big()
        seen.append(weakref.ref(big))
        raise ConnectionError("down")

    seen: list[weakref.ref[Big]] = []
    with pytest.raises(ConnectionError):
        await bench.call(call)
    gc.collect()
    assert [ref() for ref in seen] == [None]


# --- reports and starts --------------------------------------------------------------------------------------------


async def test_reports_open_a_breaker_and_close_it(bench: Bench) -> None:
    for _ in range(3):
        bench.breakers.report("llm", failed=True)
    assert bench.breakers.open_for_s("llm") == RECOVERY_S
    bench.breakers.report("llm", failed=False)
    assert bench.breakers.open_for_s("llm") == RECOVERY_S  # begun before
    bench.clock.seconds = RECOVERY_S
    bench.breakers.report("llm", failed=True)
    assert bench.breakers.open_for_s("llm") == RECOVERY_S
    bench.clock.seconds += RECOVERY_S
    bench.breakers.report("llm", failed=False)
    assert bench.breakers.open_for_s("llm") is None


async def test_one_start_in_each_recovery_time_is_let_through_until_something_is_known(bench: Bench) -> None:
    await bench.opened("llm")
    with bench.breakers.start("llm") as start:
        assert start.refusal is not None
        assert start.refusal.retry_after_s == RECOVERY_S
    bench.clock.seconds = RECOVERY_S
    with bench.breakers.start("llm") as start, bench.breakers.start("llm") as second:
        assert start.refusal is None
        assert second.refusal is not None
        start.used = True
    bench.clock.seconds += 10
    with bench.breakers.start("llm") as start:
        assert start.refusal is not None
        assert start.refusal.retry_after_s == RECOVERY_S - 10
    bench.clock.seconds += 20
    with bench.breakers.start("llm") as start:  # nothing was heard of the first one
        assert start.refusal is None
    bench.breakers.report("llm", failed=False)
    for _ in range(3):
        with bench.breakers.start("llm") as start:
            assert start.refusal is None


async def test_a_start_that_comes_to_nothing_gives_the_turn_back(bench: Bench) -> None:
    await bench.opened("llm")
    bench.clock.seconds = RECOVERY_S

    def broken() -> None:
        with bench.breakers.start("llm"):
            raise Invalid.at("input", "no")

    with pytest.raises(Invalid):
        broken()
    with bench.breakers.start("llm") as start:
        assert start.refusal is None


# --- timeouts ----------------------------------------------------------------------------------------------------


async def test_a_timeout_is_an_error_of_its_own_and_a_failure(bench: Bench) -> None:
    for _ in range(3):
        with pytest.raises(ToolError, match=r"search took longer than 0\.01 s") as caught:
            await bench.call(Held(), timeout_s=0.01)
        assert caught.value.type == "Timeout"
    assert bench.breakers.open_for_s("search") == RECOVERY_S


async def test_a_timeout_error_of_the_tool_itself_stays_what_it_is(bench: Bench) -> None:
    await bench.fails(TimeoutError("the database's"))


# --- retries --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("quick")
async def test_a_failed_call_is_made_again_and_each_pause_is_told_before_it_is_made(bench: Bench) -> None:
    loop = asyncio.get_running_loop()
    called: list[float] = []

    async def call() -> str:
        called.append(loop.time())
        if len(called) < 3:
            raise ConnectionError(f"down {len(called)}")
        return "found"

    assert await bench.call(call, retries=3) == "found"
    assert bench.retries == [(1, 0.00625, "down 1"), (2, 0.0125, "down 2")]  # half of the dice's half on top
    pauses = [after - before for before, after in pairwise(called)]
    assert all(pause >= told for pause, (_, told, _) in zip(pauses, bench.retries, strict=True))
    assert bench.sample("runstone_tool_retries_total", tool="search") == 2
    assert bench.breakers.open_for_s("search") is None


@pytest.mark.usefixtures("quick")
async def test_the_last_error_is_raised_when_no_retry_is_left(bench: Bench) -> None:
    errors = [ConnectionError(str(number)) for number in range(3)]
    with pytest.raises(ConnectionError) as caught:
        await bench.call(raising(*errors), retries=1)
    assert caught.value is errors[1]
    assert [number for number, _, _ in bench.retries] == [1]


async def test_without_retries_a_call_is_made_once(bench: Bench) -> None:
    await bench.fails(ConnectionError("down"))
    assert bench.retries == []


async def test_pauses_grow_are_spread_and_have_a_bound(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(_seconds: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(stamina._core, "_smart_sleep", at_once)
    breakers = Breakers(bench.clock, bench.metrics, failures=100, recovery_s=RECOVERY_S)
    bench.calls = Calls(breakers, bench.clock, bench.metrics, dice=lambda: 1.0)
    await bench.fails(ConnectionError("down"), retries=7)
    assert [pause_s for _, pause_s, _ in bench.retries] == [0.75, 1.5, 3, 6, 12, 15, 15]


@pytest.mark.usefixtures("quick")
async def test_no_pause_takes_more_than_half_of_the_time_that_is_left(bench: Bench) -> None:
    bench.deadline = to_datetime(bench.clock.now_us()) + timedelta(seconds=0.02)
    await bench.fails(ConnectionError("down"), retries=5)
    assert [pause_s for _, pause_s, _ in bench.retries] == [0.00625]


@pytest.mark.usefixtures("quick")
async def test_a_cancel_while_people_are_told_ends_the_call(bench: Bench) -> None:
    telling = asyncio.Event()
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        raise ConnectionError("down")

    async def on_retry(*_about: object) -> None:
        telling.set()
        await asyncio.Event().wait()

    policy = Policy(tool="search", breaker="search", timeout_s=None, retries=3)
    trying = asyncio.create_task(bench.calls.make(call, policy, deadline=bench.deadline, on_retry=on_retry))
    await telling.wait()
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert made == 1


async def test_a_cancel_in_the_pause_ends_the_call(bench: Bench) -> None:
    told = asyncio.Event()
    made = 0

    async def call() -> None:
        nonlocal made
        made += 1
        raise ConnectionError("down")

    async def on_retry(*_about: object) -> None:
        told.set()

    policy = Policy(tool="search", breaker="search", timeout_s=None, retries=3)
    trying = asyncio.create_task(bench.calls.make(call, policy, deadline=bench.deadline, on_retry=on_retry))
    await told.wait()
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert made == 1


@pytest.mark.usefixtures("quick")
async def test_an_error_while_people_are_told_ends_the_call(bench: Bench) -> None:
    async def on_retry(*_about: object) -> None:
        raise StaleAttempt("another worker has it")

    policy = Policy(tool="search", breaker="search", timeout_s=None, retries=3)
    with pytest.raises(StaleAttempt):
        await bench.calls.make(raising(ConnectionError("down")), policy, deadline=bench.deadline, on_retry=on_retry)


# --- retries and breakers together -------------------------------------------------------------------------------


async def test_a_call_is_refused_at_once_also_when_it_has_retries(bench: Bench) -> None:
    await bench.opened()
    refusal = await bench.refused(retries=5)
    assert bench.retries == []
    assert refusal.detail == "search is failing; tried again in 30 s."
    assert bench.sample("runstone_breaker_refusals_total", breaker="search") == 1


async def test_a_retry_waits_for_the_breaker_that_its_call_has_opened(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pass_by(seconds: float) -> None:
        bench.clock.seconds += seconds

    monkeypatch.setattr(stamina._core, "_smart_sleep", pass_by)
    await bench.fails(ConnectionError("down"))
    await bench.fails(ConnectionError("down"))
    made = 0

    async def call() -> str:
        nonlocal made
        made += 1
        if made == 1:
            raise ConnectionError("down")
        return "found"

    assert await bench.call(call, retries=1) == "found"
    ((number, pause_s, _error),) = bench.retries
    assert (number, pause_s) == (1, RECOVERY_S + 0.125)
    assert bench.breakers.open_for_s("search") is None


async def test_a_breaker_that_stays_open_for_long_is_not_waited_for(bench: Bench) -> None:
    breakers = Breakers(bench.clock, bench.metrics, failures=1, recovery_s=61)
    bench.calls = Calls(breakers, bench.clock, bench.metrics)
    await bench.fails(ConnectionError("down"), retries=5)
    assert bench.retries == []


@pytest.mark.usefixtures("quick")
async def test_a_retry_that_meets_somebody_elses_try_counts_as_one(bench: Bench) -> None:
    breakers = Breakers(bench.clock, bench.metrics, failures=1, recovery_s=0.001)
    bench.calls = Calls(breakers, bench.clock, bench.metrics, dice=lambda: 0.5)
    held = Held()
    trying: list[asyncio.Task[Any]] = []

    async def call() -> None:
        raise ConnectionError("down")

    async def on_retry(number: int, _pause_s: float, error: Exception) -> None:
        bench.retries.append((number, 0.0, type(error).__name__))
        if number == 1:  # somebody else is faster
            bench.clock.seconds += 1
            trying.append(asyncio.create_task(bench.call(held)))
            await held.called.wait()

    policy = Policy(tool="search", breaker="search", timeout_s=None, retries=2)
    with pytest.raises(ToolError, match="one call tries it again") as caught:
        await bench.calls.make(call, policy, deadline=bench.deadline, on_retry=on_retry)
    assert caught.value.type == "CircuitOpen"
    assert bench.retries == [(1, 0.0, "ConnectionError"), (2, 0.0, "ToolError")]
    held.end.set_result("found")
    await asyncio.gather(*trying)


# --- metrics -----------------------------------------------------------------------------------------------------


async def test_the_state_of_each_breaker_is_a_metric(bench: Bench) -> None:
    def state() -> float | None:
        return bench.sample("runstone_breaker_state", breaker="search")

    assert state() is None
    await bench.call(works)
    assert state() == 0
    await bench.opened()
    assert state() == 2
    bench.clock.seconds = RECOVERY_S
    held = Held()
    trying = asyncio.create_task(bench.call(held))
    await held.called.wait()
    assert state() == 1
    held.end.set_result("found")
    await trying
    assert state() == 0
