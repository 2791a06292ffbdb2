"""The life of a background service: started once, stopped once, and what it runs is never lost sight of."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import structlog

from runstone.errors import StoreFailed

logger = structlog.get_logger(__name__)

T = TypeVar("T")

STOP_S = 5.0  # for cancelled tasks to end; code that ignores a cancel must not hold up a shutdown


class Tasks:
    """The tasks of one owner: kept alive while they run, their errors reported, all of them ended with the owner."""

    def __init__(self, name: str, on_crash: Callable[[BaseException], None] | None = None) -> None:
        self._name = name
        self._on_crash = on_crash
        self._running: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def run(self, work: Coroutine[Any, Any, Any], name: str) -> None:
        """Starts what nobody waits for."""
        _ = self._start(work, name)

    def start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Starts what somebody waits for."""
        return self._start(work, name)

    def _start(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work, name=f"{self._name}:{name}")
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    async def wait(self) -> None:
        """Returns when all that runs now has ended by itself."""
        await asyncio.gather(*self._running, return_exceptions=True)

    async def stop(self) -> None:
        """Cancels what runs and waits for it, at most STOP_S; safe twice, and before `start`."""
        current = asyncio.current_task()
        mine = [task for task in self._running if task is not current]
        for task in mine:
            task.cancel()
        if not mine:
            return
        _, left = await asyncio.wait(mine, timeout=STOP_S)
        for task in left:
            logger.warning("a task does not stop", task=task.get_name())

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            if not isinstance(error, StoreFailed):  # the log says that once, and clearly
                logger.error("a background task died", task=task.get_name(), exc_info=error)
            if self._on_crash is not None:
                self._on_crash(error)


async def every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Does the work again and again, with a pause after each."""
    while True:
        await asyncio.sleep(seconds)
        await work()
