"""Whether a run works or waits for people, and for how long it has worked: waiting takes no slot and no time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from runstone.clock import Clock


class Presence:
    """Of one attempt. It waits while it asks somebody, or while it has called others and all of them wait.

    The same rule as `states.standing`, for what is under way in this process.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        timeout_s: float,
        ran_s: float,
        caller: Presence | None = None,
    ) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._ran_s = ran_s
        self._since: float | None = clock.monotonic()
        self._caller = caller
        self.on_change: Callable[[bool], None] = lambda waiting: None
        self._asking = 0
        self._called: set[Presence] = set()

    @property
    def waiting(self) -> bool:
        return self._since is None

    def left_s(self) -> float:
        """Seconds of work until the timeout."""
        working = 0.0 if self._since is None else self._clock.monotonic() - self._since
        return self._timeout_s - self._ran_s - working

    @contextmanager
    def asking(self) -> Iterator[None]:
        self._asking += 1
        self._look()
        try:
            yield
        finally:
            self._asking -= 1
            self._look()

    @contextmanager
    def calling(self, child: Presence) -> Iterator[None]:
        self._called.add(child)
        self._look()
        try:
            yield
        finally:
            self._called.discard(child)
            self._look()

    def _look(self) -> None:
        waits = self._asking > 0 or (bool(self._called) and all(child.waiting for child in self._called))
        if waits == self.waiting:
            return
        now = self._clock.monotonic()
        if self._since is None:
            self._since = now
        else:
            self._ran_s += now - self._since
            self._since = None
        self.on_change(waits)
        if self._caller is not None:
            self._caller._look()
