"""Processes that write to, or show, a store whose power is about to be cut: they report each event that they show.

A report is a line on standard output: the thread, and the event's bytes. The arguments are the store's URL, a seed,
and what is planted: `delete-full`, `wal-normal`, or nothing.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import apsw
import msgspec

from runstone import logs
from runstone.brokers.local import LocalBroker
from runstone.clock import SystemClock
from runstone.commands import Claimed, NewRun, beat, claim_runs, start_run
from runstone.errors import StoreFailed
from runstone.events import Custom, Draft, MessageDelta, MessageStarted
from runstone.ids import new_id
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.store import RunRow
from runstone.stores import sqlite
from runstone.stores.sqlite import SqliteStore, connection
from runstone.views import ThreadRef

USER = "alice"
PRODUCERS = 3
PAUSE_S = 0.015  # the longest silence between two bursts: a cut often lands in one
_NEW = NewRun(agent="writer", input=msgspec.Raw(b"null"), message=None, on_crash="fail", max_attempts=1, timeout_s=60)


def write() -> None:
    """Appends through the real log for ever; the first argument after the URL is the seed."""
    url, seed, plant = sys.argv[1:]
    logs.configure(debug=False)
    _plant(plant)
    asyncio.run(_write(url, random.Random(seed)))


def write_and_stall() -> None:
    """The same, but its twentieth commit never gets to the disk: it says `stalled` and stays where it is."""
    url, seed, journal_mode = sys.argv[1:]
    stalling = _Stalling(journal_mode)
    stalling.arm(20)
    asyncio.run(_write(url, random.Random(seed)))
    del stalling  # it is SQLite's as long as it lives


def show() -> None:
    """Opens the log as a server does that finds no run under way; reports all there is, says `shown` and waits."""
    url, *threads = sys.argv[1:]
    asyncio.run(_show(url, threads))


async def _write(url: str, dice: random.Random) -> None:
    log = await _started(url)
    worker, agents = new_id("wrk"), frozenset({"writer"})
    await log.append(beat(worker, first=True))
    left: tuple[list[Claimed], int] = await log.append(claim_runs(agents, PRODUCERS, worker))
    assert not left[0], "what the power cut short is ended: it is not to be begun again"
    threads = [ThreadRef(await _thread(log), USER) for _ in range(PRODUCERS)]
    claimed: tuple[list[Claimed], int] = await log.append(claim_runs(agents, PRODUCERS, worker))
    rows = [found.run for found in claimed[0]]
    try:
        async with asyncio.TaskGroup() as group:
            for thread in threads:
                group.create_task(_report(log, thread))
            for row in rows:
                group.create_task(_produce(log, row, random.Random(dice.random())))
    except* StoreFailed:
        pass  # the power is gone


async def _started(url: str) -> Log:
    clock = SystemClock()
    log = Log(SqliteStore(url, clock), LocalBroker(), clock, Metrics())
    await log.start()
    return log


async def _thread(log: Log) -> str:
    made = await log.append(start_run(USER, _NEW))
    row = await log.rows.run(USER, made.id)
    assert row is not None
    return row.thread_id


async def _produce(log: Log, row: RunRow, dice: random.Random) -> None:
    outbox = log.outbox(row, row.attempt)
    message_id, offset = new_id("msg"), 0

    def draft(data: Any) -> Draft:
        return Draft(data=data, run_id=row.run_id, attempt=row.attempt)

    await outbox.append(draft(MessageStarted(message_id=message_id, role="assistant")))
    while True:
        for _ in range(dice.randint(1, 4)):
            text = "stone " * dice.randint(1, 300)
            await outbox.delta(MessageDelta, message_id, 0, offset, text)
            offset += len(text)
            if dice.random() < 0.5:
                await outbox.append(draft(Custom(name="mark", value=msgspec.Raw(b"%d" % offset))))
        await outbox.flush()
        await asyncio.sleep(dice.uniform(0, PAUSE_S))


async def _report(log: Log, thread: ThreadRef) -> None:
    """What a viewer of the thread would have been sent by now."""
    woken = asyncio.Event()
    async with log.tail(thread, after=0, wake=woken.set) as tail:
        while True:
            while tail.behind:
                for event in (await tail.read()).events:
                    _say(thread.thread_id, event.wire)
            await woken.wait()
            woken.clear()


async def _show(url: str, threads: list[str]) -> None:
    log = await _started(url)
    for thread_id in threads:
        thread = ThreadRef(thread_id, USER)
        async with log.tail(thread, after=0, wake=lambda: None) as tail:
            while tail.behind:
                for event in (await tail.read()).events:
                    _say(thread_id, event.wire)
    _say("shown", b"")
    await asyncio.Event().wait()


def _say(word: str, wire: bytes) -> None:
    line = word.encode() + b" " + wire + b"\n"
    while line:
        line = line[os.write(1, line) :]


def _plant(plant: str) -> None:
    pragma = {"": "", "delete-full": "PRAGMA synchronous = FULL", "wal-normal": "PRAGMA synchronous = NORMAL"}[plant]
    connect = connection.connect

    def weaker(*arguments: Any, **options: Any) -> apsw.Connection:
        opened = connect(*arguments, **options)
        opened.execute(pragma)
        return opened

    if pragma:
        setattr(sqlite, "connect", weaker)  # noqa: B010 - where the store looks it up


class _Stalling(apsw.VFS):
    """SQLite's own files, but the one call that makes a commit durable is reached and not carried out."""

    def __init__(self, journal_mode: str) -> None:
        super().__init__("stalling", "unix", makedefault=True)
        self._journal_mode = journal_mode
        self._left = -1

    def arm(self, commits: int) -> None:
        self._left = commits

    def xOpen(self, name: Any, flags: Any) -> _File:  # noqa: N802 - SQLite's name
        return _File(self, name, flags, wal=self._journal_mode == "wal" and bool(flags[0] & apsw.SQLITE_OPEN_WAL))

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        if self._journal_mode == "delete" and filename.endswith("-journal"):
            Path(filename).unlink()
            self.reach()
        else:
            super().xDelete(filename, syncdir)

    def reach(self) -> None:
        self._left -= 1
        if self._left == 0:
            _say("stalled", b"")
            threading.Event().wait()


class _File(apsw.VFSFile):
    def __init__(self, vfs: _Stalling, name: Any, flags: Any, *, wal: bool) -> None:
        super().__init__("unix", name, flags)
        self._vfs, self._wal = vfs, wal

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._wal:
            self._vfs.reach()
        super().xSync(flags)
