"""Service levels under load: the times of commits and queries, and of a start after kill -9 with many open runs."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from benches.bench import Bench, Lost
from benches.processes import runstone
from benches.raw import recommit
from benches.report import Row, at_most, percentile
from benches.streams import RATE, start_paced
from benches.viewers import Delays, Viewer, all_ended, open_viewers
from benches.wire import Http, Pool

TITLE = "service levels"
_BUCKET = re.compile(rb'^runstone_commit_seconds_bucket\{le="([^"]+)"\} (\S+)', re.MULTILINE)
_EVENTS = re.compile(rb"^runstone_events_appended_total (\S+)", re.MULTILINE)


async def run(bench: Bench) -> list[Row]:
    streams, seconds = bench.pick(500, 500, 5), bench.pick(10.0, 4.0, 0.5)
    open_runs = bench.pick(10_000, 1_000, 10)
    folder = bench.room("load")
    commit_ms, batch, idle, loaded = await _under_load(folder, streams, seconds)
    raw = recommit(folder, folder / "runs.db", batch)
    empty_s, ready_s = await _after_kill(bench.room("kill"), open_runs)
    return [
        at_most(
            f"a commit at {streams * RATE:,.0f} tokens/s, p99 at most",
            commit_ms,
            "ms",
            target=100,
            baseline=raw["p99_ms"],
        ),
        at_most(
            "an indexed query at that load, p99 (baseline: idle)",
            percentile(loaded, 0.99),
            "ms",
            target=50,
            baseline=percentile(idle, 0.99),
        ),
        at_most("  p50", percentile(loaded, 0.5), "ms", baseline=percentile(idle, 0.5)),
        at_most(
            f"ready after kill -9 with {open_runs:,} open runs (baseline: empty)",
            ready_s,
            "s",
            target=5,
            baseline=empty_s,
        ),
    ]


async def _under_load(folder: Path, streams: int, seconds: float) -> tuple[float, float, list[float], list[float]]:
    """The bucket that holds a commit's p99, events a commit, and the times of queries without and with the load."""
    with runstone(folder) as server:
        pool, http = Pool(server.port), Http(server.port)
        threads = await pool.threads(streams)
        (known,) = await pool.start("wordy", threads[:1], events=200)
        await http.call("GET", f"/v1/runs/{known['run_id']}?wait_s=60")
        queries = (f"/v1/runs/{known['run_id']}", f"/v1/threads/{threads[0]}/messages?limit=20", "/v1/threads?limit=20")
        idle = await _query(http, queries, min(seconds, 2.0))
        delays = Delays()
        viewers = [Viewer(thread_id, delays.take) for thread_id in threads[1:]]
        await open_viewers(server.port, viewers)
        begin_ns = time.monotonic_ns() + int((1 + streams / 200) * 1e9)
        await start_paced(pool, threads[1:], seconds, begin_ns)
        await asyncio.sleep((begin_ns - time.monotonic_ns()) / 1e9)
        before = await http.raw("GET", "/metrics")
        loaded = await _query(http, queries, seconds)
        await all_ended(viewers, 60)
        after = await http.raw("GET", "/metrics")
        for viewer in viewers:
            viewer.close()
        pool.close()
        http.close()
    old = dict(_BUCKET.findall(before))
    counts = [(float(bound), float(count) - float(old[bound])) for bound, count in _BUCKET.findall(after)]
    commits = counts[-1][1]
    p99_s = next(bound for bound, count in counts if count >= 0.99 * commits)
    events = float(_EVENTS.findall(after)[0]) - float(_EVENTS.findall(before)[0])
    return p99_s * 1000, events / commits, idle, loaded


async def _query(http: Http, paths: tuple[str, ...], seconds: float) -> list[float]:
    """Milliseconds of each, one by one, a hundred a second."""
    took: list[float] = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begin = time.monotonic_ns()
        await http.raw("GET", paths[len(took) % len(paths)])
        took.append((time.monotonic_ns() - begin) / 1e6)
        await asyncio.sleep(0.01)
    return took


async def _after_kill(folder: Path, count: int) -> tuple[float, float]:
    """Seconds until a server listens: on a new store, and on one that was killed with so many runs under way."""
    with runstone(folder) as server:
        empty_s = server.start_s
        pool, http = Pool(server.port, 32), Http(server.port)
        made = await asyncio.gather(*(pool.call("POST", "/v1/runs", {"agent": "sleeper"}) for _ in range(count)))
        async with asyncio.timeout(60):
            while b'runstone_runs{status="running"} %.1f' % count not in await http.raw("GET", "/metrics"):
                await asyncio.sleep(0.25)
        pool.close()
        http.close()
        server.kill()
    with runstone(folder) as server:
        http = Http(server.port)
        for run in (made[0], made[-1]):
            ended = await http.call("GET", f"/v1/runs/{run['run_id']}")
            if ended["status"] != "failed" or not ended["error"]["retryable"]:
                raise Lost(f"a run of the dead process is {ended['status']}")
        http.close()
        return empty_s, server.start_s
