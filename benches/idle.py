"""Idle viewers: what each costs the server in memory, and that 10,000 are held."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benches.bench import Bench, Lost
from benches.processes import bare, runstone
from benches.report import Row, at_least, at_most
from benches.wire import Pool, Socket, connect, subscribe

TITLE = "idle viewers"
_THREADS = 100
_KIB_MAX = 20.0


async def run(bench: Bench) -> list[Row]:
    viewers = bench.pick(10_000, 2_000, 50)
    ours, held = await _runstone(bench.room("runstone"), viewers)
    raw = await _bare(bench.room("bare"), viewers)
    return [
        at_most(f"server memory per viewer, {viewers:,} of them", ours, "KiB", target=_KIB_MAX, baseline=raw),
        at_least("held: each answers a ping", held, "", target=viewers),
    ]


async def _runstone(folder: Path, count: int) -> tuple[float, int]:
    """KiB each, and how many are there and answer."""
    with runstone(folder) as server:
        pool = Pool(server.port)
        threads = await pool.threads(min(_THREADS, count))
        caught_up = pongs = 0

        def receive(payload: bytes) -> None:
            nonlocal caught_up, pongs
            caught_up += payload.startswith(b'{"op":"caught_up"')
            pongs += payload.startswith(b'{"op":"pong","id":7')

        await _warm_up(server.port, threads[0])
        before = server.rss_kib() or 0
        sockets = [Socket(receive, first=[subscribe(threads[index % len(threads)])]) for index in range(count)]
        await connect(server.port, sockets)
        async with asyncio.timeout(60):
            while caught_up < count:
                await asyncio.sleep(0.05)
        each = ((server.rss_kib() or 0) - before) / count
        for socket in sockets:
            socket.send(b'{"op":"ping","id":7}')
        async with asyncio.timeout(60):
            while pongs < count and not any(socket.lost.done() for socket in sockets):
                await asyncio.sleep(0.05)
        for socket in sockets:
            socket.close()
        pool.close()
    return each, pongs


async def _warm_up(port: int, thread_id: str) -> None:
    """What the first viewer costs is not the price of a viewer."""
    for _ in range(3):
        sockets = [Socket(lambda _: None, first=[subscribe(thread_id)]) for _ in range(20)]
        await connect(port, sockets)
        for socket in sockets:
            socket.close()


async def _bare(folder: Path, count: int) -> float:
    with bare(folder, "idle", peers=count) as server:
        before = server.rss_kib() or 0
        sockets = [Socket(lambda _: None, bare=True) for _ in range(count)]
        await connect(server.port, sockets)
        if any(socket.lost.done() for socket in sockets):
            raise Lost("the bare server did not hold its peers")
        each = ((server.rss_kib() or 0) - before) / count
        for socket in sockets:
            socket.close()
    return each
