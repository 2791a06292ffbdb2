"""SQLite files for the contract of stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw

from runstone.clock import Clock
from runstone.projection import KEYS
from runstone.stores.sqlite import SqliteStore
from tests.stores.dump import TABLES, Dump, EventRow, Tables

# columns that are the database's own
HIDDEN = {"thread_no", "run_no", "shard", "owner"}

_EVENTS = """
SELECT e.pos, t.thread_id, e.seq, r.run_id, e.attempt, e.user_id, e.type, e.time, e.private, e.payload
FROM events AS e JOIN threads AS t USING (thread_no) LEFT JOIN runs AS r USING (run_no) ORDER BY e.pos
"""


class SqliteDatabase:
    def __init__(self, folder: Path, journal_mode: str = "wal") -> None:
        self.path = folder / "runs.db"
        self.url = f"sqlite:///{self.path}?journal_mode={journal_mode}"

    def store(self, clock: Clock) -> SqliteStore:
        return SqliteStore(self.url, clock)

    def dump(self) -> Dump:
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            connection.execute("BEGIN")
            found: list[Any] = connection.execute(_EVENTS).fetchall()
            events = [_event(*row) for row in found]
            return Dump(events, {name: _table(connection, name) for name in TABLES})
        finally:
            connection.close()


def _event(*columns: Any) -> EventRow:
    *plain, private, payload = columns
    fields = zip(EventRow.__struct_fields__, (*plain, bool(private), payload), strict=True)
    return EventRow(**dict(fields))


def _table(connection: apsw.Connection, name: str) -> Any:
    keys = KEYS[name]  # type: ignore[index] # of TABLES
    found: Tables = {name: {}}
    cursor = connection.execute(f"SELECT * FROM {name}")
    for row in cursor:
        columns = {column[0]: value for column, value in zip(cursor.description, row, strict=True)}
        key = tuple(columns.pop(part) for part in keys)
        found[name][key] = {column: value for column, value in columns.items() if column not in HIDDEN}
    return found[name]
