"""The events of a store as a list that a test may change, and write back as if they had been committed so."""

from __future__ import annotations

from typing import Any

import apsw
import msgspec

from runstone import values
from runstone.verify import Finding
from tests.verify.conftest import Store

_COLUMNS = "thread_no, run_no, attempt, user_id, type, time, private, payload"


class Event(msgspec.Struct):
    """One event; `data` is what its payload says."""

    thread_no: int
    run_no: int | None
    attempt: int | None
    user_id: str
    type: str
    time: int
    private: int
    data: dict[str, Any]
    rest: dict[str, Any]  # metadata, raw


class History:
    """What a test breaks shows in the events; that the rows no longer follow from them goes without saying."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.events: list[Event] = []
        for *columns, payload in store.sql(f"SELECT {_COLUMNS} FROM events ORDER BY pos"):
            rest = msgspec.json.decode(payload)
            fields = dict(zip(_COLUMNS.split(", "), columns, strict=False))
            self.events.append(Event(**fields, data=rest.pop("data"), rest=rest))

    def run_no(self, agent: str, number: int = 0) -> int:
        """Of the runs of an agent, in the order they were queued; a negative number counts from the last."""
        found: int = self._store.sql("SELECT run_no FROM runs WHERE agent = ? ORDER BY run_no", agent)[number][0]
        return found

    def run_id(self, run_no: int) -> str:
        return str(self._store.sql("SELECT run_id FROM runs WHERE run_no = ?", run_no)[0][0])

    def of(self, run_no: int, type: str, **data: object) -> list[Event]:
        """The events of a run of a type, with these members in their data."""
        return [
            event
            for event in self.events
            if event.run_no == run_no and event.type == type and data.items() <= event.data.items()
        ]

    def at(self, event: Event) -> int:
        return next(number for number, other in enumerate(self.events) if other is event)

    def drop(self, *events: Event) -> None:
        for event in events:
            del self.events[self.at(event)]

    def insert(self, new: Event, *, after: Event) -> Event:
        self.events.insert(self.at(after) + 1, new)
        return new

    def move(self, *events: Event, before: Event) -> None:
        self.drop(*events)
        at = self.at(before)
        self.events[at:at] = events

    def repeat(self, event: Event) -> Event:
        """The same event once more, right behind it."""
        return self.insert(copy(event), after=event)

    def broken(self) -> list[Finding]:
        """What `verify` finds of it beside rows that are other than the events make them."""
        connection = apsw.Connection(str(self._store.path))
        try:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute("DELETE FROM events")
            heads: dict[int, int] = {}
            time = 0
            for pos, event in enumerate(self.events, 1):
                heads[event.thread_no] = heads.get(event.thread_no, 0) + 1
                time = max(time, event.time)
                payload = values.encode(event.rest | {"data": event.data})
                connection.execute(
                    "INSERT INTO events (pos, thread_no, seq, run_no, attempt, user_id, type, time, private, payload) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        pos,
                        event.thread_no,
                        heads[event.thread_no],
                        event.run_no,
                        event.attempt,
                        event.user_id,
                        event.type,
                        time,
                        event.private,
                        payload,
                    ),
                )
        finally:
            connection.close()
        return [finding for finding in self._store.findings() if finding.check != "rows"]


def copy(event: Event, **changes: Any) -> Event:
    return msgspec.structs.replace(event, data=dict(event.data), rest=dict(event.rest), **changes)
