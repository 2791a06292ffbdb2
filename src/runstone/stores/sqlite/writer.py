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
from runstone.states import FAMILY_EVENTS, TERMINAL_EVENTS, Member, Status, standing
from runstone.store import (
    Append,
    ApprovalRow,
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
from runstone.stores.sqlite.stretches import head, since, stretch_of
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
_SAID = f"""
SELECT e.type, e.payload
{since("(SELECT thread_no FROM threads WHERE thread_id = ?1 AND user_id = ?2)", "?3 + 1")}
    AND e.user_id = ?2 AND e.run_no = (SELECT run_no FROM runs WHERE run_id = ?4)
    AND e.type IN ('message_delta', 'agent_thinking', 'message_part')
ORDER BY s.first_seq, e.seq LIMIT ?5
"""
_OWNED = """
SELECT run_id FROM runs
WHERE ended_at IS NULL AND status <> 'queued' AND parent_run_id IS NULL AND owner = ? ORDER BY run_no
"""
_SUPERSEDED = """
SELECT message_id FROM messages WHERE run_id = ?1 AND role = 'assistant' AND status <> 'superseded'
    AND message_id NOT IN (SELECT value FROM steps, json_each(CAST(inner AS TEXT)) WHERE run_id = ?1)
ORDER BY first_seq
"""
_KNOWN_MAX = 20_000  # threads and runs remembered; a forgotten one costs a look-up

USAGE_COLUMNS = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost")
RUN_COLUMNS = (
    "run_id, thread_id, user_id, agent, status, attempt, input, metadata, message_id, parent_run_id, "
    "root_run_id, on_busy, on_crash, max_attempts, timeout_s, cancel_by, cancel_reason, cancel_deadline, first_seq, "
    "lost, owner, " + ", ".join(USAGE_COLUMNS)
)


class _Thread(msgspec.Struct):
    no: int
    head: int
    stretch: int  # that the newest event stands in


class _Run(msgspec.Struct):
    no: int
    thread: ThreadRef
    attempt: int
    ended: bool
    owned: bool  # by a worker that has not let go of it
    root_id: str | None  # null: it is a root itself
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
                f"SELECT thread_no, coalesce({head('threads.thread_no')}, 0), coalesce((SELECT stretch FROM stretches "
                "WHERE stretches.thread_no = threads.thread_no ORDER BY first_seq DESC LIMIT 1), -1) "
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
                "SELECT run_no, thread_id, user_id, attempt, ended_at IS NOT NULL, owner IS NOT NULL, "
                "iif(parent_run_id IS NULL, NULL, root_run_id) FROM runs WHERE run_id = ?",
                (run_id,),
            ).fetchone()
            no, thread_id, user_id, attempt, ended, owned, root_id = row
            known = self._runs[run_id] = _Run(
                no,
                ThreadRef(thread_id, user_id),
                attempt,
                bool(ended),
                bool(owned),
                root_id,
                e.envelope_head(thread_id, run_id, attempt or None, user_id),
            )
        else:
            self._runs.move_to_end(run_id)
        return known

    def holds(self, run: _Run, attempt: int, epoch: int) -> bool:
        """Whether an attempt still owns its run. Before the first attempt nobody does."""
        root = run if run.root_id is None else self.run(run.root_id)
        return not run.ended and bool(attempt) and run.attempt == attempt and root.owned and root.attempt == epoch

    # --- facts ---------------------------------------------------------------------------------------

    def facts(self, need: Need) -> Facts:
        approval = None if need.approval_id is None else self._approval(need.user_id, need.approval_id)
        run_id = need.run_id if approval is None else approval.run_id
        run = None if run_id is None else self._run_row(need.user_id, run_id)
        thread_id = run.thread_id if run is not None else need.thread_id
        thread = self._thread_ref(need, thread_id)
        return Facts(
            now_us=self._time_us,
            thread=thread,
            run=None if run is None or thread is None else self._unfinished(run, need.open_items and not run.ended),
            thread_runs=() if thread is None or not need.thread_runs else self._thread_runs(thread, need.open_items),
            key=None if need.key is None else self._key(need),
            root=None if run is None or not need.root else self._root(run),
            owned=self._ids(_OWNED, need.worker) if need.owned and need.worker else (),
            child=None if need.child is None else self._child(need.child),
            beat=None if need.worker is None else self._beat(need.worker),
            claimable=() if need.claim is None else self._claimable(*need.claim),
            stopping=self._stopping(need.stopping) if need.stopping else (),
            approval=approval,
            expired=self._expired(need.expired) if need.expired else (),
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

    def _root(self, run: RunRow) -> RunRow | None:
        return run if run.parent_run_id is None else self._run_row(None, run.root_run_id)

    def _run_rows(self, where: str, bindings: tuple[object, ...]) -> list[RunRow]:
        found = self._db.execute(f"SELECT {RUN_COLUMNS} FROM runs WHERE {where}", bindings)
        return [run_row(row) for row in found]

    def _thread_runs(self, thread: ThreadRef, open_items: bool) -> tuple[Unfinished, ...]:
        rows = self._run_rows(
            "thread_id = ? AND user_id = ? AND ended_at IS NULL AND parent_run_id IS NULL ORDER BY run_no",
            (thread.thread_id, thread.user_id),
        )
        return tuple(self._unfinished(row, open_items) for row in rows)

    def _unfinished(self, run: RunRow, open_items: bool, *, owned: bool | None = None) -> Unfinished:
        if owned is None:
            owned = self._owned(run)
        if not open_items:
            return Unfinished(run, owned)
        messages: list[Any] = self._db.execute(
            "SELECT message_id, first_seq FROM messages WHERE run_id = ? AND status = 'streaming' ORDER BY first_seq",
            (run.run_id,),
        ).fetchall()
        actions: list[Any] = self._db.execute(
            "SELECT action_id, started_at, private FROM actions WHERE run_id = ? AND status = 'pending' ORDER BY seq",
            (run.run_id,),
        ).fetchall()
        children = self._run_rows("parent_run_id = ? AND ended_at IS NULL ORDER BY run_no", (run.run_id,))
        return Unfinished(
            run,
            owned,
            tuple(self._open_message(run, *row) for row in messages),
            tuple(OpenAction(action_id, started_at, bool(private)) for action_id, started_at, private in actions),
            self._ids(
                "SELECT approval_id FROM approvals WHERE run_id = ? AND status = 'open' ORDER BY seq", run.run_id
            ),
            self._ids(_SUPERSEDED, run.run_id) if run.attempt and not owned else (),
            tuple(self._unfinished(child, True, owned=owned) for child in children),
        )

    def _owned(self, run: RunRow) -> bool:
        sql = "SELECT 1 FROM runs JOIN workers ON worker_id = owner WHERE run_id = ?"
        return self._db.execute(sql, (run.root_run_id,)).fetchone() is not None

    def _ids(self, sql: str, id: str) -> tuple[str, ...]:
        return tuple(row[0] for row in self._db.execute(sql, (id,)))

    def _child(self, run_id: str) -> Unfinished | None:
        row = self._run_row(None, run_id)
        # to its last attempt a child of an earlier epoch is nobody's, whoever owns the root by now
        return None if row is None else self._unfinished(row, not row.ended, owned=False)

    def _beat(self, worker_id: str) -> int | None:
        beat: int | None = self._db.execute("SELECT beat FROM workers WHERE worker_id = ?", (worker_id,)).get
        return beat

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

    def _claimable(self, agents: frozenset[str], limit: int) -> tuple[Unfinished, ...]:
        mine = f"agent IN ({', '.join('?' * len(agents))}) AND parent_run_id IS NULL"
        left = self._run_rows(
            f"{mine} AND ended_at IS NULL AND status <> 'queued' AND (status = 'running' OR cancel_deadline NOT NULL) "
            "AND (owner IS NULL OR owner NOT IN (SELECT worker_id FROM workers)) ORDER BY run_no LIMIT ?",
            (*sorted(agents), limit),
        )
        queued = self._run_rows(
            f"status = 'queued' AND {mine} AND NOT EXISTS ("
            "SELECT 1 FROM runs AS earlier WHERE earlier.thread_id = runs.thread_id AND earlier.run_no < runs.run_no "
            "AND earlier.ended_at IS NULL AND earlier.parent_run_id IS NULL) ORDER BY run_no LIMIT ?",
            (*sorted(agents), limit - len(left)),
        )
        found = [self._unfinished(row, True, owned=False) for row in left]
        return (*found, *[Unfinished(row) for row in queued])

    def _stopping(self, limit: int) -> tuple[Unfinished, ...]:
        rows = self._run_rows(
            "ended_at IS NULL AND cancel_deadline < ? ORDER BY cancel_deadline LIMIT ?",
            (to_rfc3339(self._time_us), limit),
        )
        return tuple(self._unfinished(row, True) for row in rows)

    def _approval(self, user_id: str | None, approval_id: str) -> ApprovalRow | None:
        rows = self._approvals("approval_id = ?1 AND (?2 IS NULL OR user_id = ?2)", (approval_id, user_id))
        return rows[0][1] if rows else None

    def _expired(self, limit: int) -> tuple[tuple[ThreadRef, ApprovalRow], ...]:
        where = "status = 'open' AND expires_at <= ? ORDER BY expires_at LIMIT ?"
        return tuple(self._approvals(where, (self._time_us, limit)))

    def _approvals(self, where: str, bindings: tuple[object, ...]) -> list[tuple[ThreadRef, ApprovalRow]]:
        rows = self._db.execute(
            "SELECT thread_id, user_id, approval_id, run_id, kind, status, value, expires_at FROM approvals "
            f"WHERE {where}",
            bindings,
        )
        return [(ThreadRef(*row[:2]), _approval_row(*row[2:])) for row in rows]

    def family(self, root_id: str) -> dict[str, Member]:
        """A root run and its descendants, those that are unfinished."""
        rows: list[Any] = self._db.execute(
            "SELECT run_id, parent_run_id, status, (SELECT count(*) FROM approvals "
            "WHERE approvals.run_id = runs.run_id AND approvals.status = 'open') "
            "FROM runs WHERE root_run_id = ? AND ended_at IS NULL",
            (root_id,),
        ).fetchall()
        return {run_id: Member(*member) for run_id, *member in rows}

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

    def insert_stretches(self, rows: list[tuple[int, int, int]]) -> None:
        self._db.executemany("INSERT INTO stretches (thread_no, first_seq, stretch) VALUES (?, ?, ?)", rows)

    def insert_key(self, row: KeyRow) -> None:
        self._db.execute(
            "INSERT INTO keys (user_id, kind, key, digest, made, thread_id) VALUES (?, ?, ?, ?, ?, ?)",
            (row.user_id, row.kind, row.key, row.digest, row.made, row.thread_id),
        )

    def set_owner(self, run_id: str, worker: str | None) -> None:
        self._db.execute("UPDATE runs SET owner = ? WHERE run_id = ?", (worker, run_id))
        self.run(run_id).owned = worker is not None

    def set_beat(self, worker_id: str, beat: int | None) -> None:
        if beat is None:
            self._db.execute("DELETE FROM workers WHERE worker_id = ?", (worker_id,))
        else:
            self._db.execute("INSERT OR REPLACE INTO workers (worker_id, beat) VALUES (?, ?)", (worker_id, beat))

    def set_status(self, run_id: str, status: Status) -> None:
        self._db.execute("UPDATE runs SET status = ? WHERE run_id = ?", (status, run_id))

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
        self._stretches: list[tuple[int, int, int]] = []
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
        if self._stretches:
            self._writer.insert_stretches(self._stretches)
        self._rows, self._stretches = [], []

    def _append(self, entry: Append) -> None:
        run = self._writer.run(entry.run_id)
        if not self._writer.holds(run, entry.attempt, entry.epoch):
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
        for run_id, worker in decision.owners.items():
            self._writer.set_owner(run_id, worker)
        for worker, beat in decision.workers.items():
            self._writer.set_beat(worker, beat)
        return decision.result

    def _add(self, ref: ThreadRef, drafts: Sequence[Draft], payloads: Sequence[bytes]) -> None:
        if not drafts:
            return
        places = [self._derive(ref, draft) for draft in drafts]
        thread_no = self._writer.thread(ref.thread_id).no
        shown = self.events.setdefault(ref, [])
        for draft, payload, (pos, seq) in zip(drafts, payloads, places, strict=True):
            shown.append(self._event(ref, thread_no, draft, payload, pos, seq))

    def _derive(self, ref: ThreadRef, draft: Draft) -> tuple[int, int]:
        """The event's pos and seq, with the rows that follow from it changed."""
        writer = self._writer
        kind = draft.type
        thread = None if kind == "thread_created" else writer.thread(ref.thread_id)
        pos, seq = writer.next_pos(), 1 if thread is None else thread.head + 1
        if type(draft.data) not in WITHOUT_ROWS:
            for change in changes(draft, Place(ref.thread_id, ref.user_id, pos, seq, writer.time_us)):
                writer.change(change)
            if kind in FAMILY_EVENTS and draft.run_id is not None:
                self._settle(draft.run_id, draft)
        thread = thread or writer.thread(ref.thread_id)
        thread.head = seq
        if thread.stretch != (stretch := stretch_of(pos)):
            thread.stretch = stretch
            self._stretches.append((thread.no, seq, stretch))
        if kind == "thread_deleted":
            writer.delete_keys(ref.thread_id)
        return pos, seq

    def _settle(self, run_id: str, draft: Draft) -> None:
        """Who waits in the run's family, and who no longer does."""
        root_id = self._writer.run(run_id).root_id
        if root_id is None and not draft.type.startswith("approval_") and draft.attempt in {None, 1}:
            return  # the first start or the end of a root: nobody else, and nothing asked
        family = self._writer.family(root_id or run_id)
        for member_id, status in standing(family).items():
            if status != family[member_id].status:
                self._writer.set_status(member_id, status)

    def _event(self, ref: ThreadRef, thread_no: int, draft: Draft, payload: bytes, pos: int, seq: int) -> Event:
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
            pos,
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


def _approval_row(approval_id: str, run_id: str, kind: Any, status: Any, value: Any, expires_at: int) -> ApprovalRow:
    return ApprovalRow(approval_id, run_id, kind, status, None if value is None else Raw(value), expires_at)


def fold_message(
    db: apsw.Connection, thread: ThreadRef, run_id: str, message_id: str, first_seq: int, limit: int = -1
) -> MessageFold:
    """A streaming message from its events in the log."""
    rows = db.execute(
        _SAID,
        (thread.thread_id, thread.user_id, first_seq, run_id, limit),
    )
    found = (e.data_of(kind, payload) for kind, payload in rows)
    return MessageFold(data for data in found if getattr(data, "message_id", None) == message_id)
