"""Start of a run: from the POST to the first event, and to the first token, at a client that watches the thread."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from benches.bench import Bench
from benches.processes import bare, runstone
from benches.report import Row, at_most, percentile
from benches.viewers import Viewer, all_ended, open_viewers
from benches.wire import HOST, Pool

TITLE = "start of a run"


async def run(bench: Bench) -> list[Row]:
    times = bench.pick(500, 150, 5)
    first_events, first_tokens = await _runstone(bench.room("runstone"), times)
    raw = await _bare(bench.room("bare"), times)
    return [
        at_most(
            "POST → first event, p50", percentile(first_events, 0.5), "ms", target=5, baseline=percentile(raw, 0.5)
        ),
        at_most("POST → first event, p99", percentile(first_events, 0.99), "ms", baseline=percentile(raw, 0.99)),
        at_most("POST → first token, p50", percentile(first_tokens, 0.5), "ms", baseline=percentile(raw, 0.5)),
        at_most("POST → first token, p99", percentile(first_tokens, 0.99), "ms", baseline=percentile(raw, 0.99)),
    ]


class _FirstDelta:
    at_ns = 0

    def take(self, _: bytes) -> None:
        self.at_ns = self.at_ns or time.monotonic_ns()


async def _runstone(folder: Path, times: int) -> tuple[list[float], list[float]]:
    first_events, first_tokens = [], []
    with runstone(folder) as server:
        pool = Pool(server.port, 1)
        for thread_id in await pool.threads(times):
            first_delta = _FirstDelta()
            viewer = Viewer(thread_id, first_delta.take, after=1)
            await open_viewers(server.port, [viewer])
            begin = time.monotonic_ns()
            await pool.start("greet", [thread_id])
            await all_ended([viewer], 30)
            first_events.append((viewer.first_ns - begin) / 1e6)
            first_tokens.append((first_delta.at_ns - begin) / 1e6)
            viewer.close()
        pool.close()
    return first_events, first_tokens


async def _bare(folder: Path, times: int) -> list[float]:
    """A request, one commit of one row, an answer."""
    took = []
    with bare(folder, "answer", peers=1) as server:
        reader, writer = await asyncio.open_connection(HOST, server.port)
        for _ in range(times):
            begin = time.monotonic_ns()
            writer.write(b"go")
            await reader.readexactly(1)
            took.append((time.monotonic_ns() - begin) / 1e6)
        writer.close()
    return took
