"""Resume of a finished 10,000-event run, from the disk of a server that has just started: time to the last event."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

from benches.bench import Bench, Lost
from benches.processes import bare, runstone
from benches.report import Row, at_most, percentile
from benches.viewers import Viewer, open_viewers
from benches.wire import HOST, Pool

TITLE = "resume of a finished 10,000-event run"
_ID = re.compile(rb"id: (\d+)\ndata: ")


async def run(bench: Bench) -> list[Row]:
    events, times = bench.pick(10_000, 10_000, 200), bench.pick(20, 8, 2)
    folder = bench.room("runstone")
    with runstone(folder) as server:
        thread_id, head = await _record(server.port, events)
    with runstone(folder) as server:
        over_ws = [await _websocket(server.port, thread_id, head) for _ in range(times)]
        over_sse = [await _sse(server.port, thread_id, head) for _ in range(times)]
    raw = [await _bare(bench.room(f"bare-{number}"), folder / "runs.db", head) for number in range(min(times, 5))]
    return [
        at_most(
            f"WebSocket, {head:,} events, p50",
            percentile(over_ws, 0.5),
            "ms",
            target=100,
            baseline=percentile(raw, 0.5),
        ),
        at_most("  slowest", max(over_ws), "ms", target=100),
        at_most("SSE, p50", percentile(over_sse, 0.5), "ms", target=100, baseline=percentile(raw, 0.5)),
        at_most("  slowest", max(over_sse), "ms", target=100),
    ]


async def _record(port: int, events: int) -> tuple[str, int]:
    """A thread with a run of that many events, and its head."""
    pool = Pool(port, 1)
    (thread_id,) = await pool.threads(1)
    (made,) = await pool.start("wordy", [thread_id], events=events)
    ended = await pool.call("GET", f"/v1/runs/{made['run_id']}?wait_s=60")
    pool.close()
    if ended["status"] != "completed":
        raise Lost(f"the run to resume is {ended['status']}: {ended['error']}")
    return thread_id, ended["last_seq"]


async def _websocket(port: int, thread_id: str, head: int) -> float:
    begin = time.monotonic_ns()
    viewer = Viewer(thread_id, lambda _: None)
    await open_viewers(port, [viewer])
    async with asyncio.timeout(30):
        end = await viewer.ended
    viewer.close()
    if viewer.last != head:
        raise Lost(f"the head is {head}, the last event was {viewer.last}")
    return (end - begin) / 1e6


async def _sse(port: int, thread_id: str, head: int) -> float:
    begin = time.monotonic_ns()
    reader, writer = await asyncio.open_connection(HOST, port, limit=1 << 22)
    request = f"GET /v1/threads/{thread_id}/events HTTP/1.1\r\nHost: {HOST}\r\nAccept: text/event-stream\r\n\r\n"
    writer.write(request.encode())
    read = bytearray()
    async with asyncio.timeout(30):
        while b'"type":"agent_completed"' not in read[-4096:]:
            piece = await reader.read(1 << 20)
            if not piece:
                raise Lost("the stream ended")
            read += piece
    end = time.monotonic_ns()
    writer.transport.abort()
    if [int(found) for found in _ID.findall(read)] != list(range(1, head + 1)):
        raise Lost("the stream is not the log")
    return (end - begin) / 1e6


async def _bare(folder: Path, source: Path, head: int) -> float:
    with bare(folder, "resume", peers=1, source=str(source)) as server:
        begin = time.monotonic_ns()
        viewer = Viewer("", lambda _: None, bare=True)
        await open_viewers(server.port, [viewer])
        async with asyncio.timeout(30):
            end = await viewer.ended
        viewer.close()
    if viewer.last != head:
        raise Lost("the bare server did not send everything")
    return (end - begin) / 1e6
