"""500 streams × 50 tokens/s, one WebSocket viewer each: held, how late, nothing lost, at what cost."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

from benches.bench import Bench, Lost
from benches.processes import Process, bare, runstone
from benches.report import Row, at_least, at_most, percentile
from benches.viewers import Delays, Viewer, all_ended, open_viewers
from benches.wire import Pool

TITLE = "500 streams × 50 tokens/s"
RATE = 50.0
WARM_UP_S = 0.5
_SLACK_S = 60.0


@dataclass(frozen=True)
class Measured:
    tokens_a_second: float
    p50_ms: float
    p99_ms: float
    cores: float
    loop_cores: float  # of them, by the thread of the event loop


async def run(bench: Bench) -> list[Row]:
    streams, seconds = bench.pick(500, 500, 10), bench.pick(15.0, 4.0, 0.5)
    bare = await measure_bare(bench.room("bare"), streams, seconds)
    ours = await measure(bench.room("runstone"), streams, seconds)
    wanted = streams * RATE
    return [
        at_least(
            "tokens delivered, none lost",
            ours.tokens_a_second,
            "/s",
            target=0.99 * wanted,
            baseline=bare.tokens_a_second,
        ),
        at_most("producer → client receipt, p50", ours.p50_ms, "ms", baseline=bare.p50_ms),
        at_most("producer → client receipt, p99", ours.p99_ms, "ms", target=50, baseline=bare.p99_ms),
        at_most("server CPU", ours.cores, "cores", baseline=bare.cores),
        at_most("  of it by the event loop", ours.loop_cores, "cores", baseline=bare.loop_cores),
        at_most(
            "  per token",
            ours.cores / ours.tokens_a_second * 1e6,
            "µs",
            baseline=bare.cores / bare.tokens_a_second * 1e6,
        ),
    ]


async def measure(folder: Path, streams: int, seconds: float) -> Measured:
    """Runstone under so many streams for so long."""
    with runstone(folder) as server:
        pool = Pool(server.port)
        threads = await pool.threads(streams)
        delays = Delays()
        viewers = [Viewer(thread_id, delays.take) for thread_id in threads]
        await open_viewers(server.port, viewers)
        begin_ns = time.monotonic_ns() + int((1 + streams / 200) * 1e9)
        await start_paced(pool, threads, seconds, begin_ns)
        if time.monotonic_ns() > begin_ns:
            raise Lost("the runs could not be started in time")
        result = await _watch(server, viewers, delays, begin_ns, seconds)
        pool.close()
    return result


async def start_paced(pool: Pool, threads: list[str], seconds: float, begin_ns: int) -> None:
    """A run in each, which begin at that moment, evenly spread over one interval."""
    count, step_ns = int(seconds * RATE), 1e9 / RATE / len(threads)
    await asyncio.gather(
        *(
            pool.start("paced", [thread_id], count=count, rate=RATE, start_ns=begin_ns, phase_ns=int(index * step_ns))
            for index, thread_id in enumerate(threads)
        )
    )


async def measure_bare(folder: Path, streams: int, seconds: float) -> Measured:
    """The same load on the bare server."""
    with bare(folder, "stream", peers=streams, count=int(seconds * RATE), rate=RATE) as server:
        delays = Delays()
        viewers = [Viewer("", delays.take, bare=True) for _ in range(streams)]
        await open_viewers(server.port, viewers)
        return await _watch(server, viewers, delays, time.monotonic_ns() + 300_000_000, seconds)


async def _watch(server: Process, viewers: list[Viewer], delays: Delays, begin_ns: int, seconds: float) -> Measured:
    await asyncio.sleep((begin_ns - time.monotonic_ns()) / 1e9)
    before = server.cpu_s()
    delays.from_ns = begin_ns + int(min(WARM_UP_S, seconds / 4) * 1e9)
    end_ns = await all_ended(viewers, seconds + _SLACK_S)
    after = server.cpu_s()
    took_s = (end_ns - begin_ns) / 1e9
    wanted = len(viewers) * int(seconds * RATE)
    if delays.tokens != wanted:
        raise Lost(f"{delays.tokens} of {wanted} tokens arrived")
    cores = {name: (spent - before[name]) / took_s for name, spent in after.items()}
    for viewer in viewers:
        viewer.close()
    return Measured(
        # the last token is due one interval before the end
        wanted / max(took_s, seconds),
        percentile(delays.ms, 0.5),
        percentile(delays.ms, 0.99),
        cores["all"],
        cores["loop"],
    )
