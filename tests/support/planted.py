"""The agents of `hardy` on a server with a planted bug: it shows events before their commit.

A test serves this to prove that the hunt for lost events would find one.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from runstone.log.log import Log
from runstone.store import Committed
from runstone.stores.sqlite import writer
from tests.support.hardy import app

__all__ = ["app"]

_SEND_S = 0.003  # for the early events to leave the process

_now: dict[str, Any] = {}  # the log, its loop, and the batch that is about to be committed

_start, _show, _init, _hit = Log.start, Log._show, writer._Batch.__init__, writer.hit  # type: ignore[attr-defined]


async def _start_noting(self: Log) -> None:
    _now.update(log=self, loop=asyncio.get_running_loop())
    await _start(self)


def _init_noting(self: Any, *arguments: Any) -> None:
    _now["batch"] = self
    _init(self, *arguments)


def _hit_late(name: Any) -> None:
    """In the writer's thread, inside the transaction: everything is written, nothing is committed."""
    if name == "before_commit" and _now["batch"].events:
        sent = threading.Event()

        def show() -> None:
            _show(_now["log"], Committed((), _now["batch"].events, 0.0))
            _now["loop"].call_later(_SEND_S, sent.set)

        _now["loop"].call_soon_threadsafe(show)
        sent.wait(1)
    _hit(name)


Log.start = _start_noting  # type: ignore[method-assign]
Log._show = lambda self, committed: None  # type: ignore[method-assign]
writer._Batch.__init__ = _init_noting  # type: ignore[method-assign,assignment]
writer.hit = _hit_late  # type: ignore[attr-defined]
