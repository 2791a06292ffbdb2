"""One call of a tool with all that is done about failure: timeout, retries with growing pauses, circuit breaker."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - the default of an injected parameter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import stamina

from runstone.clock import Clock, to_datetime
from runstone.errors import ToolError
from runstone.metrics import Metrics
from runstone.runtime.breakers import Breakers, Refused, is_failure

_current: ContextVar[Calls] = ContextVar("runstone.calls")

T = TypeVar("T")

OnRetry = Callable[[int, float, Exception], Awaitable[None]]

RETRIES_MAX = 10
PAUSE_FIRST_S, PAUSE_MAX_S = 0.5, 10.0  # doubled from try to try; and up to half as much again by dice
BREAKER_PAUSE_S_MAX = 60.0  # what an open breaker takes longer than is not waited for


@dataclass(frozen=True)
class Policy:
    """What a tool was registered with. `timeout_s` is that of one try."""

    tool: str
    breaker: str
    timeout_s: float | None
    retries: int


class Calls:
    """Makes calls, on the breakers of one running system."""

    def __init__(
        self, breakers: Breakers, clock: Clock, metrics: Metrics, dice: Callable[[], float] = random.random
    ) -> None:
        self._breakers = breakers
        self._clock = clock
        self._metrics = metrics
        self._dice = dice

    @staticmethod
    def current() -> Calls:
        """Whoever makes the calls of the run that the calling code is a part of."""
        return _current.get()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Makes the calls of the block, and of the tasks that it starts."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    async def make(
        self, call: Callable[[], Awaitable[T]], policy: Policy, *, deadline: datetime, on_retry: OnRetry
    ) -> T:
        """The result, or what the last try raised; ToolError `Timeout` and `CircuitOpen` are our own.

        Where the breaker is open the first try is refused at once. A later one waits for it, and every pause ends
        in the first half of the time that is left to the deadline, the run's. `on_retry` is awaited before each
        pause, with the number of the try to come (1 is the first repetition), the pause and the error.
        """
        if not policy.retries:
            return await self._once(call, policy)
        again = _Again()
        async for attempt in stamina.retry_context(
            on=again,
            attempts=policy.retries + 1,
            timeout=None,
            wait_initial=PAUSE_FIRST_S,
            wait_max=PAUSE_MAX_S,
        ):
            again.error = None
            with attempt:
                try:
                    return await self._once(call, policy)
                except Exception as error:
                    pause_s = self._pause_s(error, attempt, policy)
                    if pause_s is None or pause_s > self._left_s(deadline) / 2:
                        raise
                    await on_retry(attempt.num, pause_s, error)
                    self._metrics.tool_retries.labels(tool=policy.tool).inc()
                    again.error, again.pause_s = error, pause_s
                    raise
        raise AssertionError("unreachable")

    def _pause_s(self, error: Exception, attempt: stamina.Attempt, policy: Policy) -> float | None:
        """How long to wait before another try; None: there is none."""
        refused = isinstance(error.__cause__, Refused)
        if attempt.num > policy.retries or not is_failure(error) or (refused and attempt.num == 1):
            return None
        open_for_s = self._breakers.open_for_s(policy.breaker) or 0.0
        if open_for_s > BREAKER_PAUSE_S_MAX:
            return None
        # Our own jitter, so that the pause people are told of is the one that is made.
        return max(open_for_s, attempt.next_wait) + attempt.next_wait * self._dice() / 2

    def _left_s(self, deadline: datetime) -> float:
        return (deadline - to_datetime(self._clock.now_us())).total_seconds()

    async def _once(self, call: Callable[[], Awaitable[T]], policy: Policy) -> T:
        try:
            with self._breakers.guard(policy.breaker):
                return await _in_time(call, policy)
        except Refused as refused:
            self._metrics.breaker_refusals.labels(breaker=policy.breaker).inc()
            raise ToolError("CircuitOpen", f"{refused}.") from refused


class _Again:
    """What stamina asks after each try: whether to make another, and after which pause.

    Only for the error that it was decided on: a cancel that comes meanwhile is one that stamina asks about too.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.pause_s = 0.0

    def __call__(self, error: Exception) -> bool | float:
        return self.pause_s if error is self.error else False


async def _in_time(call: Callable[[], Awaitable[T]], policy: Policy) -> T:
    timeout = asyncio.timeout(policy.timeout_s)
    try:
        async with timeout:
            return await call()
    except TimeoutError:
        if not timeout.expired():
            raise  # the tool's own
        raise ToolError("Timeout", f"{policy.tool} took longer than {policy.timeout_s:g} s") from None
