"""Circuit breakers by name: whoever fails again and again is left alone for a while, then tried once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import ceil, inf

import interlock

from runstone.clock import Clock
from runstone.errors import AgentError, RunstoneError, ToolError, Unavailable
from runstone.metrics import Metrics

_GAUGE = {interlock.State.CLOSED: 0, interlock.State.HALF_OPEN: 1, interlock.State.OPEN: 2}


class Refused(Exception):
    """The breaker lets nothing through; `again_s`: for how long, 0 while one try is under way."""

    def __init__(self, name: str, again_s: float) -> None:
        super().__init__(name)
        self.name = name
        self.again_s = again_s

    def __str__(self) -> str:
        return f"{self.name} is failing; {tried_again(self.again_s)}"


def tried_again(again_s: float) -> str:
    return f"tried again in {ceil(again_s)} s" if again_s > 0 else "one call tries it again"


def is_failure(error: BaseException) -> bool:
    """Whether an error speaks against who was called, so that it counts and another try may help.

    Not a cancel; not an `AgentError`, by which the called says that the caller was wrong, unless that is
    `retryable`; and not what Runstone itself refuses.
    """
    if isinstance(error, AgentError):
        return error.retryable
    return isinstance(error, ToolError) or (isinstance(error, Exception) and not isinstance(error, RunstoneError))


class Breakers:
    """The breakers of one running system. Confined to the event loop; no method waits.

    A breaker is closed until `failures` calls in a row have failed; then open, and refuses, for `recovery_s`; then
    half-open: the next call is let through, alone, and its success closes the breaker, its failure opens it again.
    """

    def __init__(self, clock: Clock, metrics: Metrics, *, failures: int, recovery_s: float) -> None:
        self._clock = clock
        self._metrics = metrics
        self._recovery_s = recovery_s
        self._opened: dict[str, float] = {}  # when the breakers that are not closed opened
        self._turns: dict[str, float] = {}  # until when nobody else may start, by provider
        config = interlock.Config(
            window_size=failures,  # all of a window of n have failed: n in a row
            minimum_number_of_calls=failures,
            failure_rate_threshold=1.0,
            slow_call_duration_threshold=inf,  # what is too slow, its own timeout says
            permitted_calls_in_half_open=1,
            wait_duration_in_open=recovery_s,
        )
        self._registry = interlock.Registry(config=config, clock=clock, listener=_Changes(self))

    def open_for_s(self, name: str) -> float | None:
        """Seconds until the breaker lets one try through, 0 when it would now, or does; None where it is closed."""
        opened = self._opened.get(name)
        return None if opened is None else max(0.0, opened + self._recovery_s - self._clock.monotonic())

    def failing(self) -> dict[str, float]:
        """The breakers that are not closed, and for how many seconds they let nothing through."""
        return {name: self.open_for_s(name) or 0.0 for name in sorted(self._opened)}

    @contextmanager
    def guard(self, name: str) -> Iterator[None]:
        """One call. Raises Refused instead of making it; what the call raises is counted by `is_failure`."""
        breaker = self._registry.get_existing(name) or self._made(name)
        try:
            breaker.__enter__()
        except interlock.CircuitOpenError as refusal:
            raise Refused(name, refusal.retry_after or 0.0) from None
        try:
            yield
        except BaseException as error:
            # Not the error itself: the breaker would keep it, and with it every frame that it came through.
            verdict = _Failed() if is_failure(error) else _Uncounted()
            breaker.__exit__(type(verdict), verdict, None)
            raise
        breaker.__exit__(None, None, None)

    def report(self, name: str, *, failed: bool) -> None:
        """Counts a call that was not guarded because nothing may stop it; an open breaker does not listen."""
        with suppress(Refused, _Failed), self.guard(name):
            if failed:
                raise _Failed

    @contextmanager
    def start(self, name: str | None) -> Iterator[Start]:
        """A start of what may run for hours, and so is no call: while the breaker is not closed, one per `recovery_s`.

        Who enters without a refusal has the turn, and gives it back on exit unless it was `used`.
        """
        wait_s = None if name is None else self.open_for_s(name)
        if name is None or wait_s is None:
            yield Start()
            return
        now = self._clock.monotonic()
        wait_s = max(wait_s, self._turns.get(name, now) - now)
        if wait_s > 0:
            try:
                yield Start(_refusal(name, wait_s))
            except Unavailable:
                self._metrics.breaker_refusals.labels(breaker=name).inc()
                raise
            return
        self._turns[name] = now + self._recovery_s
        start = Start()
        try:
            yield start
        finally:
            if not start.used:
                self._turns.pop(name, None)

    def _made(self, name: str) -> interlock.CircuitBreaker:
        self._metrics.breaker_state.labels(breaker=name)  # from now on it is shown, as closed
        return self._registry.get(name)

    def _changed(self, name: str, state: interlock.State) -> None:
        self._metrics.breaker_state.labels(breaker=name).set(_GAUGE[state])
        if state is interlock.State.OPEN:
            self._opened[name] = self._clock.monotonic()
        elif state is interlock.State.CLOSED:
            self._opened.pop(name, None)
            self._turns.pop(name, None)


class Start:
    """A start that asks its breaker: `refusal` if it may not be; `used` is set once something was started."""

    def __init__(self, refusal: Unavailable | None = None) -> None:
        self.refusal = refusal
        self.used = False


def _refusal(name: str, wait_s: float) -> Unavailable:
    return Unavailable(
        f"{Refused(name, wait_s)}.",
        remedy="Start it again after the seconds in Retry-After; runs that were started before go on.",
        retry_after_s=wait_s,
    )


class _Changes(interlock.CoreEventListener):
    """Hears of every change at the moment it is made."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def on_state_change(self, *, name: str, old: interlock.State, new: interlock.State) -> None:
        self._breakers._changed(name, new)


class _Failed(Exception):
    pass


class _Uncounted(BaseException):
    """What is no Exception, like a cancel, is not counted: a try that it ends gives the turn back."""
