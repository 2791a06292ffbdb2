"""Raw group commit: rows into a SQLite file in transactions, and nothing else. The baseline of what writes.

    python -m benches.raw '{"folder": …, "source": …, "batch": 100}'

commits the events of a store again, in a process of its own, and prints what that took as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import apsw

from benches.processes import ROOT

_COLUMNS = "pos, thread_no, seq, run_no, attempt, user_id, type, time, private, payload"
_WIDTH = 10
_CHUNKS = (64, 8, 1)


class RawStore:
    """The product's table of events and its one index, with the same durability; no thread rows, no run rows."""

    def __init__(self, path: Path, journal_mode: str = "wal") -> None:
        self._db = apsw.Connection(str(path))
        self._db.execute(f"PRAGMA journal_mode = {journal_mode}")
        self._db.execute(f"PRAGMA synchronous = {'FULL' if journal_mode == 'wal' else 'EXTRA'}")
        self._db.execute("PRAGMA cache_size = -65536; PRAGMA wal_autocheckpoint = 2000")
        self._db.execute(
            "CREATE TABLE events (pos INTEGER PRIMARY KEY, thread_no INTEGER NOT NULL, seq INTEGER NOT NULL, "
            "run_no INTEGER, attempt INTEGER, user_id TEXT NOT NULL, type TEXT NOT NULL, time INTEGER NOT NULL, "
            "private INTEGER NOT NULL, payload BLOB NOT NULL)"
        )
        self._db.execute("CREATE UNIQUE INDEX events_of_thread ON events (thread_no, seq)")
        self._sql = {
            rows: f"INSERT INTO events ({_COLUMNS}) VALUES " + ", ".join(["(" + ", ".join("?" * _WIDTH) + ")"] * rows)
            for rows in _CHUNKS
        }

    def commit(self, rows: Sequence[Sequence[Any]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        start = 0
        for count in _CHUNKS:
            while len(rows) - start >= count:
                chunk = rows[start : start + count]
                self._db.execute(self._sql[count], [value for row in chunk for value in row])
                start += count
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


def recommit(
    folder: Path, source: Path, batch: float, *, journal_mode: str = "wal", seconds: float = 5.0
) -> dict[str, float]:
    """The events of a store, committed again by a raw writer, `batch` at a time: rates a second, times in ms."""
    settings = {
        "folder": str(folder),
        "source": str(source),
        "batch": max(1, round(batch)),
        "journal_mode": journal_mode,
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "benches.raw", json.dumps(settings)],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _main(settings: dict[str, Any]) -> dict[str, float]:
    source = apsw.Connection(settings["source"], flags=apsw.SQLITE_OPEN_READWRITE)
    rows = source.execute(f"SELECT {_COLUMNS} FROM events ORDER BY pos LIMIT 500000").fetchall()
    source.close()
    store = RawStore(Path(settings["folder"]) / "raw.db", settings["journal_mode"])
    batch = settings["batch"]
    took: list[float] = []
    done = 0
    begin = time.perf_counter()
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        before = time.perf_counter()
        store.commit(some)
        took.append(time.perf_counter() - before)
        done += len(some)
        if before - begin > settings["seconds"]:
            break
    whole = time.perf_counter() - begin
    store.close()
    took.sort()
    return {
        "events_a_second": done / whole,
        "commits_a_second": len(took) / whole,
        "p50_ms": took[len(took) // 2] * 1e3,
        "p99_ms": took[min(int(len(took) * 0.99), len(took) - 1)] * 1e3,
    }


if __name__ == "__main__":
    json.dump(_main(json.loads(sys.argv[1])), sys.stdout)
