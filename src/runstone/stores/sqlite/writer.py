"""The one writer of a SQLite file: a batch of entries becomes one transaction.

It lives in a thread of its own beside a busy event loop, where every statement costs a fight for the interpreter
lock; so events go in by the dozen per statement, and what is known of a run is kept in memory: nobody else writes.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Any

import apsw
import msgspec
import structlog
from msgspec import Raw

from runstone import events as e
from runstone import values
from runstone.clock import Clock, to_rfc3339
from runstone.errors import RunstoneError, StaleAttempt, StoreFailed
from runstone.events import Draft, Event
from runstone.failpoints import hit
from runstone.messages import MessageFold
from runstone.projection import KEYS, WITHOUT_ROWS, Change, Place, changes
from runstone.states import TERMINAL_EVENTS
from runstone.store import (
    Append,
    Command,
    Committed,
    Decision,
    Entry,
    Facts,
    KeyRow,
    Need,
    OpenAction,
    OpenMessage,
    RunRow,
    Unfinished,
)
from runstone.stores.sqlite.connection import failing, transaction
from runstone.views import ThreadRef

logger = structlog.get_logger(__name__)

_EVENT_COLUMNS = "pos, thread_no, seq, run_no, attempt, user_id, type, time, private, payload"
_EVENT_WIDTH = 10
_ROWS_A_STATEMENT = (512, 64, 8, 1)  # each statement is one fight for the interpreter lock
_INSERT_EVENTS = {
    rows: f"INSERT INTO events ({_EVENT_COLUMNS}) VALUES "
    + ", ".join(["(" + ", ".join("?" * _EVENT_WIDTH) + ")"] * rows)
    for rows in _ROWS_A_STATEMENT
}
_KNOWN_MAX = 20_000  # threads and runs remembered; a forgotten one costs a look-up

USAGE_COLUMNS = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost")
RUN_COLUMNS = (
    "run_id, thread_id, user_id, agent, status, attempt, input, metadata, message_id, parent_run_id, "
    "root_run_id, on_busy, on_crash, max_attempts, timeout_s, cancel_by, cancel_reason, cancel_deadline, first_seq, "
    + ", ".join(USAGE_COLUMNS)
)


class _Thread(msgspec.Struct):
    no: int
    head: int


class _Run(msgspec.Struct):
    no: int
    thread: ThreadRef
    attempt: int
    ended: bool
    envelope_head: bytes


class Writer:
    """Confined to one thread; every call may raise StoreFailed."""

    def __init__(self, connection: apsw.Connection, clock: Clock) -> None:
        self._db = connection
        self._clock = clock
        self._threads: OrderedDict[str, _Thread] = OrderedDict()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        newest: Any = connection.execute("SELECT pos, time FROM events ORDER BY pos DESC LIMIT 1").fetchone()
        self._pos: int = newest[0] if newest else 0
        self._time_us: int = newest[1] if newest else 0

    def commit(self, batch: Sequence[Entry]) -> Committed:
        try:
            return self._commit(batch)
        except StoreFailed:
            raise
        except Exception:  # noqa: BLE001 - a bug in one entry must not hurt the others: they go in one by one
            return self._commit_one_by_one(batch)

    def _commit(self, batch: Sequence[Entry]) -> Committed:
        started = time.perf_counter()
        pos, time_us = self._pos, self._time_us
        self._time_us = max(self._clock.now_us(), time_us)
        work = _Batch(self)
        try:
            with failing(), transaction(self._db, "IMMEDIATE"):
                outcomes = [work.carry_out(entry) for entry in batch]
                work.flush()
                hit("before_commit")
        except BaseException:
            self._pos, self._time_us = pos, time_us
            self._threads.clear()
            self._runs.clear()
            raise
        hit("after_commit")
        self._forget()
        return Committed(outcomes, work.events, time.perf_counter() - started)

    def _commit_one_by_one(self, batch: Sequence[Entry]) -> Committed:
        outcomes: list[Any] = []
        events: dict[ThreadRef, list[Event]] = {}
        seconds = 0.0
        for entry in batch:
            try:
                done = self._commit([entry])
            except StoreFailed:
                raise
            except Exception as error:
                logger.exception("an entry contradicts the store", entry=type(entry).__name__)
                outcomes.append(RunstoneError(f"The store refused an entry: {type(error).__name__}"))
                continue
            outcomes.extend(done.outcomes)
            seconds += done.seconds
            for thread, new in done.events.items():
                events.setdefault(thread, []).extend(new)
        return Committed(outcomes, events, seconds)

    def _forget(self) -> None:
        for known in (self._threads, self._runs):
            while len(known) > _KNOWN_MAX:
                known.popitem(last=False)

    # --- what is known -----------------------------------------------------------------------------

    def thread(self, thread_id: str) -> _Thread:
        known = self._threads.get(thread_id)
        if known is None:
            row: Any = self._db.execute(
                "SELECT thread_no, "
                "coalesce((SELECT max(seq) FROM events AS e WHERE e.thread_no = threads.thread_no), 0) "
                "FROM threads WHERE thread_id = ?",
                (thread_id,),
            ).fetchone()
            known = self._threads[thread_id] = _Thread(*row)
        else:
            self._threads.move_to_end(thread_id)
        return known

    def run(self, run_id: str) -> _Run:
        known = self._runs.get(run_id)
        if known is None:
            row: Any = self._db.execute(
                "SELECT run_no, thread_id, user_id, attempt, ended_at IS NOT NULL FROM runs WHERE run_id = ?",
                (run_id,),
            ).fetchone()
            no, thread_id, user_id, attempt, ended = row
            head = e.envelope_head(thread_id, run_id, attempt or None, user_id)
            known = self._runs[run_id] = _Run(no, ThreadRef(thread_id, user_id), attempt, bool(ended), head)
        else:
            self._runs.move_to_end(run_id)
        return known

    # --- facts ---------------------------------------------------------------------------------------

    def facts(self, need: Need) -> Facts:
        run = None if need.run_id is None else self._run_row(need.user_id, need.run_id)
        thread_id = run.thread_id if run is not None else need.thread_id
        thread = self._thread_ref(need, thread_id)
        return Facts(
            now_us=self._time_us,
            thread=thread,
            run=None if run is None or thread is None else self._unfinished(run, need.open_items and not run.ended),
            thread_runs=() if thread is None or not need.thread_runs else self._thread_runs(thread, need.open_items),
            key=None if need.key is None else self._key(need),
            claimable=() if need.claim is None else self._claimable(*need.claim),
            orphans=self._orphans(need.orphans, need.open_items) if need.orphans else (),
        )

    def _thread_ref(self, need: Need, thread_id: str | None) -> ThreadRef | None:
        if thread_id is not None:
            where, values_ = "thread_id = ?", [thread_id]
        elif need.thread_key is not None:
            where, values_ = "key = ?", [need.thread_key]
        else:
            return None
        if need.user_id is not None:
            where += " AND user_id = ?"
            values_.append(need.user_id)
        row = self._db.execute(
            f"SELECT thread_id, user_id FROM threads WHERE {where} AND deleted_at IS NULL", values_
        ).fetchone()
        return None if row is None else ThreadRef(*row)

    def _run_row(self, user_id: str | None, run_id: str) -> RunRow | None:
        rows = self._run_rows("run_id = ?1 AND (?2 IS NULL OR user_id = ?2)", (run_id, user_id))
        return rows[0] if rows else None

    def _run_rows(self, where: str, bindings: tuple[object, ...]) -> list[RunRow]:
        found = self._db.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE {where}", bindings)
        return [run_row(row) for row in found]

    def _thread_runs(self, thread: ThreadRef, open_items: bool) -> tuple[Unfinished, ...]:
        rows = self._run_rows(
            "thread_id = ? AND user_id = ? AND ended_at IS NULL ORDER BY run_no",
            (thread.thread_id, thread.user_id),
        )
        return tuple(self._unfinished(row, open_items) for row in rows)

    def _unfinished(self, run: RunRow, open_items: bool) -> Unfinished:
        if not open_items:
            return Unfinished(run)
        messages: list[Any] = self._db.execute(
            "SELECT message_id, first_seq FROM messages WHERE run_id = ? AND status = 'streaming' ORDER BY first_seq",
            (run.run_id,),
        ).fetchall()
        actions: list[Any] = self._db.execute(
            "SELECT action_id, started_at, private FROM actions WHERE run_id = ? AND status = 'pending' ORDER BY seq",
            (run.run_id,),
        ).fetchall()
        return Unfinished(
            run,
            tuple(self._open_message(run, *row) for row in messages),
            tuple(OpenAction(action_id, started_at, bool(private)) for action_id, started_at, private in actions),
        )

    def _open_message(self, run: RunRow, message_id: str, first_seq: int) -> OpenMessage:
        fold = fold_message(self._db, run.thread, run.run_id, message_id, first_seq)
        return OpenMessage(message_id, fold.encoded(), fold.length)

    def _key(self, need: Need) -> KeyRow | None:
        assert need.key is not None
        row = self._db.execute(
            "SELECT user_id, kind, key, digest, made, thread_id FROM keys WHERE user_id = ? AND kind = ? AND key = ?",
            (need.user_id, *need.key),
        ).fetchone()
        return None if row is None else KeyRow(*row)

    def _claimable(self, agents: frozenset[str], limit: int) -> tuple[RunRow, ...]:
        marks = ", ".join("?" * len(agents))
        rows = self._run_rows(
            f"status = 'queued' AND agent IN ({marks}) AND parent_run_id IS NULL AND NOT EXISTS ("
            "SELECT 1 FROM runs AS earlier WHERE earlier.thread_id = runs.thread_id AND earlier.run_no < runs.run_no "
            "AND earlier.ended_at IS NULL AND earlier.parent_run_id IS NULL) ORDER BY run_no LIMIT ?",
            (*sorted(agents), limit),
        )
        return tuple(rows)

    def _orphans(self, limit: int, open_items: bool) -> tuple[Unfinished, ...]:
        # who holds the file's lock owns every run under way that has not been claimed since
        rows = self._run_rows("ended_at IS NULL AND status <> 'queued' ORDER BY run_no LIMIT ?", (limit,))
        return tuple(self._unfinished(row, open_items) for row in rows)

    # --- rows ------------------------------------------------------------------------------------------

    def next_pos(self) -> int:
        self._pos += 1
        return self._pos

    @property
    def time_us(self) -> int:
        return self._time_us

    def insert_events(self, rows: list[tuple[object, ...]]) -> None:
        start = 0
        for count in _ROWS_A_STATEMENT:
            while len(rows) - start >= count:
                chunk = rows[start : start + count]
                self._db.execute(_INSERT_EVENTS[count], [value for row in chunk for value in row])
                start += count

    def insert_key(self, row: KeyRow) -> None:
        self._db.execute(
            "INSERT INTO keys (user_id, kind, key, digest, made, thread_id) VALUES (?, ?, ?, ?, ?, ?)",
            (row.user_id, row.kind, row.key, row.digest, row.made, row.thread_id),
        )

    def delete_keys(self, thread_id: str) -> None:
        self._db.execute("DELETE FROM keys WHERE thread_id = ?", (thread_id,))

    def change(self, change: Change) -> None:
        keys = KEYS[change.table]
        where = " AND ".join(f"{name} = ?" for name in keys)
        if change.op == "insert":
            names = (*keys, *change.columns)
            marks = ", ".join("?" * len(names))
            sql = f"INSERT INTO {change.table} ({', '.join(names)}) VALUES ({marks})"
            self._db.execute(sql, (*change.key, *change.columns.values()))
        elif change.op == "delete":
            self._db.execute(f"DELETE FROM {change.table} WHERE {where}", change.key)
        else:
            sets = [f"{name} = ?" for name in change.columns]
            sets += [f"{name} = coalesce({name}, 0) + ?" for name in change.add]
            sql = f"UPDATE {change.table} SET {', '.join(sets)} WHERE {where}"
            self._db.execute(sql, (*change.columns.values(), *change.add.values(), *change.key))
            assert self._db.changes() == 1, f"no {change.table} row {change.key} to update"


class _Batch:
    """One transaction in the making: events gather and go in together."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._rows: list[tuple[object, ...]] = []
        self._time = to_rfc3339(writer.time_us).encode()
        self.events: dict[ThreadRef, list[Event]] = {}

    def carry_out(self, entry: Entry) -> Any | RunstoneError:
        """The entry's result, or its refusal; a refused entry has written nothing."""
        try:
            if isinstance(entry, Append):
                self._append(entry)
                return None
            return self._command(entry)
        except StoreFailed:
            raise
        except RunstoneError as refusal:
            return refusal

    def flush(self) -> None:
        self._writer.insert_events(self._rows)
        self._rows = []

    def _append(self, entry: Append) -> None:
        run = self._writer.run(entry.run_id)
        if run.ended or not run.attempt or run.attempt != entry.attempt:  # before the first attempt nobody owns it
            raise StaleAttempt(f"Attempt {entry.attempt} of {entry.run_id} no longer owns its run.")
        self._add(run.thread, entry.drafts, [draft.payload() for draft in entry.drafts])

    def _command(self, command: Command) -> Any:
        if command.need.open_items:
            self.flush()  # open messages are folded from events, which must be there
        decision: Decision = command.decide(self._writer.facts(command.need))
        payloads = [[draft.payload() for draft in drafts] for _, drafts in decision.appends]
        for (thread, drafts), encoded in zip(decision.appends, payloads, strict=True):
            self._add(thread, drafts, encoded)
        for key in decision.keys:
            self._writer.insert_key(key)
        return decision.result

    def _add(self, ref: ThreadRef, drafts: Sequence[Draft], payloads: Sequence[bytes]) -> None:
        if not drafts:
            return
        seqs = [self._derive(ref, draft) for draft in drafts]
        thread_no = self._writer.thread(ref.thread_id).no
        shown = self.events.setdefault(ref, [])
        for draft, payload, seq in zip(drafts, payloads, seqs, strict=True):
            shown.append(self._event(ref, thread_no, draft, payload, seq))

    def _derive(self, ref: ThreadRef, draft: Draft) -> int:
        """The event's seq, with the rows that follow from it changed."""
        writer = self._writer
        kind = draft.type
        thread = None if kind == "thread_created" else writer.thread(ref.thread_id)
        seq = 1 if thread is None else thread.head + 1
        if type(draft.data) not in WITHOUT_ROWS:
            for change in changes(draft, Place(ref.thread_id, ref.user_id, seq, writer.time_us)):
                writer.change(change)
        (thread or writer.thread(ref.thread_id)).head = seq
        if kind == "thread_deleted":
            writer.delete_keys(ref.thread_id)
        return seq

    def _event(self, ref: ThreadRef, thread_no: int, draft: Draft, payload: bytes, seq: int) -> Event:
        """The event as clients will see it; its row waits for the next flush."""
        writer = self._writer
        kind = draft.type
        if draft.run_id is None:
            run_no, head = None, e.envelope_head(ref.thread_id, None, None, ref.user_id)
        else:
            run = writer.run(draft.run_id)
            self._note(run, draft, kind)
            run_no, head = run.no, self._envelope_head(run, draft)
        row = (
            writer.next_pos(),
            thread_no,
            seq,
            run_no,
            draft.attempt,
            ref.user_id,
            kind,
            writer.time_us,
            draft.private,
            payload,
        )
        self._rows.append(row)
        shown = e.redacted(payload) if draft.private else payload
        return Event(seq, draft.run_id, kind, e.envelope(seq, head, kind, self._time, shown))

    def _note(self, run: _Run, draft: Draft, kind: str) -> None:
        """Keeps what is known of the run true."""
        if kind == "agent_started":
            assert draft.attempt is not None
            run.attempt = draft.attempt
            run.envelope_head = e.envelope_head(run.thread.thread_id, draft.run_id, run.attempt, run.thread.user_id)
        elif kind in TERMINAL_EVENTS:
            run.ended = True

    def _envelope_head(self, run: _Run, draft: Draft) -> bytes:
        if draft.attempt == run.attempt and draft.attempt:
            return run.envelope_head
        return e.envelope_head(run.thread.thread_id, draft.run_id, draft.attempt, run.thread.user_id)


def run_row(row: Iterable[Any]) -> RunRow:
    """The columns of `RUN_COLUMNS` as a record."""
    fields = dict(zip(RUN_COLUMNS.split(", "), row, strict=True))
    usage = {name: fields.pop(name) or 0 for name in USAGE_COLUMNS}
    for name in ("input", "metadata"):
        fields[name] = Raw(fields[name])
    return RunRow(**fields, usage=values.raw(usage))


def fold_message(
    db: apsw.Connection, thread: ThreadRef, run_id: str, message_id: str, first_seq: int, limit: int = -1
) -> MessageFold:
    """A streaming message from its events in the log."""
    rows = db.execute(
        "SELECT type, payload FROM events "
        "WHERE thread_no = (SELECT thread_no FROM threads WHERE thread_id = ?1 AND user_id = ?2) "
        "AND user_id = ?2 AND seq > ?3 AND run_no = (SELECT run_no FROM runs WHERE run_id = ?4) "
        "AND type IN ('message_delta', 'agent_thinking', 'message_part') ORDER BY seq LIMIT ?5",
        (thread.thread_id, thread.user_id, first_seq, run_id, limit),
    )
    found = (e.data_of(kind, payload) for kind, payload in rows)
    return MessageFold(data for data in found if getattr(data, "message_id", None) == message_id)
