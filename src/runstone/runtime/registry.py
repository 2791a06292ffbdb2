"""The runs under way in this process, by id: to find one, to stop one, to know when it has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

# cancelled: somebody asked; parent: its caller no longer waits for it; released: another worker is to go on with it;
# fenced: it has ended, or has another owner
StopReason = Literal["cancelled", "timeout", "parent", "released", "fenced"]


class Running:
    """One run under way: its agent's task, and why it is to stop, once it is."""

    def __init__(self, run_id: str, task: asyncio.Task[Any], started: float) -> None:
        self.run_id = run_id
        self.task = task
        self.started = started
        self.completed: float | None = None
        self.stop_reason: StopReason | None = None
        self.attention = asyncio.Event()  # set when it is to stop, or when its time has to be looked at

    def stop(self, reason: StopReason) -> bool:
        """Asks the agent to stop; only the first reason counts. False if it was asked before, or has ended."""
        if self.stop_reason is not None or self.completed is not None:
            return False
        self.stop_reason = reason
        self.attention.set()
        return True


class Registry:
    """Confined to the event loop, and no method waits: so every call is atomic, however many tasks use it."""

    def __init__(self) -> None:
        self._runs: dict[str, Running] = {}
        self._expected: dict[str, StopReason | None] = {}
        self._stopping: StopReason | None = None  # for whoever comes now

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Running]:
        return iter(list(self._runs.values()))

    @property
    def active(self) -> int:
        """Runs that take a slot: registered and not complete."""
        return sum(running.completed is None for running in self._runs.values())

    def expect(self, run_id: str) -> None:
        """The run was claimed, and will be registered: who asks it to stop meanwhile is heard then."""
        self._expected[run_id] = None

    def register(self, run_id: str, task: asyncio.Task[Any], now: float) -> Running:
        """Raises ValueError if the run is under way already."""
        known = self._runs.get(run_id)
        if known is not None and known.completed is None:
            raise ValueError(f"the run {run_id} is under way already")
        running = self._runs[run_id] = Running(run_id, task, now)
        reason = self._expected.pop(run_id, None) or self._stopping
        if reason is not None:
            running.stop(reason)
        return running

    def get(self, run_id: str) -> Running | None:
        return self._runs.get(run_id)

    def cancel(self, run_id: str) -> bool:
        """Asks a run to stop; False if it is not here, was asked before, or has ended."""
        running = self._runs.get(run_id)
        if running is None and run_id in self._expected:
            self._expected[run_id] = "cancelled"
            return True
        return running is not None and running.stop("cancelled")

    def stop_all(self, reason: StopReason) -> None:
        """Asks every run to stop, and those that are registered from now on."""
        self._stopping = reason
        self.stop_under_way(reason)

    def stop_under_way(self, reason: StopReason) -> None:
        """Asks every run to stop that is under way now."""
        for running in self:
            running.stop(reason)

    def complete(self, run_id: str, now: float) -> None:
        """The run has ended, or never began. It stays known while its task runs: who ignores cancels is watched."""
        self._expected.pop(run_id, None)
        running = self._runs.get(run_id)
        if running is None or running.completed is not None:
            return
        running.completed = now
        if running.task.done():
            del self._runs[run_id]

    def clean_up(self, now: float, older_than_s: float) -> list[Running]:
        """Forgets ended runs whose tasks are over; returns those that still run so long after their end."""
        leaked = []
        for running in list(self._runs.values()):
            if running.completed is None:
                continue
            if running.task.done():
                del self._runs[running.run_id]
            elif now - running.completed >= older_than_s:
                leaked.append(running)
        return leaked
