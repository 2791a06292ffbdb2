"""Viewers of streams: each reads one thread, counts tokens and checks that no event is lost or doubled."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from benches.bench import Lost
from benches.wire import Socket, connect, subscribe

_SEQ = re.compile(rb'\{"seq":(\d+),')
_DELTA = re.compile(rb'"delta":"([^"]*)"')
_ENDS = (b'"type":"agent_completed"', b'"type":"agent_failed"', b'"type":"agent_cancelled"')


class Viewer:
    """Reads one thread from its beginning, to the end of its run."""

    def __init__(
        self, thread_id: str, on_delta: Callable[[bytes], None], *, after: int = 0, bare: bool = False
    ) -> None:
        self.last = after
        self.head = 0  # of the answer to the subscribe
        self.first_ns = 0  # when the first events came
        self.frames = 0
        self.events = 0
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.subscribed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._on_delta = on_delta
        self.socket = Socket(self._receive, first=[subscribe(thread_id, after)], bare=bare)
        self.socket.lost.add_done_callback(self._lost)

    def _receive(self, payload: bytes) -> None:
        if payload.startswith(b'{"op":"events"'):
            self._events(payload)
        elif payload.startswith(b'{"op":"ok"'):
            self.subscribed.set_result(time.monotonic_ns())
        elif payload.startswith(b'{"op":"error"') and not self.ended.done():
            self.ended.set_exception(Lost(payload.decode()))

    def _events(self, payload: bytes) -> None:
        self.first_ns = self.first_ns or time.monotonic_ns()
        self.frames += 1
        seqs = _SEQ.findall(payload)
        first = int(seqs[0])
        last = first if len(seqs) == 1 else int(seqs[-1])
        if first != self.last + 1 or last != self.last + len(seqs):
            if not self.ended.done():
                self.ended.set_exception(Lost(f"after {self.last} came {first} … {last} ({len(seqs)} events)"))
            return
        self.last = last
        self.events += len(seqs)
        for delta in _DELTA.findall(payload):
            self._on_delta(delta)
        if payload.find(b'"type":"agent_', 0) >= 0 and any(end in payload for end in _ENDS) and not self.ended.done():
            if _ENDS[0] in payload:
                self.ended.set_result(time.monotonic_ns())
            else:
                self.ended.set_exception(Lost(f"the run failed: {payload[-600:]!r}"))

    def _lost(self, _: object) -> None:
        if not self.ended.done():
            self.ended.set_exception(Lost(f"cut off after {self.last}"))

    def close(self) -> None:
        self.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self.ended.cancel()
        self.socket.close()


class Delays:
    """Tokens are times; this is how long each was on its way."""

    def __init__(self) -> None:
        self.from_ns = 0  # earlier tokens are warm-up
        self.tokens = 0
        self.ms: list[float] = []

    def take(self, delta: bytes) -> None:
        now = time.monotonic_ns()
        for token in delta.split():
            self.tokens += 1
            sent = int(token)
            if sent >= self.from_ns:
                self.ms.append((now - sent) / 1e6)


async def open_viewers(port: int, viewers: list[Viewer]) -> None:
    """Connected and subscribed, all of them."""
    await connect(port, [viewer.socket for viewer in viewers])
    await asyncio.gather(*(viewer.subscribed for viewer in viewers if not viewer.socket._bare))


async def all_ended(viewers: list[Viewer], timeout_s: float) -> int:
    """When the last of them saw the end of its run; raises Lost."""
    async with asyncio.timeout(timeout_s):
        return max(await asyncio.gather(*(viewer.ended for viewer in viewers)))
