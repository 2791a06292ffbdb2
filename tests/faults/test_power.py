"""Power cuts: what was shown is on the disk, whatever the disk had in its caches."""

from __future__ import annotations

import os
import random
import select
import signal
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from runstone import server, verify
from runstone.clock import SystemClock
from runstone.stores.sqlite import SqliteStore
from runstone.views import ThreadRef
from tests.support.dice import dice
from tests.support.disk import Disk, why_none
from tests.support.power_writer import USER
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.slow, pytest.mark.xdist_group("disk")]

FIRST_REPORT_S = 20.0
LIVE_S = 0.12  # the most that a writer lives after its first report

Shown = dict[str, list[bytes]]  # by thread, in order


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote("tests.support.power_writer")
    yield found
    found.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    if (reason := why_none()) is not None:
        pytest.skip(reason)
    with Disk(tmp_path) as disk:
        yield disk


class Child:
    """A process of `power_writer`, and everything that it reported."""

    def __init__(self, zygote: Zygote, disk: Disk, function: str, *arguments: str) -> None:
        self.shown: Shown = defaultdict(list)
        self.words: set[str] = set()
        self._zygote = zygote
        self._rest = b""
        self._reading, writing = os.pipe()
        try:
            with disk.root.with_name("children.log").open("a") as log:
                self._pid = zygote.fork(
                    f"tests.support.power_writer:{function}", arguments, stdout=writing, stderr=log.fileno()
                )
        finally:
            os.close(writing)

    def listen(self, seconds: float, *, until: str | None = None, first: bool = False) -> None:
        """Takes reports in for so long; or until a word, or the first report, has come."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._reading], [], [], left)[0]:
                if not self._take(os.read(self._reading, 1 << 20)):
                    break
                if until in self.words or (first and self.shown):
                    return
        assert until is None, f"no {until!r} came"
        assert self.shown, "nothing was reported"

    def now(self) -> Shown:
        """What was reported up to this moment.

        What comes while the power goes does not count: a sync that is under way when the file system is shut down
        may be told that it succeeded, and a machine without power tells nobody.
        """
        while select.select([self._reading], [], [], 0)[0] and self._take(os.read(self._reading, 1 << 20)):
            pass
        return {thread_id: [*wires] for thread_id, wires in self.shown.items()}

    def kill(self) -> Shown:
        """SIGKILL; returns all that was reported, to the last byte."""
        os.kill(self._pid, signal.SIGKILL)
        self._zygote.wait(self._pid)
        while self._take(os.read(self._reading, 1 << 20)):
            pass
        os.close(self._reading)
        return self.shown

    def _take(self, piece: bytes) -> bool:
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            word, _, wire = line.partition(b" ")
            if wire:
                self.shown[word.decode()].append(wire)
            else:
                self.words.add(word.decode())
        return bool(piece)


async def kept(url: str, thread_id: str) -> list[bytes]:
    """A thread's log, read as the server reads it."""
    store = SqliteStore(url, SystemClock())
    await store.open()
    try:
        found: list[bytes] = []
        while page := (
            await store.events(ThreadRef(thread_id, USER), after=len(found), limit=1000, bytes_max=1 << 20)
        ).events:
            found += [event.wire for event in page]
        return found
    finally:
        await store.close()


async def losses(url: str, shown: Shown) -> list[str]:
    """What was shown and is not there any more."""
    lost = []
    for thread_id, wires in shown.items():
        log = await kept(url, thread_id)
        if log[: len(wires)] != wires:
            lost.append(f"{thread_id}: {len(wires)} events were shown, {len(log)} are kept")
    return lost


def broken(url: str) -> list[str]:
    """What `runstone verify` finds."""
    found: list[str] = []
    with server.audit(url) as audit:
        verify.verify(audit, lambda finding: found.append(finding.line()), lambda *_: None, hold_s=None)
    return found


async def cut(
    zygote: Zygote, disk: Disk, chance: random.Random, journal_mode: str, cuts: int, plant: str = ""
) -> tuple[int, list[str]]:
    """Cuts the power so often while a writer writes; returns how many events were shown, and what was lost."""
    lost: list[str] = []
    shown: Shown = {}
    folder = disk.root
    events = 0
    for number in range(cuts):
        if number == 0 or chance.random() < 0.5:
            folder = disk.root / f"{number}" / "deep"  # a database, and its folders, that do not exist yet
            shown = {}
        url = f"sqlite:///{folder}/runs.db?journal_mode={journal_mode}"
        child = Child(zygote, disk, "write", url, str(chance.random()), plant)
        try:
            child.listen(FIRST_REPORT_S, first=True)
            if chance.random() < 0.7:
                child.listen(chance.uniform(0, LIVE_S))
            shown |= child.now()
            disk.cut()
        finally:
            child.kill()
        disk.come_back()
        events += sum(map(len, child.shown.values()))
        lost += await losses(url, shown)
        if lost:
            break
        lost += broken(url)
    return events, lost


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_no_event_that_was_shown_is_lost_when_the_power_goes(
    zygote: Zygote, disk: Disk, journal_mode: str
) -> None:
    events, lost = await cut(zygote, disk, dice(f"cuts in {journal_mode}"), journal_mode, 40)
    assert not lost
    assert events > 200


@pytest.mark.parametrize(("journal_mode", "plant"), [("delete", "delete-full"), ("wal", "wal-normal")])
async def test_a_disk_that_is_synced_less_is_found_out(
    zygote: Zygote, disk: Disk, journal_mode: str, plant: str
) -> None:
    _, lost = await cut(zygote, disk, dice(f"cuts with {plant}"), journal_mode, 40, plant)
    assert any("were shown" in line for line in lost)


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_what_a_restart_shows_of_an_unfinished_commit_is_not_lost_when_the_power_goes(
    zygote: Zygote, disk: Disk, journal_mode: str
) -> None:
    url = f"sqlite:///{disk.root}/runs.db?journal_mode={journal_mode}"
    writer = Child(zygote, disk, "write_and_stall", url, "1", journal_mode)
    try:
        writer.listen(FIRST_REPORT_S, until="stalled")
    finally:
        before = writer.kill()
    viewer = Child(zygote, disk, "show", url, *before)
    try:
        viewer.listen(FIRST_REPORT_S, until="shown")
        disk.cut()
    finally:
        shown = viewer.kill()
    disk.come_back()
    assert sum(map(len, shown.values())) > sum(map(len, before.values()))
    assert not await losses(url, shown)


@pytest.mark.torture
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_no_event_that_was_shown_is_lost_in_hundreds_of_cuts(
    zygote: Zygote, disk: Disk, journal_mode: str
) -> None:
    _, lost = await cut(zygote, disk, dice(f"many cuts in {journal_mode}"), journal_mode, 500)
    assert not lost
