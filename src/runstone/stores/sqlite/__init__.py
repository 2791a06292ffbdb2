"""The embedded store: one SQLite file, one writer thread, a few reader threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, ParamSpec, TypeVar

from runstone.clock import Clock
from runstone.errors import StoreFailed
from runstone.resources import Action, Approval, Listing, Message, Run, Thread
from runstone.store import Committed, Entry, Record, RecordedApproval, RunRow, ToStop
from runstone.stores.migrations import check, migrate, plan
from runstone.stores.sqlite.connection import (
    FileLock,
    SqliteSchema,
    SqliteUrl,
    connect,
    failing,
    generation,
    prepare,
    settle,
)
from runstone.stores.sqlite.reader import Reader
from runstone.stores.sqlite.schema import MIGRATIONS
from runstone.stores.sqlite.writer import Writer
from runstone.values import Json
from runstone.views import FeedPage, ListQuery, Page, ThreadRef

_READERS = 2  # more than the cores bring nothing

P = ParamSpec("P")
R = TypeVar("R")


class SqliteStore:
    """Holds the lock on the file from `open` to `close`."""

    def __init__(self, url: str, clock: Clock) -> None:
        self._url = SqliteUrl.parse(url)
        self._clock = clock
        self._lock = FileLock(self._url.path)
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="runstone-writer")
        self._reading = ThreadPoolExecutor(_READERS, thread_name_prefix="runstone-reader")
        self._local = threading.local()
        self._writer: Writer | None = None
        self._readers: list[Reader] = []
        self.generation = ""
        self.on_failure: Callable[[StoreFailed], None] = lambda failure: None
        self.rows = SqliteRows(self)

    async def open(self) -> None:
        await self._in(self._writing, self._open)

    def _open(self) -> None:
        prepare(self._url.path)
        self._lock.acquire()
        try:
            connection = connect(self._url, write=True)
            schema = SqliteSchema(connection)
            migrate(schema, plan(MIGRATIONS, schema.applied()))
            check(MIGRATIONS, schema.applied())
            with failing():
                self.generation = generation(connection)
                settle(connection)
                connection.execute("DELETE FROM workers")  # who holds the lock is alone: no other worker can live
                self._writer = Writer(connection, self._clock)
            self._connection = connection
        except BaseException:
            self._lock.release()
            raise

    async def close(self) -> None:
        """Safe twice, and before `open`."""
        try:
            if self._writer is not None:
                await self._in(self._writing, self._close)
        finally:
            self._reading.shutdown()
            self._writing.shutdown()

    def _close(self) -> None:
        self._writer = None
        self._reading.shutdown()  # waits: a connection that is reading cannot be closed
        try:
            with failing():  # closing checkpoints, which a broken disk refuses
                for reader in self._readers:
                    reader.close()
                self._connection.close()
        finally:
            self._lock.release()

    async def commit(self, batch: Sequence[Entry]) -> Committed:
        assert self._writer is not None, "the store is not open"
        return await self._in(self._writing, self._writer.commit, batch)

    async def events(self, thread: ThreadRef, *, after: int, limit: int, bytes_max: int) -> Page:
        return await self.read(Reader.events, thread, after, limit, bytes_max)

    async def events_before(self, thread: ThreadRef, *, before: int, limit: int, bytes_max: int) -> Page:
        return await self.read(Reader.events_before, thread, before, limit, bytes_max)

    async def heads(self, threads: Sequence[ThreadRef]) -> list[int]:
        return await self.read(Reader.heads, threads)

    async def feed_heads(self, user_ids: Sequence[str]) -> list[int]:
        return await self.read(Reader.feed_heads, user_ids)

    async def run_row(self, run_id: str) -> RunRow | None:
        return await self.read(Reader.run_row, run_id)

    async def to_stop(self, run_ids: Sequence[str]) -> dict[str, ToStop]:
        return await self.read(Reader.to_stop, run_ids)

    async def record(self, run_id: str) -> Record:
        return await self.read(Reader.record, run_id)

    async def resolved(self, approval_ids: Sequence[str]) -> list[RecordedApproval]:
        return await self.read(Reader.resolved, approval_ids)

    async def beats(self) -> dict[str, int]:
        return await self.read(Reader.beats)

    async def read(self, method: Callable[Concatenate[Reader, P], R], *args: P.args, **kwargs: P.kwargs) -> R:
        """One read, in a reader thread, on that thread's own connection."""
        try:
            return await self._in(self._reading, lambda: method(self._reader(), *args, **kwargs))
        except StoreFailed as failure:
            self.on_failure(failure)
            raise

    def _reader(self) -> Reader:
        reader: Reader | None = getattr(self._local, "reader", None)
        if reader is None:
            reader = self._local.reader = Reader(connect(self._url, write=False))
            self._readers.append(reader)
        return reader

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., R], *args: object) -> R:
        return await asyncio.get_running_loop().run_in_executor(pool, call, *args)


class SqliteRows:
    """The reads of rows, each in a reader thread."""

    def __init__(self, store: SqliteStore) -> None:
        self._read = store.read

    async def thread(self, user_id: str, thread_id: str) -> Thread | None:
        return await self._read(Reader.thread, user_id, thread_id)

    async def run(self, user_id: str, run_id: str) -> Run | None:
        return await self._read(Reader.run, user_id, run_id)

    async def threads(self, user_id: str, query: ListQuery) -> Listing[Thread]:
        return await self._read(Reader.threads, user_id, query)

    async def feed(self, user_id: str, *, after: int, limit: int, deleted_after: int) -> FeedPage:
        return await self._read(Reader.feed, user_id, after, limit, deleted_after)

    async def runs(self, user_id: str, query: ListQuery) -> Listing[Run]:
        return await self._read(Reader.runs, user_id, query)

    async def messages(self, user_id: str, query: ListQuery) -> Listing[Message]:
        return await self._read(Reader.messages, user_id, query)

    async def actions(self, user_id: str, query: ListQuery) -> Listing[Action]:
        return await self._read(Reader.actions, user_id, query)

    async def message(self, user_id: str, message_id: str) -> Message | None:
        return await self._read(Reader.message, user_id, message_id)

    async def approvals(self, user_id: str, query: ListQuery) -> Listing[Approval]:
        return await self._read(Reader.approvals, user_id, query)

    async def approval(self, user_id: str, approval_id: str) -> Approval | None:
        return await self._read(Reader.approval, user_id, approval_id)

    async def state(self, user_id: str, thread_id: str, *, private: bool) -> tuple[dict[str, Json], int]:
        return await self._read(Reader.state, user_id, thread_id, private)

    async def family(self, user_id: str, run_id: str) -> frozenset[str]:
        return await self._read(Reader.family, user_id, run_id)

    async def statuses(self) -> dict[str, int]:
        return await self._read(Reader.statuses)
