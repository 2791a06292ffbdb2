"""The baseline's server: raw group commit and raw sockets, with no product in between.

    python -m benches.bare stream|flood|answer|resume|idle '{"folder": …}'

It writes what Runstone writes (the same columns, one row an event) and sends what Runstone sends (frames of the
same size), but knows no threads, no runs, no users, no requests and no errors.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import apsw
import uvloop

from benches.raw import RawStore

_PAYLOAD = b'{"data":{"delta":"%b","message_id":"msg_01234567-0123-0123-0123-0123456789ab","offset":%d,"part":0}}'
_EVENT = (
    b'{"seq":%d,"thread_id":"thr_01234567-0123-0123-0123-0123456789ab","run_id":"run_01234567-0123-0123-0123-0123456789ab",'
    b'"attempt":1,"user_id":"local","type":"%b","time":"2026-11-20T08:15:30.123456Z",%b'
)
_HEAD = b'{"op":"events","thread_id":"thr_01234567-0123-0123-0123-0123456789ab","events":['


def frame(payload: bytes) -> bytes:
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


class Peer(asyncio.Protocol):
    """One client: written to, and waited for when it reads slowly."""

    def __init__(self, joined: Callable[[Peer], None], heard: Callable[[Peer], None]) -> None:
        self._joined = joined
        self._heard = heard
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self.transport.set_write_buffer_limits(256 * 1024, 64 * 1024)
        self._joined(self)

    def data_received(self, data: bytes) -> None:
        self._heard(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()


class Commits:
    """Group commit: what gathers while a commit is under way goes into the next one."""

    def __init__(self, folder: Path, shown: Callable[[list[tuple[Any, ...]]], None]) -> None:
        self._folder = folder
        self._shown = shown
        self._thread = ThreadPoolExecutor(1)
        self._rows: list[tuple[Any, ...]] = []
        self._wakeup = asyncio.Event()
        self._pos = 0

    def append(self, thread: int, seq: int, kind: str, payload: bytes) -> None:
        self._pos += 1
        self._rows.append((self._pos, thread, seq, thread, 1, "local", kind, time.time_ns() // 1000, 0, payload))
        self._wakeup.set()

    async def run(self) -> None:
        call = asyncio.get_running_loop().run_in_executor
        store = await call(self._thread, RawStore, self._folder / "bare.db")
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._rows:
                rows, self._rows = self._rows, []
                await call(self._thread, store.commit, rows)
                self._shown(rows)


def show_each(peers: list[Peer]) -> Callable[[list[tuple[Any, ...]]], None]:
    """Every peer sees one thread: a frame for what is new in it."""

    def show(rows: list[tuple[Any, ...]]) -> None:
        news: dict[int, list[bytes]] = {}
        for _, thread, seq, _, _, _, kind, _, _, payload in rows:
            news.setdefault(thread, []).append(_EVENT % (seq, kind.encode(), payload[1:]))
        for thread, events in news.items():
            peers[thread].transport.write(frame(_HEAD + b",".join(events) + b"]}"))

    return show


async def stream(settings: dict[str, Any], peers: list[Peer], full: asyncio.Event) -> None:
    """Producers at a rate, or flat out, one peer each."""
    count, rate = settings["count"], settings["rate"]
    commits = Commits(Path(settings["folder"]), show_each(peers))
    running = asyncio.create_task(commits.run())
    await full.wait()
    begin = time.monotonic_ns() + 300_000_000

    async def produce(thread: int) -> None:
        phase = int(thread * 1e9 / rate / len(peers))
        for number in range(count):
            wait_ns = begin + phase + int(number * 1e9 / rate) - time.monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / 1e9)
            commits.append(thread, number + 1, "message_delta", _PAYLOAD % (b"%d " % time.monotonic_ns(), number * 16))
        commits.append(thread, count + 1, "agent_completed", b'{"data":{"output":null}}')

    await asyncio.gather(*(produce(thread) for thread in range(len(peers))))
    await running


def _row(number: int) -> tuple[Any, ...]:
    return (number + 1, 1, number + 1, 1, 1, "local", "custom", time.time_ns() // 1000, 0, _PAYLOAD % (b"x", number))


async def flood(settings: dict[str, Any], peers: list[Peer], full: asyncio.Event) -> None:
    """A commit, then the bytes of a file to every peer, a write each; again and again."""
    call, thread = asyncio.get_running_loop().run_in_executor, ThreadPoolExecutor(1)
    store = await call(thread, RawStore, Path(settings["folder"]) / "bare.db")
    data = (Path(settings["folder"]) / "flood.bin").read_bytes()
    await full.wait()
    await asyncio.sleep(0.3)
    for number in range(settings["count"]):
        rows = [_row(number * settings["events"] + index) for index in range(settings["events"])]
        await call(thread, store.commit, rows)
        for peer in peers:
            if not peer.writable.is_set():
                await peer.writable.wait()
            peer.transport.write(data)
    for peer in peers:
        peer.transport.close()
    await asyncio.Event().wait()


async def resume(settings: dict[str, Any], peers: list[Peer], full: asyncio.Event) -> None:
    """All events of one thread of a store, a thousand rows a frame, to whoever says anything."""
    store = apsw.Connection(settings["source"], flags=apsw.SQLITE_OPEN_READWRITE)
    rows = store.execute("SELECT seq, type, payload FROM events ORDER BY pos")
    await full.wait()
    while some := [row for _, row in zip(range(1000), rows, strict=False)]:
        events = [_EVENT % (seq, kind.encode(), payload[1:]) for seq, kind, payload in some]
        peers[0].transport.write(frame(_HEAD + b",".join(events) + b"]}"))
    store.close()
    await asyncio.Event().wait()


async def answer(settings: dict[str, Any], said: asyncio.Queue[Peer]) -> None:
    """One row, one commit and one byte for whatever a peer says."""
    waiting: list[Peer] = []

    def committed(rows: list[tuple[Any, ...]]) -> None:
        for _ in rows:
            waiting.pop(0).transport.write(b".")

    commits = Commits(Path(settings["folder"]), committed)
    running = asyncio.create_task(commits.run())
    for number in itertools.count(1):
        waiting.append(await said.get())
        commits.append(1, number, "run_queued", b"{}")
    await running


async def idle(_settings: dict[str, Any], _peers: list[Peer], _full: asyncio.Event) -> None:
    """Holds its peers."""
    await asyncio.Event().wait()


MODES = {"stream": stream, "flood": flood, "resume": resume, "idle": idle}


async def main(mode: str, settings: dict[str, Any]) -> None:
    peers: list[Peer] = []
    full = asyncio.Event()
    loop = asyncio.get_running_loop()

    def joined(peer: Peer) -> None:
        peers.append(peer)
        if len(peers) == settings["peers"]:
            full.set()

    said: asyncio.Queue[Peer] = asyncio.Queue()
    server = await loop.create_server(lambda: Peer(joined, said.put_nowait), "127.0.0.1", 0, backlog=2048)
    print(f"bare {mode} at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    if mode == "answer":
        await answer(settings, said)
    else:
        await MODES[mode](settings, peers, full)


if __name__ == "__main__":
    sys.setswitchinterval(0.0001)  # as the product does
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1], json.loads(sys.argv[2])))
