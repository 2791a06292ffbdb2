"""The seam that a check of a store reads through: what is stored, as it is stored, in short reads.

A check may stand beside a server that writes: so nothing here writes or takes the store's lock, and no commit and
no checkpoint has to wait for a whole check.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeAlias

import msgspec

from runstone.projection import Column, Table

# seq, pos, run_no, attempt, type, time, private, what is wrong with its other columns, payload
EventRow: TypeAlias = tuple[int, int, int | None, int | None, str, int, int, str | None, bytes]
PlaceRow: TypeAlias = tuple[int, int]  # pos, time


class AuditedThread(msgspec.Struct, frozen=True):
    """A thread as its row names it."""

    thread_no: int
    thread_id: str
    user_id: str


class Extent(msgspec.Struct, frozen=True):
    """How far a store goes at one moment."""

    pos: int
    thread_no: int


class Structure(msgspec.Struct, frozen=True):
    """What one of the store's own checks has found; `unfinished` says why it was given up."""

    name: str
    problems: Sequence[str] = ()
    unfinished: str | None = None


class Damaged(Exception):
    """What cannot be read, because the file is not what its engine wrote."""


class Audit(Protocol):
    """The contract every implementation keeps.

    - It reads only. A read is one short transaction of its own, except inside `snapshot`.
    - Rows come as they are stored: nothing is mended, nothing is left out.
    - Any method may raise StoreFailed, or Damaged where the file cannot be read.
    """

    @property
    def schema(self) -> str:
        """The newest migration, for people."""
        ...

    @property
    def generation(self) -> str | None: ...

    @property
    def delays_commits(self) -> bool:
        """Whether a commit has to wait for the end of a read."""
        ...

    def structure(self, hold_s: float | None) -> Iterator[Structure]:
        """The engine's own checks, one by one; one that would hold the file longer than `hold_s` is given up."""
        ...

    def extent(self) -> Extent: ...

    def places(self, after: int, limit: int) -> list[PlaceRow]:
        """Events after a pos, in its order."""
        ...

    def at(self, pos: int) -> tuple[str | None, int]:
        """The thread_id and the seq of the event at a pos."""
        ...

    def threads(self, after: int, limit: int) -> list[AuditedThread]:
        """Threads after a thread_no, in its order."""
        ...

    def strays(self, after: int, before: int | None) -> list[int]:
        """Numbers between two thread_nos that have events and no thread; as many as a person would want to see."""
        ...

    def events(self, thread: AuditedThread, after: int, limit: int) -> tuple[list[EventRow], bool]:
        """Events after a seq, in its order, at most `limit` and some MiB; and whether they reach the head."""
        ...

    def run_id(self, run_no: int) -> str | None: ...

    def row(self, table: Table, key: Sequence[str], columns: Sequence[str]) -> Sequence[Column] | None:
        """These columns of a derived row."""
        ...

    def counts(self, thread: AuditedThread) -> dict[Table, int]:
        """How many derived rows a thread has, by table."""
        ...

    def state_keys(self, thread: AuditedThread) -> list[str]: ...

    def unexplained(self, table: Table, thread: AuditedThread) -> Iterator[tuple[str, int]]:
        """Rows that no event has made, of any table but threads and state: the id and the seq at which it should be."""
        ...

    def snapshot(self) -> AbstractContextManager[None]:
        """Reads inside see one moment. Keep it short: until its end a writer may have to wait."""
        ...
