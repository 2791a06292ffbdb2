"""Notices code that holds the event loop, and names it: while it does, nothing else in the process moves."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback

import structlog

from runstone.metrics import Metrics

logger = structlog.get_logger(__name__)

BLOCKED_S = 1.0  # longer than any honest step between two awaits
_BEAT_S = 0.25


class Watchdog:
    """A thread that asks the loop for a sign of life and, when none comes, looks at what it is doing."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._stopped = threading.Event()
        self._alive = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        loop, loop_thread = asyncio.get_running_loop(), threading.get_ident()
        self._thread = threading.Thread(
            target=self._watch, args=(loop, loop_thread), name="runstone-watchdog", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Safe twice, and before `start`."""
        self._stopped.set()

    def _watch(self, loop: asyncio.AbstractEventLoop, loop_thread: int) -> None:
        while not self._stopped.wait(_BEAT_S):
            self._alive.clear()
            try:
                loop.call_soon_threadsafe(self._alive.set)
            except RuntimeError:
                return  # the loop is closed
            if not self._alive.wait(BLOCKED_S):
                self._report(loop_thread)
                while not self._alive.wait(_BEAT_S) and not self._stopped.is_set():
                    pass

    def _report(self, loop_thread: int) -> None:
        self._metrics.loop_blocked.inc()
        frame = sys._current_frames().get(loop_thread)
        stack = traceback.extract_stack(frame)[-5:] if frame is not None else []
        where = " < ".join(f"{entry.name} ({entry.filename}:{entry.lineno})" for entry in reversed(stack))
        logger.warning("code holds the event loop: nothing can be sent, stopped or timed out meanwhile", where=where)
