"""Everything that a store holds, and what it should hold: the fold of its events, done again from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeAlias

import msgspec
from msgspec import Raw

from runstone import events as e
from runstone.clock import Clock
from runstone.messages import MessageFold
from runstone.projection import KEYS, Change, Place, changes
from runstone.states import FAMILY_EVENTS, TERMINAL_EVENTS, Member, standing
from runstone.store import Store

Tables: TypeAlias = "dict[str, dict[tuple[Any, ...], dict[str, Any]]]"
TABLES = tuple(KEYS)


class EventRow(msgspec.Struct, frozen=True):
    """An event as it is stored."""

    pos: int
    thread_id: str
    seq: int
    run_id: str | None
    attempt: int | None
    user_id: str
    type: str
    time: int
    private: bool
    payload: bytes


class Dump(msgspec.Struct, frozen=True):
    """The truth and what is derived from it."""

    events: list[EventRow]
    tables: Tables


class Database(Protocol):
    """A place for one store that a test can look into behind the store's back."""

    def store(self, clock: Clock) -> Store:
        """A store on this place, not opened yet; one after the other, never two at once."""
        ...

    def dump(self) -> Dump: ...


def refold(events: Iterable[EventRow]) -> Tables:
    """The derived tables, made again from the events alone."""
    tables: Tables = {name: {} for name in TABLES}
    folds: dict[str, MessageFold] = {}
    for row in events:
        for change in changes(_draft(row, folds), Place(row.thread_id, row.user_id, row.pos, row.seq, row.time)):
            _apply(tables, change)
        if row.type in FAMILY_EVENTS and row.run_id is not None:
            _settle(tables, tables["runs"][row.run_id,]["root_run_id"])
    return tables


def _settle(tables: Tables, root_run_id: str) -> None:
    """Who waits in a family, and who does not."""
    family: dict[str, Member] = {}
    for (run_id,), run in tables["runs"].items():
        if run["root_run_id"] == root_run_id and run["ended_at"] is None:
            asked = [row for row in tables["approvals"].values() if (row["run_id"], row["status"]) == (run_id, "open")]
            family[run_id] = Member(run["parent_run_id"], run["status"], len(asked))
    for run_id, status in standing(family).items():
        tables["runs"][run_id,]["status"] = status


def _draft(row: EventRow, folds: dict[str, MessageFold]) -> e.Draft:
    payload = msgspec.json.decode(row.payload, type=e.Payload)
    data = e.data_of(row.type, row.payload)
    content = None
    if isinstance(data, e.MessageStarted):
        folds[data.message_id] = MessageFold()
    elif isinstance(data, e.Delta | e.MessagePart):
        folds[data.message_id].feed(data)
    elif isinstance(data, e.MessageCompleted):
        fold = folds.pop(data.message_id)
        assert fold.length == data.length, "a message's length is that of its text"
        content = fold.encoded()
    return e.Draft(
        data=data,
        run_id=row.run_id,
        attempt=row.attempt,
        metadata=_kept(payload.metadata),
        raw=_kept(payload.raw),
        private=row.private,
        content=content,
    )


def _kept(raw: Raw | None) -> Raw | None:
    return None if raw is None else Raw(bytes(raw))


def _apply(tables: Tables, change: Change) -> None:
    table = tables[change.table]
    if change.op == "insert":
        assert change.key not in table, f"{change.table} {change.key} is there already"
        table[change.key] = dict(change.columns)
    elif change.op == "delete":
        table.pop(change.key, None)
    else:
        row = table[change.key]
        row.update(change.columns)
        for name, number in change.add.items():
            row[name] = (row[name] or 0) + number


def check(dump: Dump) -> None:
    """The promises that a store's content shows: order, ends, and rows that are the fold of the log."""
    assert [row.pos for row in dump.events] == list(range(1, len(dump.events) + 1)), "pos has no gap"
    heads: dict[str, int] = {}
    ended: set[str] = set()
    time = 0
    for row in dump.events:
        assert row.seq == heads.get(row.thread_id, 0) + 1, "seq has no gap and follows the order of commit"
        heads[row.thread_id] = row.seq
        assert row.time >= time, "time never falls"
        time = row.time
        assert row.run_id not in ended, f"{row.type} came after the end of its run"
        if row.type in TERMINAL_EVENTS:
            assert row.run_id is not None
            ended.add(row.run_id)
    assert dump.tables == refold(dump.events)
    finished = {key[0] for key, run in dump.tables["runs"].items() if run["ended_at"] is not None}
    assert ended == finished, "a run has ended when, and only when, its terminal event is there"
