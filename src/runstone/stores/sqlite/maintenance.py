"""Looking after a SQLite store's schema while nobody serves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from runstone.errors import NotFound
from runstone.stores.migrations import Applied, Step, migrate, plan
from runstone.stores.sqlite.connection import FileLock, SqliteSchema, SqliteUrl, connect, prepare
from runstone.stores.sqlite.schema import MIGRATIONS


@contextmanager
def _schema(url: str, *, make: bool) -> Iterator[SqliteSchema]:
    parsed = SqliteUrl.parse(url)
    if make:
        prepare(parsed.path)
    elif not parsed.path.exists():
        raise NotFound(f"There is no store at {parsed.path}.", remedy="`runstone db upgrade` makes one.")
    lock = FileLock(parsed.path)
    if make:
        lock.acquire()
    try:
        connection = connect(parsed, write=make)
        try:
            yield SqliteSchema(connection)
        finally:
            connection.close()
    finally:
        lock.release()


def applied(url: str) -> list[Applied]:
    """The migrations that made the store; raises NotFound."""
    with _schema(url, make=False) as schema:
        return schema.applied()


def steps(url: str, target: int | None) -> list[Step]:
    """What leads from the store as it is to a version (default: the newest); changes nothing."""
    with _schema(url, make=False) as schema:
        return plan(MIGRATIONS, schema.applied(), target)


def move(url: str, target: int | None) -> list[Step]:
    """Carries the steps out; raises StoreLocked while somebody serves the store."""
    with _schema(url, make=True) as schema:
        todo = plan(MIGRATIONS, schema.applied(), target)
        migrate(schema, todo)
        if schema.applied():
            schema.name()
        return todo
