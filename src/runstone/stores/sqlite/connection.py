"""Connections to a SQLite file, opened the one safe way.

WAL with synchronous=FULL by default. `journal_mode=delete` means synchronous=EXTRA: with FULL the directory is not
synced after the journal is unlinked, and a power cut was seen to take acknowledged commits back.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal, cast, get_args
from urllib.parse import parse_qsl, unquote, urlsplit

import apsw
import msgspec

from runstone.errors import BadConfig, StoreFailed, StoreLocked
from runstone.ids import new_id
from runstone.stores.migrations import Applied, Step

JournalMode = Literal["wal", "delete"]
SYNCHRONOUS: dict[JournalMode, str] = {"wal": "FULL", "delete": "EXTRA"}

BUSY_TIMEOUT_MS = 30_000  # how long a foreign reader may hold the file (delete mode) before the store counts as failed
CACHE_KIB = 64 * 1024
CHECKPOINT_PAGES = 2_000  # 8 MiB of WAL: larger ones make rarer but longer pauses

# What a disk can do to us. After any of these nothing is acknowledged any more.
DISK_ERRORS = (
    apsw.FullError,
    apsw.IOError,
    apsw.CorruptError,
    apsw.NotADBError,
    apsw.ReadOnlyError,
    apsw.CantOpenError,
    apsw.BusyError,
    apsw.NoMemError,
)


class SqliteUrl(msgspec.Struct, frozen=True):
    """`sqlite:///relative/file.db`, `sqlite:////absolute/file.db`, with `?journal_mode=wal|delete`."""

    path: Path
    journal_mode: JournalMode = "wal"

    @classmethod
    def parse(cls, url: str) -> SqliteUrl:
        parts = urlsplit(url)
        if parts.scheme != "sqlite" or parts.netloc or not parts.path.startswith("/") or parts.path == "/":
            raise BadConfig(
                f"{url!r} is not a store: sqlite:///relative/file.db or sqlite:////absolute/file.db.",
                remedy="Set RUNSTONE_STORE or --store.",
            )
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        mode = options.pop("journal_mode", "wal")
        if mode not in get_args(JournalMode) or options:
            raise BadConfig(f"{url!r}: the only option is journal_mode=wal or journal_mode=delete.")
        return cls(Path(unquote(parts.path[1:])), cast(JournalMode, mode))


class FileLock:
    """The right to write a file: an flock on `<file>.lock`, which ends with the process, however it ends."""

    def __init__(self, path: Path) -> None:
        real = path.resolve()  # a file that is reached by two names is one file
        self._path = real.with_name(real.name + ".lock")
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise StoreLocked(f"Another process serves this store ({self._path} is locked).") from None
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()  # the file stays: removing it would let two holders hold two files
            self._file = None


def prepare(path: Path) -> None:
    """Makes the file and its folders, and sees to it that a power cut cannot take their names away."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        made = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.touch(mode=0o600)
            for folder in (path.parent, *(folder.parent for folder in made)):
                _sync(folder)
    except OSError as error:
        raise BadConfig(
            f"The store {path} cannot be made: {error.strerror}.", remedy="Give a folder you can write to."
        ) from None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def connect(url: SqliteUrl, *, write: bool) -> apsw.Connection:
    """A connection with every setting checked, not hoped for; raises StoreFailed."""
    with failing():
        connection = apsw.Connection(str(url.path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.set_busy_timeout(BUSY_TIMEOUT_MS)
        if write:
            _pragma(connection, "journal_mode", url.journal_mode)
        _pragma(connection, "foreign_keys", 1)
        _pragma(connection, "synchronous", {"FULL": 2, "EXTRA": 3}[SYNCHRONOUS[url.journal_mode]])
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        connection.execute("PRAGMA temp_store = memory")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        if not write:
            _pragma(connection, "query_only", 1)
        return connection


def generation(connection: apsw.Connection) -> str:
    """The name of this store's history; a store that has none is new, and gets one."""
    connection.execute("INSERT OR IGNORE INTO meta VALUES ('generation', ?)", (new_id("gen"),))
    found: str = connection.execute("SELECT value FROM meta WHERE name = 'generation'").get
    return found


def settle(connection: apsw.Connection) -> None:
    """Puts on the disk what a killed process may have left on the way there; nothing is shown before.

    SQLite takes a commit that was written and never synced for a commit (and a journal that was removed, its folder
    not synced, for removed): a power cut would take it back. A commit of our own syncs all that came before it, and
    a checkpoint writes again what a failed sync may have dropped.
    """
    connection.execute(
        "INSERT INTO meta VALUES ('opened', '1') "
        "ON CONFLICT (name) DO UPDATE SET value = CAST(CAST(value AS INTEGER) + 1 AS TEXT)"
    )
    connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


@contextmanager
def failing() -> Iterator[None]:
    """What the disk does becomes StoreFailed."""
    try:
        yield
    except DISK_ERRORS as error:
        raise StoreFailed(f"SQLite: {type(error).__name__}: {error}") from error


@contextmanager
def transaction(connection: apsw.Connection, kind: Literal["IMMEDIATE", "DEFERRED"]) -> Iterator[None]:
    """IMMEDIATE for every write: a transaction that reads first and writes later is refused under load."""
    connection.execute(f"BEGIN {kind}")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


class SqliteSchema:
    """The schema seam of the migration runner."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection

    def applied(self) -> list[Applied]:
        found = self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'migrations'").fetchall()
        if not found:
            return []
        rows = self._connection.execute("SELECT version, name, checksum FROM migrations ORDER BY version")
        return [Applied(*row) for row in rows]

    def name(self) -> None:
        """Sees to it that the store's history has a name."""
        with failing():
            generation(self._connection)

    def apply(self, step: Step) -> None:
        migration = step.migration
        with failing(), transaction(self._connection, "IMMEDIATE"):
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS migrations "
                "(version INTEGER PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, "
                "applied_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')))"
            )
            for statement in migration.up if step.direction == "up" else migration.down:
                self._connection.execute(statement)
            if step.direction == "up":
                self._connection.execute(
                    "INSERT INTO migrations (version, name, checksum) VALUES (?, ?, ?)",
                    (migration.version, migration.name, migration.checksum),
                )
            else:
                self._connection.execute("DELETE FROM migrations WHERE version = ?", (migration.version,))


def _pragma(connection: apsw.Connection, name: str, value: str | int) -> None:
    connection.execute(f"PRAGMA {name} = {value}")
    found = connection.execute(f"PRAGMA {name}").get
    if found != value:
        raise StoreFailed(
            f"SQLite did not take {name} = {value}: it is {found}.",
            remedy="Use a local disk: network file systems cannot keep this store safe.",
        )
