"""Fail-stop: after the first write that fails nothing is acknowledged, nothing is shown, and everybody is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import apsw
import httpx2
import pytest

from runstone import Run, Runstone
from runstone.errors import StoreFailed
from runstone.stores.sqlite import SqliteStore
from tests.support.faulty import FaultyDisk, faulty_disk
from tests.support.history import runs_of
from tests.support.live import Live
from tests.support.ordeal import check_file, check_store

pytestmark = pytest.mark.anyio

SOON_S = 10.0

ROUTES = [
    ("GET", "/v1/agents"),
    ("GET", "/v1/threads"),
    ("POST", "/v1/threads"),
    ("GET", "/v1/threads/{thread_id}"),
    ("PATCH", "/v1/threads/{thread_id}"),
    ("DELETE", "/v1/threads/{thread_id}"),
    ("GET", "/v1/threads/{thread_id}/events"),
    ("GET", "/v1/threads/{thread_id}/messages"),
    ("GET", "/v1/threads/{thread_id}/actions"),
    ("GET", "/v1/threads/{thread_id}/state"),
    ("POST", "/v1/threads/{thread_id}/runs"),
    ("POST", "/v1/runs"),
    ("GET", "/v1/runs"),
    ("GET", "/v1/runs/{run_id}"),
    ("POST", "/v1/runs/{run_id}/cancel"),
    ("GET", "/v1/runs/{run_id}/events"),
    ("GET", "/v1/feed"),
    ("GET", "/v1/approvals"),
    ("POST", "/v1/approvals/{approval_id}"),
    ("GET", "/readyz"),
    ("GET", "/metrics"),
    ("GET", "/openapi.json"),
]


@pytest.fixture
def disk() -> Iterator[FaultyDisk]:
    with faulty_disk() as disk:
        yield disk


class Stage:
    """An app in this process with one agent that writes as fast as it can, and notes how it was stopped."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.app = Runstone()
        self.committed = asyncio.Event()
        self.told: list[BaseException] = []
        self.refused: list[BaseException] = []
        self.stopped = asyncio.Event()
        self.quiet_again, self.quiet_cancelled = asyncio.Event(), asyncio.Event()
        self.app.agent(on_crash="fail")(self.writer)
        self.app.agent(self.quiet)

    async def quiet(self, run: Run) -> None:
        """Says one thing more after the failure, waits for no commit, and goes to sleep."""
        await run.say("hello")
        await self.quiet_again.wait()
        try:
            await run.emit("one thing more")
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.quiet_cancelled.set()
            raise
        except StoreFailed:  # told at once
            self.quiet_cancelled.set()
            raise

    async def writer(self, run: Run, tag: str) -> None:
        try:
            async with run.message() as message:
                for number in range(1_000_000):
                    await message.write(f"{tag}{number} ")
                    await run.flush()
                    if number == 20:
                        self.committed.set()
                    await asyncio.sleep(0)
        except BaseException as error:
            self.told.append(error)
            try:
                await run.emit("too late")
            except StoreFailed as refused:
                self.refused.append(refused)
            self.stopped.set()
            raise

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Live]:
        async with asyncio.timeout(60), self.app.running(store=self.url):
            transport = httpx2.ASGITransport(app=self.app.asgi, client=("127.0.0.1", 40_000))
            async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1:8700", timeout=30) as http:
                yield Live(http, 8700)
                stopping = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - stopping < SOON_S, "stopping took long"


async def test_every_route_is_among_those_that_are_tried(tmp_path: Path) -> None:
    async with Stage(f"sqlite:///{tmp_path}/runs.db").running() as live:
        document = (await live.http.get("/openapi.json")).json()
    there = {(method.upper(), path) for path, item in document["paths"].items() for method in item}
    assert there <= {*ROUTES, ("GET", "/healthz")}


Break = Callable[[FaultyDisk], None]
BREAKS: dict[str, Break] = {
    "a full disk": lambda disk: disk.fail_writes(apsw.FullError("planted")),
    "a write error": lambda disk: disk.fail_writes(apsw.IOError("planted")),
    "a torn write": lambda disk: disk.fail_writes(apsw.IOError("planted"), torn=True),
    "a sync error": lambda disk: disk.fail_syncs(apsw.IOError("planted")),
}


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
@pytest.mark.parametrize("what", BREAKS)
async def test_after_a_failed_commit_nothing_is_acknowledged_or_shown_and_everybody_is_told(
    disk: FaultyDisk, tmp_path: Path, what: str, journal_mode: str
) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/runs.db?journal_mode={journal_mode}")
    async with stage.running() as live:
        run = await live.start("writer", {"tag": "w"})
        ids = {"run_id": run["run_id"], "thread_id": run["thread_id"], "approval_id": "apr_x"}
        address = f"/v1/threads/{run['thread_id']}/events"
        stream = asyncio.create_task(live.http.get(address, headers={"accept": "text/event-stream"}))
        waiting = asyncio.create_task(live.http.get(f"/v1/runs/{run['run_id']}?wait_s=60"))
        async with asyncio.timeout(SOON_S):
            await stage.committed.wait()
        acknowledged = await live.start("writer", {"tag": "x"})
        BREAKS[what](disk)
        async with asyncio.timeout(SOON_S):
            await stage.stopped.wait()
            shown = await stream
            waited = await waiting
        for method, path in ROUTES:
            body = {"decision": "deny"} if path.startswith("/v1/approvals") else {}
            answer = await live.http.request(method, path.format(**ids), json=body if method != "GET" else None)
            assert (answer.status_code, answer.json()["code"]) == (503, "store_failed"), path
            assert "disk" in answer.json()["remedy"]
        assert (await live.http.get("/healthz")).status_code == 200
        assert waited.status_code == 503
        assert all(isinstance(error, StoreFailed | asyncio.CancelledError) for error in stage.told)
        assert stage.refused
    disk.mend()
    check_file(tmp_path / "runs.db")
    again = Stage(stage.url)
    async with again.running() as live:
        assert (await live.ended(run))["error"]["type"] == "WorkerLost"
        log = await live.log(run["thread_id"])
        events = [block.split(b"data: ", 1)[1] for block in shown.content.split(b"\n\n") if block.startswith(b"id: ")]
        assert len(events) > 20
        assert log[: len(events)] == events
        assert shown.content.endswith(b'event: closing\ndata: {"reason":"store_failed"}\n\n')
        assert runs_of(log)[run["run_id"]].end is not None
        assert (await live.http.get(f"/v1/runs/{acknowledged['run_id']}")).status_code == 200
    check_store(stage.url)


@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
async def test_a_batch_that_failed_has_left_nothing_or_all_of_it(
    disk: FaultyDisk, tmp_path: Path, journal_mode: str
) -> None:
    """Each start writes three events in one commit; the disk fails at each of its writes in turn."""
    stage = Stage(f"sqlite:///{tmp_path}/runs.db?journal_mode={journal_mode}")
    for number in range(1, 9):
        async with stage.running() as live:
            left = number

            def fail_later(file: apsw.VFSFile, data: bytes, offset: int) -> None:
                nonlocal left
                left -= 1
                if left <= 0:
                    raise apsw.FullError("planted")

            disk.on_write = fail_later
            answer = await live.http.post("/v1/runs", json={"agent": "writer", "message": "w", "input": {"tag": "w"}})
            assert answer.status_code in {201, 503}
            async with asyncio.timeout(SOON_S):
                while (await live.http.get("/v1/agents")).status_code == 200:
                    await live.http.post("/v1/threads", json={})
            disk.mend()
    connection = apsw.Connection(str(tmp_path / "runs.db"))
    try:
        query = (
            "SELECT (SELECT group_concat(type, ' ' ORDER BY seq) FROM events AS e WHERE e.thread_no = t.thread_no) "
            "FROM threads AS t"
        )
        for (types,) in connection.execute(query):
            assert types == "thread_created" or types.startswith("thread_created user_message run_queued"), types
    finally:
        connection.close()
    check_store(stage.url)


@pytest.mark.parametrize("mended", [False, True])
async def test_an_agent_that_waits_for_nothing_is_stopped_too_and_a_mended_disk_takes_nothing_more(
    disk: FaultyDisk, tmp_path: Path, mended: bool
) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/runs.db")
    async with stage.running() as live:
        quiet = await live.start("quiet", {})
        await live.start("writer", {"tag": "w"})
        async with asyncio.timeout(SOON_S):
            await stage.committed.wait()
            disk.fail_writes(apsw.FullError("planted"))
            await stage.stopped.wait()
            if mended:
                disk.mend()
            stage.quiet_again.set()
            await stage.quiet_cancelled.wait()
        assert (await live.http.post("/v1/threads", json={})).status_code == 503
    disk.mend()
    again = Stage(stage.url)
    async with again.running() as live:
        log = await live.log(quiet["thread_id"])
        assert not any(b"one thing more" in event for event in log)


async def test_a_read_error_stops_it_too(disk: FaultyDisk, tmp_path: Path) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/runs.db")
    async with stage.running() as live:
        ids = {"thread_id": await live.thread(), "run_id": "run_x", "approval_id": "apr_x"}
        disk.fail_reads(apsw.IOError("planted"))
        reads = [path.format(**ids) for method, path in ROUTES if method == "GET" and path.startswith("/v1/t")]
        async with asyncio.timeout(SOON_S):
            while [(await live.http.get(path)).status_code for path in reads] != [503] * len(reads):
                await live.http.post("/v1/threads", json={})  # what was written since is in no reader's cache
        disk.mend()
        for method, path in ROUTES:
            answer = await live.http.request(method, path.format(**ids))
            assert (answer.status_code, answer.json()["code"]) == (503, "store_failed"), path


async def test_a_store_that_may_grow_no_more_stops_without_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(f"sqlite:///{tmp_path}/runs.db")
    opened = SqliteStore._open

    def open_small(store: SqliteStore) -> None:
        opened(store)
        pages = store._connection.execute("PRAGMA page_count").get
        store._connection.execute(f"PRAGMA max_page_count = {pages + 20}")

    monkeypatch.setattr(SqliteStore, "_open", open_small)
    async with stage.running() as live:
        run = await live.start("writer", {"tag": "long enough to fill twenty pages soon " * 50})
        async with asyncio.timeout(30):
            await stage.stopped.wait()
        answer = await live.http.get("/v1/threads")
        assert "FullError" in answer.json()["detail"]
    monkeypatch.undo()
    again = Stage(stage.url)
    async with again.running() as live:
        assert (await live.ended(run))["error"]["type"] == "WorkerLost"
    check_store(stage.url)
