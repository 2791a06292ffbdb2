"""Reads a SQLite file for a check of it, beside whoever writes it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import apsw

from runstone.audit import AuditedThread, Damaged, EventRow, Extent, PlaceRow, Structure
from runstone.clock import Clock
from runstone.errors import NotFound, StoreFailed, StoreOutdated
from runstone.projection import KEYS, Column, Table
from runstone.stores.migrations import plan
from runstone.stores.sqlite.connection import SqliteSchema, SqliteUrl, connect, failing, transaction
from runstone.stores.sqlite.schema import MIGRATIONS
from runstone.stores.sqlite.stretches import STRETCH, STRETCH_OF_EVENT, since

CACHE_KIB = 16 * 1024  # of pages: a check goes through the file once
PAGE_BYTES_MAX = 8 * 1024 * 1024  # of payloads that are read at once
STRAYS_MAX = 10
_CHUNK_ROWS = 64  # between two looks at the size: 48 MiB, were all events as large as they may be
_PROGRESS_STEPS = 10_000  # of SQLite's machine, between two looks at the clock: below a millisecond
_UNEXPLAINED_ROWS = 1_000  # looked at in one statement

_EVENTS = f"""
SELECT CAST(seq AS INTEGER), pos, run_no, attempt, type, CAST(time AS INTEGER), private,
    CASE
        WHEN typeof(seq) <> 'integer' OR typeof(time) <> 'integer' THEN 'its seq or its time is no integer'
        WHEN user_id <> ?4 THEN 'its user_id is ' || quote(user_id) || ', expected the owner, ' || quote(?4)
        WHEN v <> 1 THEN 'its schema version is ' || quote(v) || ', expected 1'
        WHEN codec IS NOT NULL OR key_id IS NOT NULL THEN 'it is encoded, expected plain JSON'
        WHEN typeof(payload) <> 'blob' THEN 'its payload is stored as ' || typeof(payload) || ', expected as bytes'
    END,
    payload
{since("?1", "?2 + 1")} ORDER BY s.first_seq, e.seq LIMIT ?3
"""

# A thread that began after the others were listed is none.
_STRAY = """
SELECT thread_no FROM stretches WHERE thread_no > ?1 AND (?2 IS NULL OR thread_no < ?2)
    AND NOT EXISTS (SELECT 1 FROM threads WHERE threads.thread_no = stretches.thread_no)
ORDER BY thread_no LIMIT 1
"""

# An event is only found through its thread's stretch.
_NOT_FOUND = f"""
SELECT found.thread_no, found.first_seq, found.stretch FROM (
    SELECT {STRETCH} AS stretch, thread_no, min(seq) AS first_seq
    FROM events INDEXED BY events_in_stretch GROUP BY {STRETCH}, thread_no
) AS found LEFT JOIN stretches AS s USING (thread_no, first_seq)
WHERE s.stretch IS NULL OR s.stretch <> found.stretch LIMIT {STRAYS_MAX}
"""
_NOT_THERE = f"""
SELECT thread_no, first_seq, stretch FROM stretches AS s WHERE NOT EXISTS (
    SELECT 1 FROM events AS e INDEXED BY events_in_stretch
    WHERE {STRETCH_OF_EVENT} = +s.stretch AND e.thread_no = s.thread_no AND e.seq = s.first_seq
) LIMIT {STRAYS_MAX}
"""


def _made_by(table: Table, id: str, seq: str, where: str, *, order: str = "rowid") -> str:
    """A table's rows in order, each with whether the event that makes it stands where the row says."""
    return f"""
        SELECT {id}, {seq}, {order}, EXISTS (SELECT 1 {since("?1", f"r.{seq}")} AND {where})
        FROM {table} AS r WHERE thread_id = ?2 AND {order} > ?3 ORDER BY {order} LIMIT {_UNEXPLAINED_ROWS}
    """


def _names(id: str) -> str:
    return f"json_extract(CAST(payload AS TEXT), '$.data.{id}') = r.{id}"


_OF_RUN = "e.run_no = (SELECT run_no FROM runs WHERE runs.run_id = r.run_id)"
_UNEXPLAINED: dict[Table, str] = {
    "runs": _made_by(
        "runs",
        "run_id",
        "first_seq",
        "e.seq <= r.first_seq + 1 AND type = 'run_queued' AND e.run_no = r.run_no",  # its message may stand before it
        order="run_no",
    ),
    "messages": _made_by(
        "messages",
        "message_id",
        "first_seq",
        f"e.seq = r.first_seq AND type IN ('user_message', 'message_started') AND {_names('message_id')}",
    ),
    "actions": _made_by(
        "actions", "action_id", "seq", f"e.seq = r.seq AND type = 'tool_executing' AND {_names('action_id')}"
    ),
    "approvals": _made_by(
        "approvals", "approval_id", "seq", f"e.seq = r.seq AND type = 'approval_requested' AND {_names('approval_id')}"
    ),
    "steps": _made_by(
        "steps",
        "key",
        "seq",
        f"e.seq = r.seq AND type = 'step_completed' AND {_OF_RUN} AND {_names('key')}",
        order="run_id || '/' || key",
    ),
}
_COUNTED: tuple[Table, ...] = ("runs", "messages", "actions", "approvals", "steps", "state")
_REFERRING = (*_COUNTED, "keys", "stretches")  # of events too, but those are looked up one by one


class SqliteAudit:
    """Confined to one thread; every read may raise StoreFailed, or Damaged."""

    def __init__(self, url: SqliteUrl, connection: apsw.Connection, clock: Clock) -> None:
        self._db = connection
        self._clock = clock
        with failing():
            applied = SqliteSchema(connection).applied()
        if not applied or plan(MIGRATIONS, applied):
            raise StoreOutdated(f"The store {url.path} has schema {applied[-1].version if applied else 0}.")
        self.schema = f"{applied[-1].version} ({applied[-1].name})"
        with failing():
            self.generation: str | None = connection.execute("SELECT value FROM meta WHERE name = 'generation'").get
            self.delays_commits = connection.pragma("journal_mode") != "wal"

    # --- the file ---------------------------------------------------------------------------------------

    def structure(self, hold_s: float | None) -> Iterator[Structure]:
        yield Structure("tables and indexes", self._schema_problems())
        yield Structure("foreign keys are on", [] if self._db.pragma("foreign_keys") else ["foreign keys are off"])
        tables = [row[0] for row in self._all("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
        for table in tables:
            yield self._bounded(f"quick_check of {table}", f'PRAGMA quick_check("{table}")', hold_s)
        for table in _REFERRING:
            yield self._bounded(f"foreign keys of {table}", f"PRAGMA foreign_key_check({table})", hold_s)
        yield self._bounded("stretches of events", _NOT_FOUND, hold_s)
        yield self._bounded("events of stretches", _NOT_THERE, hold_s)

    def _schema_problems(self) -> list[str]:
        """Where the tables and indexes are not those that the migrations make."""
        model = apsw.Connection(":memory:")
        try:
            for migration in MIGRATIONS:
                for statement in migration.up:
                    model.execute(statement)
            expected = _objects(model)
        finally:
            model.close()
        with _reading():
            found = _objects(self._db)
        found.pop("migrations", None)
        problems = [f"{name} is missing" for name in expected.keys() - found.keys()]
        problems += [f"{name} is there, expected nothing of that name" for name in found.keys() - expected.keys()]
        problems += [
            f"{name} is not as its migration made it"
            for name in expected.keys() & found.keys()
            if expected[name] != found[name]
        ]
        return sorted(problems)

    def _bounded(self, name: str, sql: str, hold_s: float | None) -> Structure:
        started = self._clock.monotonic()

        def too_long() -> bool:
            return hold_s is not None and self._clock.monotonic() - started > hold_s

        self._db.set_progress_handler(too_long, _PROGRESS_STEPS)
        try:
            rows = self._all(sql)
        except apsw.InterruptError:
            return Structure(name, unfinished=f"it would hold the file longer than {hold_s:g} s")
        except Damaged as damage:
            return Structure(name, [str(damage)])
        finally:
            self._db.set_progress_handler(None)
        if sql == _NOT_FOUND:
            return Structure(name, [_lost_events(*row) for row in rows])
        if sql == _NOT_THERE:
            return Structure(name, [_empty_stretch(*row) for row in rows])
        if "foreign_key_check" in sql:
            return Structure(name, [self._dangling(*row) for row in rows])
        return Structure(name, [line for row in rows for line in str(row[0]).split("\n") if line != "ok"])

    def _dangling(self, table: str, rowid: int | None, parent: str, number: int) -> str:
        column = next(row[3] for row in self._all(f"PRAGMA foreign_key_list({table})") if row[0] == number)
        who = ""
        if rowid is not None:
            key, value = self._all(f"SELECT {KEYS[table][0]}, {column} FROM {table} WHERE rowid = ?", (rowid,))[0]  # type: ignore[index]
            who = f" {key}: {column} {value!r}"
        return f"{table}{who or ': a ' + column} is in no row of {parent}"

    # --- events -----------------------------------------------------------------------------------------

    def extent(self) -> Extent:
        pos, thread_no = self._all("SELECT (SELECT max(pos) FROM events), (SELECT max(thread_no) FROM threads)")[0]
        return Extent(pos or 0, thread_no or 0)

    def places(self, after: int, limit: int) -> list[PlaceRow]:
        return self._all(
            "SELECT pos, CAST(time AS INTEGER) FROM events WHERE pos > ? ORDER BY pos LIMIT ?", (after, limit)
        )

    def at(self, pos: int) -> tuple[str | None, int]:
        sql = "SELECT thread_id, seq FROM events LEFT JOIN threads USING (thread_no) WHERE pos = ?"
        found: tuple[str | None, int] = self._all(sql, (pos,))[0]
        return found

    def threads(self, after: int, limit: int) -> list[AuditedThread]:
        sql = "SELECT thread_no, thread_id, user_id FROM threads WHERE thread_no > ? ORDER BY thread_no LIMIT ?"
        return [AuditedThread(*row) for row in self._all(sql, (after, limit))]

    def strays(self, after: int, before: int | None) -> list[int]:
        found: list[int] = []
        while len(found) < STRAYS_MAX:
            rows = self._all(_STRAY, (found[-1] if found else after, before))
            if not rows:
                break
            found.append(rows[0][0])
        return found

    def events(self, thread: AuditedThread, after: int, limit: int) -> tuple[list[EventRow], bool]:
        rows: list[EventRow] = []
        size = 0
        with _reading():
            cursor = self._db.execute(_EVENTS, (thread.thread_no, after, limit, thread.user_id))
            try:
                while chunk := list(islice(cursor, _CHUNK_ROWS)):
                    rows += chunk
                    size += sum([len(row[8]) for row in chunk])
                    if size > PAGE_BYTES_MAX:
                        return rows, False
            finally:
                cursor.close()
        return rows, len(rows) < limit

    # --- what is derived from them ----------------------------------------------------------------------

    def run_id(self, run_no: int) -> str | None:
        rows = self._all("SELECT run_id FROM runs WHERE run_no = ?", (run_no,))
        return rows[0][0] if rows else None

    def row(self, table: Table, key: Sequence[str], columns: Sequence[str]) -> Sequence[Column] | None:
        where = " AND ".join(f"{name} = ?" for name in KEYS[table])
        rows = self._all(f"SELECT {', '.join(columns)} FROM {table} WHERE {where}", tuple(key))
        return rows[0] if rows else None

    def counts(self, thread: AuditedThread) -> dict[Table, int]:
        counted = ", ".join(f"(SELECT count(*) FROM {table} WHERE thread_id = ?1)" for table in _COUNTED)
        found = self._all(f"SELECT {counted}", (thread.thread_id,))[0]
        return dict(zip(_COUNTED, found, strict=True))

    def state_keys(self, thread: AuditedThread) -> list[str]:
        return [row[0] for row in self._all("SELECT key FROM state WHERE thread_id = ?", (thread.thread_id,))]

    def unexplained(self, table: Table, thread: AuditedThread) -> Iterator[tuple[str, int]]:
        after: int | str = -1  # below any text, too
        while rows := self._all(_UNEXPLAINED[table], (thread.thread_no, thread.thread_id, after)):
            for key, seq, after, made in rows:  # noqa: B007 - the last one is where the next page begins
                if not made:
                    yield key, seq

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with _reading(), transaction(self._db, "DEFERRED"):
            yield

    def _all(self, sql: str, bindings: tuple[object, ...] = ()) -> list[Any]:
        with _reading():
            return self._db.execute(sql, bindings).fetchall()


@contextmanager
def _reading() -> Iterator[None]:
    try:
        with failing():
            yield
    except apsw.SQLError as error:
        raise Damaged(str(error)) from error  # a table or an index is gone
    except StoreFailed as failure:
        if isinstance(failure.__cause__, apsw.CorruptError | apsw.NotADBError):
            raise Damaged(str(failure.__cause__)) from failure
        raise


def _lost_events(thread_no: int, first_seq: object, stretch: int) -> str:
    where = f"events of thread_no {thread_no} from seq {first_seq!r} on stand in stretch {stretch}"
    return f"{where}, expected a row of stretches that says so: no read finds them"


def _empty_stretch(thread_no: int, first_seq: int, stretch: int) -> str:
    return (
        f"stretches says that thread_no {thread_no} has seq {first_seq} in stretch {stretch}, expected that event there"
    )


def _objects(connection: apsw.Connection) -> dict[str, str]:
    """Tables and indexes by name, as they were written down."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'")
    return dict(rows)


@contextmanager
def audit(store_url: str, clock: Clock) -> Iterator[SqliteAudit]:
    """Opens a store to be checked; raises NotFound, StoreTooNew, StoreOutdated, BadConfig or StoreFailed."""
    url = SqliteUrl.parse(store_url)
    if not url.path.exists():
        raise NotFound(f"There is no store at {url.path}.", remedy="Name another with --store or RUNSTONE_STORE.")
    connection = connect(url, write=False)
    try:
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)  # or the last to close would write
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        yield SqliteAudit(url, connection, clock)
    finally:
        connection.close()
