"""A disk that is full, or fails: the server stops at once, says so, and takes nothing back."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx2
import pytest

from tests.support import watchers
from tests.support.disk import NOT_TESTED, Disk, why_none
from tests.support.history import History, runs_of
from tests.support.live import Live
from tests.support.ordeal import check_file, check_store
from tests.support.server import ServerProcess

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

EXIT_S = 20.0
RUNS = 5
BEFORE_S = 0.5  # for which all is well, with events coming


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Disk]:
    if (reason := why_none()) is not None:
        pytest.skip(reason)
    with Disk(tmp_path, size_mib=24) as disk:
        yield disk


class Scene:
    """A server with runs under way and clients attached, whose disk is about to fail."""

    def __init__(self, folder: Path, database: Path, journal_mode: str) -> None:
        self.server = ServerProcess(folder, "tests.support.hardy:app", journal_mode)
        self.server.database = database
        self.server.store_url = f"sqlite:///{database}?journal_mode={journal_mode}"
        self.history = History()
        self.threads: dict[str, list[str]] = {}
        self.socket = watchers.SocketWatcher(self.history, "socket")
        self.streams: list[watchers.StreamWatcher] = []

    def cut_power(self, disk: Disk) -> None:
        """A sync that is under way then may be told that it succeeded; a machine without power tells nobody."""
        disk.cut()
        self.history.closed = True

    async def play(self, break_disk: Callable[[], None], mend_disk: Callable[[], None]) -> str:
        """Returns what the server said on standard error."""
        self.server.start()
        try:
            async with httpx2.AsyncClient(base_url=self.server.url, trust_env=False, timeout=30) as http:
                live = Live(http, self.server.port)
                for number in range(RUNS):
                    run = await live.start("fragile", {"tag": f"t{number}x", "words": 20_000, "messages": 1})
                    self.threads[run["thread_id"]] = [run["run_id"]]
                await self._watch_until_it_breaks(http, break_disk)
                code = await asyncio.to_thread(self.server.wait, EXIT_S)
            said = self.server.log.read_text()
            assert code == 1, f"the server exits {code}:\n{said}"
            mend_disk()
            self.server.kill()  # it is gone; this closes its pipe
            await self._check_what_is_left()
        finally:
            self.server.kill()
        check_file(self.server.database)
        check_store(self.server.store_url)
        return said

    async def _watch_until_it_breaks(self, http: httpx2.AsyncClient, break_disk: Callable[[], None]) -> None:
        self.socket.watch(self.threads)
        for thread_id in self.threads:
            stream = watchers.StreamWatcher(self.history, f"stream of {thread_id}", http)
            stream.watch([thread_id])
            self.streams.append(stream)
        watching = await watchers.attach([self.socket, *self.streams], self.server.url)
        await asyncio.sleep(BEFORE_S)
        assert self.history.shown > 100
        break_disk()
        async with asyncio.timeout(EXIT_S):
            await asyncio.gather(*watching)

    async def _check_what_is_left(self) -> None:
        self.server.start()
        async with httpx2.AsyncClient(base_url=self.server.url, trust_env=False, timeout=30) as http:
            live = Live(http, self.server.port)
            for thread_id, (run_id,) in self.threads.items():
                await live.ended({"run_id": run_id, "ended_at": None})
                log = await live.log(thread_id)
                self.history.compare(thread_id, log)
                told = runs_of(log)[run_id]
                assert told.end is not None
                error = told.end.data["error"]
                assert (error["type"], error["retryable"]) == ("WorkerLost", True)
                assert [*told.status.values()] == ["partial"]
            assert (await live.finished("worker", {"tag": "after", "words": 5}))["status"] == "completed"

    def check_goodbyes(self, said: str) -> None:
        """Everybody was told, in the words of the protocol."""
        assert self.socket.closed_with == [1012]
        assert [stream.closed_with for stream in self.streams] == [["store_failed"]] * RUNS
        assert "the store failed; nothing more is acknowledged or shown" in said
        assert "Error: SQLite: " in said
        assert "Free disk space or mend the disk, then start the server again" in said
        assert "Traceback" not in said, said


@pytest.mark.root
@pytest.mark.xdist_group("disk")
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_a_full_disk_stops_the_server_and_loses_nothing(
    tmp_path: Path, small_disk: Disk, journal_mode: str
) -> None:
    filler = small_disk.root / "filler"

    def fill() -> None:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"\0" * size)

    scene = Scene(tmp_path, small_disk.root / "runs.db", journal_mode)
    said = await scene.play(fill, filler.unlink)
    scene.check_goodbyes(said)
    assert "FullError" in said


@pytest.mark.skipif(sys.platform != "linux", reason=f"{NOT_TESTED}: a limit on a running server's files needs Linux")
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_a_write_error_stops_the_server_and_loses_nothing(tmp_path: Path, journal_mode: str) -> None:
    database = tmp_path / "store" / "runs.db"
    scene = Scene(tmp_path, database, journal_mode)

    def limit() -> None:
        largest = max(path.stat().st_size for path in database.parent.iterdir() if not path.name.endswith("-shm"))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(scene.server.pid, resource.RLIMIT_FSIZE, (largest, hard))

    said = await scene.play(limit, lambda: None)
    scene.check_goodbyes(said)
    assert "IOError" in said


@pytest.mark.root
@pytest.mark.xdist_group("disk")
async def test_a_disk_that_goes_away_stops_the_server_and_loses_nothing(tmp_path: Path, small_disk: Disk) -> None:
    scene = Scene(tmp_path, small_disk.root / "runs.db", "wal")
    said = await scene.play(partial(scene.cut_power, small_disk), small_disk.come_back)
    scene.check_goodbyes(said)


@pytest.mark.root
@pytest.mark.xdist_group("disk")
def test_a_store_cannot_be_made_on_a_full_disk(small_disk: Disk) -> None:
    with (small_disk.root / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 4096)
    done = _serve(f"sqlite:///{small_disk.root}/runs.db")
    assert done.returncode == 1
    assert "Error: SQLite: FullError" in done.stderr
    assert "Traceback" not in done.stderr


def _serve(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "runstone", "serve", "tests.support.hardy:app", "--port", "0", "--store", url]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
