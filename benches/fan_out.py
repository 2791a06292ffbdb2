"""1 thread, 1,000 viewers: event deliveries a second, one event a write and coalesced."""

from __future__ import annotations

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path

from benches.bench import Bench, Lost
from benches.processes import bare, runstone
from benches.report import Row, at_least, at_most
from benches.wire import Pool, Socket, connect, subscribe

TITLE = "1 thread, 1,000 viewers"
_SEQ = re.compile(rb'\{"seq":(\d+),')
_EVENT = b'"type":"custom"'
_FRAME = b'{"op":"events"'
_SETTLE_S = 1.5
_COALESCED = 16


class Counter(Socket):
    """Counts what comes without taking it apart; what it read is checked afterwards."""

    def __init__(self, thread_id: str, *, bare: bool = False) -> None:
        super().__init__(lambda _: None, first=[subscribe(thread_id)], bare=bare)
        self.bytes = 0
        self.done_ns = 0
        self.goal = 0
        self._chunks: list[bytes] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def feed(self, data: bytes) -> None:
        self.bytes += len(data)
        self._chunks.append(data)
        if b'"type":"agent_completed"' in data or b'"type":"agent_completed"' in b"".join(self._chunks[-2:]):
            self.finish()

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish()
        super().connection_lost(exc)

    def finish(self) -> None:
        if not self.done.done():
            self.done_ns = time.monotonic_ns()
            self.done.set_result(None)

    def read(self) -> bytes:
        return b"".join(self._chunks)


@dataclass(frozen=True)
class FanOut:
    deliveries_a_second: float
    events_a_write: float
    cores: float
    sample: bytes  # one viewer's frames of one round


async def run(bench: Bench) -> list[Row]:
    viewers = bench.pick(1_000, 1_000, 20)
    rows = []
    for events, rounds, target in (
        (1, bench.pick(400, 150, 10), 100_000),
        (_COALESCED, bench.pick(250, 80, 10), 500_000),
    ):
        ours = await measure(bench.room(f"runstone-{events}"), viewers, rounds, events)
        raw = await measure_bare(bench.room(f"bare-{events}"), viewers, rounds, events, ours.sample)
        name = "one event a write" if events == 1 else f"coalesced, {events} events a commit"
        rows.append(
            at_least(
                f"{name}: deliveries", ours.deliveries_a_second, "/s", target=target, baseline=raw.deliveries_a_second
            )
        )
        cost, raw_cost = (found.cores / found.deliveries_a_second * 1e6 for found in (ours, raw))
        rows.append(at_most("  server CPU per delivery", cost, "µs", baseline=raw_cost))
        rows.append(at_least("  events a write", ours.events_a_write, ""))
    return rows


async def measure(folder: Path, viewers: int, rounds: int, events: int) -> FanOut:
    """Every viewer's bytes are kept, and checked to be the whole log, once each."""
    with runstone(folder) as server:
        pool = Pool(server.port, 1)
        (thread_id,) = await pool.threads(1)
        counters = [Counter(thread_id) for _ in range(viewers)]
        await connect(server.port, counters)
        begin_ns = time.monotonic_ns() + int(_SETTLE_S * 1e9)
        await pool.start("rounds", [thread_id], count=rounds, events=events, start_ns=begin_ns)
        await asyncio.sleep((begin_ns - time.monotonic_ns()) / 1e9)
        spent_s = server.cpu_s()["all"]
        async with asyncio.timeout(120):
            await asyncio.gather(*(counter.done for counter in counters))
        spent_s = server.cpu_s()["all"] - spent_s
        took_s = (max(counter.done_ns for counter in counters) - begin_ns) / 1e9
        pool.close()
    writes = 0
    for counter in counters:
        read = counter.read()
        seqs = [int(seq) for seq in _SEQ.findall(read)]
        if seqs != list(range(1, len(seqs) + 1)) or read.count(_EVENT) != rounds * events:
            raise Lost("a viewer did not see the whole log, once")
        writes += len(re.findall(_FRAME + rb'[^[]*\[\{"seq":\d+,[^{]*"type":"custom"', read))
        counter.close()
    sample = re.search(_FRAME + rb'[^[]*\[\{"seq":\d+,[^{]*"type":"custom".*?\}\]\}', counters[0].read())
    assert sample is not None
    return FanOut(viewers * rounds * events / took_s, viewers * rounds * events / writes, spent_s / took_s, sample[0])


async def measure_bare(folder: Path, viewers: int, rounds: int, events: int, sample: bytes) -> FanOut:
    """Raw commits and raw sockets, in the same turns, with the same bytes."""
    head = b"\x81\x7e" + len(sample).to_bytes(2)
    (folder / "flood.bin").write_bytes(head + sample)
    with bare(folder, "flood", peers=viewers, count=rounds, events=events) as server:
        counters = [Counter("", bare=True) for _ in range(viewers)]
        await connect(server.port, counters)
        begin_ns = time.monotonic_ns() + 300_000_000
        spent_s = server.cpu_s()["all"]
        async with asyncio.timeout(120):
            await asyncio.gather(*(counter.done for counter in counters))
        spent_s = server.cpu_s()["all"] - spent_s
        took_s = (max(counter.done_ns for counter in counters) - begin_ns) / 1e9
    if any(counter.bytes != rounds * (len(sample) + 4) for counter in counters):
        raise Lost("a viewer of the bare server did not read everything")
    return FanOut(viewers * rounds * events / took_s, events, spent_s / took_s, b"")
