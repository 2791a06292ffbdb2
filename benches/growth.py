"""The store grows: append, tail and resume in old threads, with 10⁴ to 10⁷ events in the file."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import apsw

from benches.bench import Bench, Lost
from benches.processes import Process, runstone
from benches.report import Row, at_most, percentile
from benches.viewers import Delays, Viewer, all_ended, open_viewers
from benches.wire import Http, Pool

TITLE = "the store grows (baseline: 10⁴ events)"
_THREAD_EVENTS = 1_000
_FLAT = 1.2


@dataclass
class Times:
    append_ms: list[float] = field(default_factory=list)
    tail_ms: list[float] = field(default_factory=list)
    resume_ms: list[float] = field(default_factory=list)


async def run(bench: Bench) -> list[Row]:
    sizes = bench.pick([10_000, 100_000, 1_000_000], [10_000, 100_000], [2_000, 4_000])
    if bench.huge:
        sizes = [*sizes, 10_000_000]
    rounds = bench.pick(40, 12, 2)
    seed = bench.room("seed")
    with runstone(seed) as server:
        head = await _record(server.port, bench.pick(_THREAD_EVENTS, _THREAD_EVENTS, 200))
    times = {size: Times() for size in sizes}
    with contextlib.ExitStack() as stack:
        stores = {}
        for size in sizes:
            folder = bench.room(str(size))
            threads = grow(seed / "runs.db", folder / "runs.db", size // head)
            stores[size] = (stack.enter_context(runstone(folder)), threads)
        dice = random.Random(1)
        for _ in range(rounds):  # in turn, so that whatever else the machine does hits all sizes
            for size, (server, threads) in stores.items():
                await _round(server, dice.sample(threads, 2), head, times[size])
    return _rows(times)


def _rows(times: Mapping[int, Times]) -> list[Row]:
    rows = []
    smallest, *others = times
    for name in ("append", "tail", "resume"):
        first = percentile(getattr(times[smallest], f"{name}_ms"), 0.5)
        for size in others:
            found = percentile(getattr(times[size], f"{name}_ms"), 0.5)
            rows.append(at_most(f"{name} with {size:,} events, p50", found, "ms", target=_FLAT * first, baseline=first))
    return rows


async def _record(port: int, events: int) -> int:
    """One thread to copy; its head."""
    pool = Pool(port, 1)
    (thread_id,) = await pool.threads(1)
    (made,) = await pool.start("wordy", [thread_id], events=events)
    ended = await pool.call("GET", f"/v1/runs/{made['run_id']}?wait_s=60")
    pool.close()
    return int(ended["last_seq"])


async def _round(server: Process, threads: list[str], head: int, times: Times) -> None:
    """In one old thread a run of waiting tokens, with a viewer; another is resumed."""
    active, resumed = threads
    loop, http, pool = asyncio.get_running_loop(), Http(server.port), Pool(server.port, 1)
    begin = loop.time()
    viewer = Viewer(resumed, lambda _: None)
    await open_viewers(server.port, [viewer])
    while viewer.last < head:  # later rounds may have added to it
        await asyncio.sleep(0)
        if viewer.socket.lost.done():
            raise Lost("cut off while resuming")
    times.resume_ms.append((loop.time() - begin) * 1e3)
    viewer.close()
    delays = Delays()
    known = await http.call("GET", f"/v1/threads/{active}")
    viewer = Viewer(active, delays.take, after=known["head"])
    await open_viewers(server.port, [viewer])
    (made,) = await pool.start("single", [active], count=20)
    await all_ended([viewer], 30)
    ended = await http.call("GET", f"/v1/runs/{made['run_id']}")
    times.append_ms += [took / 1e6 for took in ended["output"]]
    times.tail_ms += delays.ms
    viewer.close()
    http.close()
    pool.close()


def grow(source: Path, target: Path, threads: int) -> list[str]:
    """A store with so many copies of the one thread of `source`, each under ids of its own; their ids."""
    shutil.copy(source, target)
    if (log := source.with_name(source.name + "-wal")).exists():
        shutil.copy(log, target.with_name(target.name + "-wal"))
    db = apsw.Connection(str(target))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE); PRAGMA journal_mode = delete; PRAGMA synchronous = off")
    db.execute("PRAGMA cache_size = -262144; PRAGMA foreign_keys = off")
    tables = ("thread_id FROM threads", "run_id FROM runs", "message_id FROM messages")
    ids = [row[0] for table in tables for row in db.execute(f"SELECT {table}")]
    digits = ids[0][4:12]
    assert all(name[4:12] == digits for name in ids), "ids made within a minute begin alike"
    events = db.execute("SELECT max(pos) FROM events").get
    id_ = "replace({0}, '_" + digits + "', printf('_%08x', k))"
    shapes: dict[str, dict[str, str]] = {
        "threads": {"thread_no": "thread_no + k", "thread_id": id_},
        "runs": {"run_no": "run_no + k", "run_id": id_, "thread_id": id_, "root_run_id": id_, "message_id": id_},
        "messages": {"message_id": id_, "thread_id": id_, "run_id": id_},
        "events": {
            "pos": f"pos + k * {events}",
            "thread_no": "thread_no + k",
            "run_no": "run_no + k",
            "payload": "CAST(" + id_.format("CAST(payload AS TEXT)") + " AS BLOB)",
        },
    }
    with db:
        for table, changed in shapes.items():
            columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
            values = [changed.get(name, "{0}").format(name) for name in columns]
            db.execute(
                f"WITH RECURSIVE copies (k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM copies LIMIT {threads - 1}) "
                f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)} "
                f"FROM copies CROSS JOIN {table} AS one WHERE one.rowid <= {events if table == 'events' else 1}"
            )
    made = [row[0] for row in db.execute("SELECT thread_id FROM threads")]
    db.close()
    return made
