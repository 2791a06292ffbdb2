"""100 streams × 50 tokens/s: how long a token is on its way, from the producer to a client in another process."""

from __future__ import annotations

from benches.bench import Bench
from benches.report import Row, at_most
from benches.streams import measure, measure_bare

TITLE = "100 streams × 50 tokens/s"


async def run(bench: Bench) -> list[Row]:
    streams, seconds = bench.pick(100, 100, 5), bench.pick(10.0, 4.0, 0.5)
    bare = await measure_bare(bench.room("bare"), streams, seconds)
    ours = await measure(bench.room("runstone"), streams, seconds)
    return [
        at_most("producer → client receipt, p50", ours.p50_ms, "ms", target=2, baseline=bare.p50_ms),
        at_most("producer → client receipt, p99", ours.p99_ms, "ms", target=10, baseline=bare.p99_ms),
        at_most("server CPU", ours.cores, "cores", baseline=bare.cores),
    ]
