"""Migrations: numbered steps between schemas, each applied in a transaction of its own and recorded.

A small runner of our own: the well-known ones bring a second SQLite library into the process, or crash when two
start at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import msgspec

from runstone.errors import StoreOutdated, StoreTooNew
from runstone.values import digest


class Migration(msgspec.Struct, frozen=True):
    """One step: statements forward, statements back."""

    version: int
    name: str
    up: tuple[str, ...]
    down: tuple[str, ...]

    @property
    def checksum(self) -> str:
        return digest("\n".join(self.up).encode())


class Applied(msgspec.Struct, frozen=True):
    version: int
    name: str
    checksum: str


class Step(msgspec.Struct, frozen=True):
    direction: Literal["up", "down"]
    migration: Migration


class Schema(Protocol):
    """A database that migrations are applied to."""

    def applied(self) -> list[Applied]:
        """What was applied, in order; empty for a new database."""
        ...

    def apply(self, step: Step) -> None:
        """One step and its record, in one transaction."""
        ...


def check(migrations: Sequence[Migration], applied: Sequence[Applied]) -> None:
    """Refuses a database that these migrations did not make: newer, or edited since."""
    known = {migration.version: migration for migration in migrations}
    for row in applied:
        if row.version not in known:
            raise StoreTooNew(
                f"The store has schema {row.version} ({row.name}); this version knows up to {max(known, default=0)}."
            )
        if known[row.version].checksum != row.checksum:
            raise StoreOutdated(
                f"Migration {row.version} ({row.name}) is not the one that made this store.",
                remedy="Install the version of Runstone that made the store.",
            )


def plan(migrations: Sequence[Migration], applied: Sequence[Applied], target: int | None = None) -> list[Step]:
    """The steps from what is applied to a version (default: the newest); raises as `check` does."""
    check(migrations, applied)
    current = applied[-1].version if applied else 0
    goal = migrations[-1].version if target is None else target
    if goal not in {0, *(migration.version for migration in migrations)}:
        raise StoreTooNew(f"There is no schema {goal}.", remedy="`runstone db current` lists the versions.")
    if goal >= current:
        return [Step("up", migration) for migration in migrations if current < migration.version <= goal]
    return [Step("down", migration) for migration in reversed(migrations) if goal < migration.version <= current]


def migrate(schema: Schema, steps: Sequence[Step]) -> None:
    for step in steps:
        schema.apply(step)
