"""The derived rows of one thread, made by its events in memory."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from runstone.projection import KEYS, Change, Column, Table

Key = tuple[Table, tuple[str, ...]]


class Expected(msgspec.Struct, frozen=True):
    """A derived row, or some columns of it, as the events up to a seq make it."""

    table: Table
    key: tuple[str, ...]
    columns: dict[str, Column]
    seq: int
    run_id: str | None = None


class Rows:
    """Rows that may still change. `made` counts all that were made, also those that were taken since."""

    def __init__(self) -> None:
        self._rows: dict[Key, dict[str, Column]] = {}
        self._unmade: set[Key] = set()  # changed, but made by no event: said once
        self.made: dict[Table, int] = dict.fromkeys(KEYS.keys() - {"state"}, 0)  # of state, rows come and go

    def apply(self, change: Change) -> str | None:
        """Carries a change out; what is wrong with it, if it cannot be."""
        key = (change.table, change.key)
        if change.op == "delete":
            self._rows.pop(key, None)
            return None
        row = self._rows.get(key)
        if change.op == "insert":
            if row is not None:
                return f"{change.table} {change.key[0]} is made a second time, expected once"
            self._rows[key] = dict(change.columns)
            if change.table in self.made:
                self.made[change.table] += 1
            return None
        if row is None:
            said = key in self._unmade
            self._unmade.add(key)
            return None if said else f"{change.table} {change.key[0]} changes, expected an earlier event that made it"
        row.update(change.columns)
        for name, number in change.add.items():
            row[name] = (row[name] or 0) + number  # type: ignore[operator]
        return None

    def __contains__(self, key: Key) -> bool:
        return key in self._rows

    def take(self, table: Table, key: tuple[str, ...]) -> dict[str, Column] | None:
        """A row that nothing changes any more."""
        return self._rows.pop((table, key), None)

    def all(self) -> Iterator[tuple[Key, dict[str, Column]]]:
        yield from self._rows.items()

    def state_keys(self) -> set[str]:
        return {key[1] for table, key in self._rows if table == "state"}
