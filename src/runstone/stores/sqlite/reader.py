"""Reads of a SQLite store: bounded pages, each in a transaction that is over before anyone waits.

A page of events comes as one JSON value from one statement: row by row, each step would fight a busy event loop
for the interpreter lock.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import apsw
import msgspec

from runstone import events as e
from runstone.clock import to_datetime, to_rfc3339
from runstone.errors import Invalid, NotFound
from runstone.events import Event
from runstone.limits import LIST_BYTES_MAX, PAGE_BYTES_MAX, PREVIEW_CHARS_MAX
from runstone.messages import text_of
from runstone.resources import Action, Approval, Listing, Message, Preview, Run, Thread, UsageSum
from runstone.store import (
    Record,
    RecordedAction,
    RecordedApproval,
    RecordedChild,
    RecordedStep,
    RunRow,
    Span,
    ToStop,
    ran_us,
)
from runstone.stores.sqlite.connection import failing, transaction
from runstone.stores.sqlite.stretches import below, head, since
from runstone.stores.sqlite.writer import RUN_COLUMNS, USAGE_COLUMNS, fold_message, run_row
from runstone.values import Json, decode
from runstone.views import Changed, FeedPage, ListQuery, Page, ThreadRef

_R = TypeVar("_R")
_S = TypeVar("_S", bound=msgspec.Struct)
BusyStatus: TypeAlias = Literal["running", "waiting", "queued"]

_PAGE = """
SELECT json_group_array(json_array(seq, run_id, attempt, type, time, private, CAST(payload AS TEXT)) ORDER BY seq)
FROM (
    SELECT *, sum(length(payload)) OVER (ORDER BY first_seq {direction}, seq {direction}) - length(payload)
        AS bytes_before
    FROM (
        SELECT s.first_seq, e.seq, (SELECT run_id FROM runs WHERE runs.run_no = e.run_no) AS run_id,
            e.attempt, e.type, e.time, e.private, e.payload
        {events} AND e.user_id = ?2
        ORDER BY s.first_seq {direction}, e.seq {direction} LIMIT ?4
    )
) WHERE bytes_before < ?5
"""
_THREAD_NO = "(SELECT thread_no FROM threads WHERE thread_id = ?1 AND user_id = ?2)"
_AFTER = _PAGE.format(direction="ASC", events=since(_THREAD_NO, "?3 + 1"))
_BEFORE = _PAGE.format(direction="DESC", events=below(_THREAD_NO, "?3"))

_rows_of = msgspec.json.Decoder(list[tuple[int, str | None, int | None, str, int, int, str]])

_THREAD = f"""
SELECT thread_id, key, title, metadata, created_at, updated_at,
    coalesce({head("threads.thread_no")}, 0) AS head,
    (SELECT group_concat(DISTINCT status) FROM runs
        WHERE runs.thread_id = threads.thread_id AND ended_at IS NULL AND parent_run_id IS NULL) AS busy
FROM threads
"""
_RUN = """
SELECT run_id, thread_id, key, agent, status, attempt, input, output, error, input_tokens, output_tokens,
    cached_input_tokens, reasoning_tokens, cost, metadata, parent_run_id, root_run_id, created_at, started_at, ended_at,
    first_seq, last_seq, updated_at
FROM runs
"""
_MESSAGE = """
SELECT message_id, thread_id, run_id, user_id, role, status, reason, parts, metadata, first_seq, last_seq, created_at
FROM messages
"""
_ACTION = """
SELECT action_id, thread_id, run_id, tool, executor, input, status, output, error, private, started_at, ended_at, seq
FROM actions
"""
_APPROVAL = """
SELECT approval_id, thread_id, run_id, action_id, kind, prompt, input, input_hash, schema, status, value, by, comment,
    created_at, expires_at, resolved_at
FROM approvals
"""
_STEPPED = "SELECT key, output, inner FROM steps WHERE run_id = ? ORDER BY seq"
_ACTED = """
SELECT action_id, tool, executor, input, key, beside, status, output, error, retry_of, inner
FROM actions WHERE run_id = ? ORDER BY seq
"""
_APPROVED = """
SELECT approval_id, run_id, action_id, kind, prompt, input, key, status, value, by, comment, expires_at
FROM approvals WHERE {where}
"""
_CALLED = """
SELECT run_id, agent, input, key, status, output, error FROM runs WHERE parent_run_id = ? ORDER BY run_no
"""
_OF_RUN = f"""
{
    since(
        "(SELECT thread_no FROM runs JOIN threads USING (thread_id) WHERE run_id = ?1)",
        "(SELECT first_seq FROM runs WHERE run_id = ?1)",
    )
} AND e.run_no = (SELECT run_no FROM runs WHERE run_id = ?1) AND e.attempt NOT NULL
"""
_FAMILY = """
WITH RECURSIVE family (run_id) AS (
    SELECT run_id FROM runs WHERE run_id = ? AND user_id = ?
    UNION ALL SELECT runs.run_id FROM runs JOIN family ON runs.parent_run_id = family.run_id
) SELECT run_id FROM family
"""


class Reader:
    """Confined to one thread at a time; every call may raise StoreFailed."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._db = connection

    def close(self) -> None:
        self._db.close()

    # --- events -----------------------------------------------------------------------------------------

    def events(self, thread: ThreadRef, after: int, limit: int, bytes_max: int) -> Page:
        found = self._page(_AFTER, thread, after, limit, bytes_max)
        return Page(found, found[-1].seq if found else after)

    def events_before(self, thread: ThreadRef, before: int, limit: int, bytes_max: int) -> Page:
        found = self._page(_BEFORE, thread, before, limit, bytes_max)
        return Page(found, found[-1].seq if found else max(before - 1, 0))

    def heads(self, threads: Sequence[ThreadRef]) -> list[int]:
        with failing():
            return [self._head(thread.user_id, thread.thread_id) for thread in threads]

    def _page(self, sql: str, thread: ThreadRef, edge: int, limit: int, bytes_max: int) -> list[Event]:
        with failing():
            text = self._db.execute(sql, (thread.thread_id, thread.user_id, edge, limit, bytes_max)).get
        heads: dict[tuple[str | None, int | None], bytes] = {}
        times: dict[int, bytes] = {}  # a commit has one
        found = []
        for seq, run_id, attempt, kind, time_us, private, payload in _rows_of.decode(text):
            head = heads.get((run_id, attempt))
            if head is None:
                head = heads[run_id, attempt] = e.envelope_head(thread.thread_id, run_id, attempt, thread.user_id)
            shown = payload.encode()
            if private:
                shown = e.redacted(shown)
            time = times.get(time_us) or times.setdefault(time_us, to_rfc3339(time_us).encode())
            found.append(Event(seq, run_id, kind, e.envelope(seq, head, kind, time, shown)))
        return found

    def _head(self, user_id: str, thread_id: str) -> int:
        found = self._db.execute(
            f"SELECT {head('threads.thread_no')} FROM threads WHERE thread_id = ? AND user_id = ?",
            (thread_id, user_id),
        ).get
        return int(found or 0)

    # --- rows -------------------------------------------------------------------------------------------

    def thread(self, user_id: str, thread_id: str) -> Thread | None:
        with self._snapshot():
            return self._thread_now(user_id, thread_id)

    def run(self, user_id: str, run_id: str) -> Run | None:
        with self._snapshot():
            sql = f"{_RUN} WHERE run_id = ? AND user_id = ? AND {_KEPT.format(table='runs')}"
            found = self._records(sql, (run_id, user_id))
            return _run(found[0]) if found else None

    def run_row(self, run_id: str) -> RunRow | None:
        with failing():
            row = self._db.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE run_id = ?", (run_id,)).fetchone()
            return None if row is None else run_row(row)

    def to_stop(self, run_ids: Sequence[str]) -> dict[str, ToStop]:
        with failing():
            rows: list[Any] = self._db.execute(
                "SELECT run_id, iif(ended_at IS NULL, 'cancel', 'ended') FROM json_each(?) JOIN runs ON run_id = value "
                "WHERE ended_at IS NOT NULL OR cancel_deadline IS NOT NULL",
                (json.dumps(list(run_ids)),),
            ).fetchall()
            return dict(rows)

    def record(self, run_id: str) -> Record:
        with self._snapshot():
            approvals = self._recorded(RecordedApproval, _APPROVED.format(where="run_id = ? ORDER BY seq"), run_id)
            return Record(
                steps=self._recorded(RecordedStep, _STEPPED, run_id),
                actions=self._recorded(RecordedAction, _ACTED, run_id),
                approvals=approvals,
                children=self._recorded(RecordedChild, _CALLED, run_id),
                ran_us=ran_us(*self._spans(run_id)),
            )

    def _recorded(self, kind: type[_S], sql: str, id: str) -> list[_S]:
        """Rows whose columns are the fields of a record; bytes are encoded JSON."""
        rows = self._db.execute(sql, (id,))
        return [kind(*[msgspec.Raw(value) if isinstance(value, bytes) else value for value in row]) for row in rows]

    def _spans(self, run_id: str) -> tuple[list[Span], list[Span]]:
        """From when to when each attempt gave signs of life, and from when to when the run waited for people."""
        attempts: list[Any] = self._db.execute(
            f"SELECT min(e.time), max(e.time) {_OF_RUN} GROUP BY e.attempt",
            (run_id,),
        ).fetchall()
        waits: list[Any] = self._db.execute(
            "SELECT created_at, resolved_at FROM approvals WHERE run_id = ? AND resolved_at NOT NULL", (run_id,)
        ).fetchall()
        return attempts, waits

    def resolved(self, approval_ids: Sequence[str]) -> list[RecordedApproval]:
        where = "approval_id IN (SELECT value FROM json_each(?)) AND status <> 'open'"
        with failing():
            return self._recorded(RecordedApproval, _APPROVED.format(where=where), json.dumps(list(approval_ids)))

    def beats(self) -> dict[str, int]:
        with failing():
            rows: list[Any] = self._db.execute("SELECT worker_id, beat FROM workers").fetchall()
            return dict(rows)

    def threads(self, user_id: str, query: ListQuery) -> Listing[Thread]:
        where = _Where("user_id = ?", user_id).plus("deleted_at IS NULL")
        with self._snapshot():
            page = self._listing(
                _THREAD, where, query, ("updated_at", "thread_id"), lambda row: self._thread(user_id, row)
            )
            # Later pages are of later moments: what changed in between would be missed after their heads.
            return page if query.cursor else page.model_copy(update={"feed_head": self._feed_head(user_id)})

    def feed(self, user_id: str, after: int, limit: int, deleted_after: int) -> FeedPage:
        with self._snapshot():
            rows: list[Any] = self._db.execute(
                "SELECT activity_pos, thread_id, deleted_at IS NOT NULL FROM threads "
                "WHERE user_id = ? AND activity_pos > ? ORDER BY activity_pos LIMIT ?",
                (user_id, after, limit),
            ).fetchall()
            items: list[Changed] = []
            last, size = after, 0
            for pos, thread_id, deleted in rows:
                if size > PAGE_BYTES_MAX:
                    break
                last = pos
                if not deleted:
                    thread = self._thread_now(user_id, thread_id)
                    assert thread is not None, "it is there in this snapshot"
                    size += len(json.dumps(thread.metadata))
                    items.append(Changed(pos, thread_id, thread))
                elif pos > deleted_after:
                    items.append(Changed(pos, thread_id, None))
            return FeedPage(items, last, self._feed_head(user_id))

    def feed_heads(self, user_ids: Sequence[str]) -> list[int]:
        with failing():
            return [self._feed_head(user_id) for user_id in user_ids]

    def runs(self, user_id: str, query: ListQuery) -> Listing[Run]:
        where = _Where("user_id = ?", user_id).plus(_KEPT.format(table="runs"))
        for name in ("status", "agent", "thread_id"):
            where.equal(name, getattr(query, name))
        with self._snapshot():
            return self._listing(_RUN, where, query, ("updated_at", "run_id"), _run)

    def messages(self, user_id: str, query: ListQuery) -> Listing[Message]:
        where = self._under_thread(user_id, query, "messages")
        where.equal("role", query.role)
        if query.before_seq is not None:
            where.plus("first_seq < ?", query.before_seq)
        where.equal("status", query.status)
        if not query.superseded:
            where.plus("status <> 'superseded'")
        with self._snapshot():
            return self._under_head(
                user_id,
                query,
                lambda: self._listing(_MESSAGE, where, query, ("first_seq", "message_id"), self._message),
            )

    def message(self, user_id: str, message_id: str) -> Message | None:
        with self._snapshot():
            found = self._records(f"{_MESSAGE} WHERE message_id = ? AND user_id = ?", (message_id, user_id))
            return self._message(found[0]) if found else None

    def actions(self, user_id: str, query: ListQuery) -> Listing[Action]:
        where = self._under_thread(user_id, query, "actions")
        where.equal("status", query.status)
        if query.before_seq is not None:
            where.plus("seq < ?", query.before_seq)
        build = partial(_action, private=query.private)
        with self._snapshot():
            return self._under_head(
                user_id, query, lambda: self._listing(_ACTION, where, query, ("seq", "action_id"), build)
            )

    def approvals(self, user_id: str, query: ListQuery) -> Listing[Approval]:
        where = _Where("user_id = ?", user_id).plus(_KEPT.format(table="approvals"))
        where.equal("status", query.status)
        where.equal("thread_id", query.thread_id)
        if query.run_id is not None:
            where.plus(f"run_id IN ({_FAMILY})", query.run_id, user_id)
        with self._snapshot():
            return self._listing(_APPROVAL, where, query, ("created_at", "approval_id"), _approval)

    def approval(self, user_id: str, approval_id: str) -> Approval | None:
        where = f"approval_id = ? AND user_id = ? AND {_KEPT.format(table='approvals')}"
        with self._snapshot():
            found = self._records(f"{_APPROVAL} WHERE {where}", (approval_id, user_id))
            return _approval(found[0]) if found else None

    def state(self, user_id: str, thread_id: str, private: bool) -> tuple[dict[str, Json], int]:
        with self._snapshot():
            self._must_exist(user_id, thread_id)
            rows = self._db.execute(
                "SELECT key, value FROM state WHERE thread_id = ? AND user_id = ? AND (public OR ?) ORDER BY key",
                (thread_id, user_id, private),
            )
            return {key: decode(value) for key, value in rows}, self._head(user_id, thread_id)

    def family(self, user_id: str, run_id: str) -> frozenset[str]:
        with failing():
            return frozenset(row[0] for row in self._db.execute(_FAMILY, (run_id, user_id)))

    def statuses(self) -> dict[str, int]:
        with failing():
            rows: list[Any] = self._db.execute(
                "SELECT status, count(*) FROM runs WHERE ended_at IS NULL GROUP BY status"
            ).fetchall()
            return dict(rows)

    # --- how ----------------------------------------------------------------------------------------------

    def _snapshot(self) -> Any:
        return _Snapshot(self._db)

    def _records(self, sql: str, bindings: Sequence[object]) -> list[dict[str, Any]]:
        return list(self._iterate(sql, bindings))

    def _iterate(self, sql: str, bindings: Sequence[object]) -> Iterator[dict[str, Any]]:
        cursor = self._db.execute(sql, tuple(bindings))
        for row in cursor:
            yield {column[0]: value for column, value in zip(cursor.description, row, strict=True)}

    def _must_exist(self, user_id: str, thread_id: str) -> None:
        sql = "SELECT 1 FROM threads WHERE thread_id = ? AND user_id = ? AND deleted_at IS NULL"
        if self._db.execute(sql, (thread_id, user_id)).fetchone() is None:
            raise NotFound(f"There is no thread {thread_id}.")

    def _under_thread(self, user_id: str, query: ListQuery, table: str) -> _Where:
        run_id = f"{table}.run_id"  # a bare one would be that of the inner table in the look-up of the parent
        where = _Where("thread_id = ?", query.thread_id).plus("user_id = ?", user_id)
        if query.run_id is not None:
            members = self.family(user_id, query.run_id) if query.children else {query.run_id}
            where.plus(f"{run_id} IN ({', '.join('?' * len(members))})", *members)
        elif not query.children:
            parent = f"(SELECT parent_run_id FROM runs AS r WHERE r.run_id = {run_id})"
            where.plus(f"({run_id} IS NULL OR {parent} IS NULL)")
        return where

    def _under_head(self, user_id: str, query: ListQuery, read: Callable[[], Listing[_R]]) -> Listing[_R]:
        assert query.thread_id is not None
        self._must_exist(user_id, query.thread_id)
        return read().model_copy(update={"head": self._head(user_id, query.thread_id)})

    def _listing(
        self,
        select: str,
        where: _Where,
        query: ListQuery,
        order: tuple[str, str],
        build: Callable[[dict[str, Any]], _R],
    ) -> Listing[_R]:
        way, beyond = ("DESC", "<") if query.descending else ("ASC", ">")
        if query.cursor is not None:
            where.plus(f"({order[0]}, {order[1]}) {beyond} (?, ?)", *_cursor_values(query.cursor))
        sql = f"{select} WHERE {where.sql} ORDER BY {order[0]} {way}, {order[1]} {way} LIMIT ?"
        items: list[_R] = []
        size, last = 0, (0, "")
        for row in self._iterate(sql, (*where.bindings, query.limit + 1)):
            if len(items) == query.limit or size > LIST_BYTES_MAX:
                return Listing(items=items, next_cursor=_cursor(*last))
            last = row[order[0]], row[order[1]]  # before `build`, which takes the row apart
            size += sum(len(value) for value in row.values() if isinstance(value, bytes | str))
            items.append(build(row))
            if isinstance(items[-1], Message) and items[-1].status == "streaming":
                size += len(items[-1].content)  # the row of one that streams holds none of it
        return Listing(items=items, next_cursor=None)

    def _feed_head(self, user_id: str) -> int:
        sql = "SELECT max(activity_pos) FROM threads WHERE user_id = ?"
        return int(self._db.execute(sql, (user_id,)).get or 0)

    def _thread_now(self, user_id: str, thread_id: str) -> Thread | None:
        sql = f"{_THREAD} WHERE thread_id = ? AND user_id = ? AND deleted_at IS NULL"
        found = self._records(sql, (thread_id, user_id))
        return self._thread(user_id, found[0]) if found else None

    def _thread(self, user_id: str, row: dict[str, Any]) -> Thread:
        busy = (row.pop("busy") or "").split(",")
        order: tuple[BusyStatus, ...] = ("running", "waiting", "queued")
        status: BusyStatus | Literal["idle"] = next((status for status in order if status in busy), "idle")
        return Thread(
            **_plain(row, "metadata"),
            status=status,
            last_message=self._preview(user_id, row["thread_id"]),
        )

    def _preview(self, user_id: str, thread_id: str) -> Preview | None:
        where = (
            "thread_id = ? AND user_id = ? AND status <> 'superseded' "
            "AND (SELECT parent_run_id FROM runs WHERE runs.run_id = messages.run_id) IS NULL "
            "ORDER BY first_seq DESC LIMIT 1"
        )
        found = self._records(f"{_MESSAGE} WHERE {where}", (thread_id, user_id))
        if not found:
            return None
        message = self._message(found[0], delta_limit=PREVIEW_CHARS_MAX)
        return Preview(
            message_id=message.message_id,
            role=message.role,
            status=message.status,
            content=message.content[:PREVIEW_CHARS_MAX],
            created_at=message.created_at,
        )

    def _message(self, row: dict[str, Any], delta_limit: int = -1) -> Message:
        parts = row.pop("parts")
        user_id = row.pop("user_id")
        if parts is not None:
            decoded = json.loads(parts)
        else:
            ref = ThreadRef(row["thread_id"], user_id)
            fold = fold_message(self._db, ref, row["run_id"], row["message_id"], row["first_seq"], delta_limit)
            decoded = fold.parts()
        if row["last_seq"] is None:
            row["last_seq"] = self._head(user_id, row["thread_id"])
        return Message(**_plain(row, "metadata"), parts=decoded, content=text_of(decoded))


class _Snapshot:
    """A read transaction: everything read in it is of one moment."""

    def __init__(self, db: apsw.Connection) -> None:
        self._stack = (failing(), transaction(db, "DEFERRED"))

    def __enter__(self) -> None:
        for context in self._stack:
            context.__enter__()

    def __exit__(self, *error: Any) -> None:
        for context in reversed(self._stack):
            context.__exit__(*error)


class _Where:
    """Conditions and their values, growing together."""

    def __init__(self, sql: str, *bindings: object) -> None:
        self.sql, self.bindings = sql, list(bindings)

    def plus(self, sql: str, *bindings: object) -> _Where:
        self.sql += f" AND {sql}"
        self.bindings += bindings
        return self

    def equal(self, column: str, value: object) -> None:
        if value is not None:
            self.plus(f"{column} = ?", value)


_KEPT = "(SELECT deleted_at FROM threads AS t WHERE t.thread_id = {table}.thread_id) IS NULL"


def _plain(row: dict[str, Any], *json_columns: str) -> dict[str, Any]:
    """Times as datetimes, JSON columns as values."""
    return {
        name: json.loads(value)
        if name in json_columns and value is not None
        else to_datetime(value)
        if name.endswith("_at") and value is not None
        else value
        for name, value in row.items()
    }


def _run(row: dict[str, Any]) -> Run:
    usage = {name: row.pop(name) for name in USAGE_COLUMNS}
    row.pop("updated_at")
    return Run(
        **_plain(row, "input", "output", "error", "metadata"),
        usage=None if usage["input_tokens"] is None else UsageSum(**usage),
    )


def _approval(row: dict[str, Any]) -> Approval:
    return Approval(**_plain(row, "input", "schema", "value"))


def _action(row: dict[str, Any], *, private: bool) -> Action:
    """The action; a private one only in outline, as its events show it, unless the thread's own agent asks."""
    if row.pop("private") and not private:
        row |= {"tool": "private", "input": None, "output": None, "error": None}
    return Action(**_plain(row, "input", "output", "error"))


def _cursor(*values: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")


def _cursor_values(cursor: str) -> tuple[int, str]:
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        value = None
    match value:
        case [int(number), str(name)] if abs(number) < 2**63 and name.isascii():  # as all ids are
            return number, name
    raise Invalid.at("cursor", "not a cursor of this list")
