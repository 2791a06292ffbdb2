"""The log: the only writer and the only reader of events.

append = gather what everybody has to say, commit it together, then hint. tail = read, wait for a hint, read.
Nothing leaves this module that is not committed.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from runstone.broker import Broker, Hint
from runstone.clock import Clock
from runstone.errors import CursorAhead, NotFound, RunstoneError, StaleAttempt, StoreFailed
from runstone.events import AgentThinking, Delta, Draft, Event, MessageDelta
from runstone.failpoints import hit
from runstone.limits import (
    BATCH_BYTES_MAX,
    BATCH_EVENTS_MAX,
    DELTA_BYTES_MAX,
    PAGE_BYTES_MAX,
    PAGE_ROWS_MAX,
    PROCESS_BUFFER_BYTES_MAX,
    RUN_BUFFER_BYTES_MAX,
    WINDOW_BYTES_MAX,
    WINDOW_EVENTS_MAX,
    WINDOWS_BYTES_MAX,
)
from runstone.metrics import Metrics
from runstone.service import Tasks, every
from runstone.states import TERMINAL_EVENTS
from runstone.store import Append, Command, Committed, Entry, RunRow, Store
from runstone.views import Page, Rows, ThreadRef

logger = structlog.get_logger(__name__)

POLL_S = 1.0  # how late an event may be when its hint was lost
_YIELD_EVERY = 32  # buffered writes between two turns of the loop, so that one run cannot hold it
_DRAFT_BYTES = 256  # what a draft that is not text counts in the buffer


class Log:
    """One per process. `start` it before use; after a `StoreFailed` it acknowledges and shows nothing more."""

    def __init__(self, store: Store, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._tasks = Tasks("log", on_crash=self.crashed)
        self._ready: deque[Outbox | tuple[Command, asyncio.Future[Any]]] = deque()
        self._wakeup = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._space = asyncio.Event()
        self._buffered_bytes = 0
        self._windows = _Windows()
        self._watched: dict[ThreadRef, set[Tail]] = {}
        self._by_id: dict[str, ThreadRef] = {}
        self._listeners: list[Callable[[Hint], None]] = []
        self.failure: StoreFailed | None = None
        self.failed = asyncio.Event()

    @property
    def generation(self) -> str:
        return self._store.generation

    @property
    def rows(self) -> Rows:
        return self._store.rows

    # --- life -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        await self._store.open()
        await self._broker.open(self._hinted)
        self._tasks.run(self._commit_loop(), "commit")
        self._tasks.run(every(POLL_S, self._poll), "poll")

    async def stop(self) -> None:
        """Commits what was said, then ends; safe twice."""
        if self.failure is None and len(self._tasks):
            await self._idle.wait()
        await self._tasks.stop()
        await self._broker.close()
        await self._store.close()

    def listen(self, listener: Callable[[Hint], None]) -> None:
        """Every hint that is not about events goes to the listener: work, cancel."""
        self._listeners.append(listener)

    # --- append -----------------------------------------------------------------------------------------

    async def append(self, command: Command) -> Any:
        """Carries a command out in the next commit and returns its result; raises its refusal."""
        self._check()
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put((command, done))
        return await done

    def outbox(self, run: RunRow) -> Outbox:
        """Where one attempt of a run says what it says."""
        return Outbox(self, run.run_id, run.attempt)

    def _put(self, item: Outbox | tuple[Command, asyncio.Future[Any]]) -> None:
        self._ready.append(item)
        self._idle.clear()
        self._wakeup.set()

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def _commit_loop(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._ready:
                await self._commit_some()
            self._idle.set()

    async def _commit_some(self) -> None:
        entries: list[Entry] = []
        owners: list[Outbox | asyncio.Future[Any]] = []
        events, size = 0, 0
        while self._ready and events < BATCH_EVENTS_MAX and size < BATCH_BYTES_MAX:
            item = self._ready.popleft()
            if isinstance(item, Outbox):
                append, taken = item.take()
                if not append.drafts:
                    continue
                entries.append(append)
                owners.append(item)
                events, size = events + len(append.drafts), size + taken
            else:
                entries.append(item[0])
                owners.append(item[1])
                events += 1
        if not entries:
            return
        try:
            committed = await self._store.commit(entries)
        except StoreFailed as failure:
            self._fail(failure, owners)
            return
        self._show(committed)
        for owner, outcome in zip(owners, committed.outcomes, strict=True):
            if isinstance(owner, Outbox):
                owner.settle(outcome)
            elif not owner.done():
                if isinstance(outcome, RunstoneError):
                    owner.set_exception(outcome)
                else:
                    owner.set_result(outcome)

    def _show(self, committed: Committed) -> None:
        """From here on the events may be seen."""
        count = 0
        now = self._clock.monotonic()
        hit("before_hint")
        for thread, events in committed.events.items():
            self._windows.add(thread, events, now)
            self._broker.publish(Hint("events", thread.thread_id, events[-1].seq))
            self._tell_workers(events)
            count += len(events)
        self._metrics.commit_seconds.observe(committed.seconds)
        self._metrics.batch_events.observe(count)
        self._metrics.events_appended.inc(count)

    def _tell_workers(self, events: Sequence[Event]) -> None:
        """Nobody who appends has to think of hints: they follow from the events."""
        for event in events:
            if event.type == "cancel_requested":
                self._broker.publish(Hint("cancel", event.run_id or ""))
            elif event.type == "run_queued":
                self._broker.publish(Hint("work"))
            elif event.type in TERMINAL_EVENTS:
                self._broker.publish(Hint("ended", event.run_id or ""))

    def _fail(self, failure: StoreFailed, owners: Sequence[Outbox | asyncio.Future[Any]] = ()) -> None:
        """Fail-stop: whoever waits is told, whoever watches is woken to be told."""
        if self.failure is not None:
            return
        logger.critical(
            "the store failed; nothing more is acknowledged or shown",
            error=str(failure),
            remedy=failure.remedy,
        )
        self.failure = failure
        self.failed.set()
        for item in (*owners, *self._ready):
            if isinstance(item, Outbox):
                item.settle(failure)
            else:
                future = item[1] if isinstance(item, tuple) else item
                if not future.done():
                    future.set_exception(failure)
        self._ready.clear()
        self._idle.set()
        self.release_space(0)
        for tails in self._watched.values():
            for tail in tails:
                tail.wake()

    def crashed(self, error: BaseException) -> None:
        """A service that the process cannot do without has died: better no server than half a one."""
        self._fail(StoreFailed(f"A service died: {type(error).__name__}: {error}"))

    # --- what is said and not yet committed -------------------------------------------------------------

    @property
    def full(self) -> bool:
        return self._buffered_bytes >= PROCESS_BUFFER_BYTES_MAX

    def take_space(self, size: int) -> None:
        self._buffered_bytes += size

    def release_space(self, size: int) -> None:
        self._buffered_bytes -= size
        self._metrics.buffer_bytes.set(self._buffered_bytes)
        self._space.set()
        self._space = asyncio.Event()

    async def wait_for_space(self) -> None:
        await self._space.wait()

    # --- read and tail ------------------------------------------------------------------------------------

    async def find(self, user_id: str, thread_id: str) -> ThreadRef:
        """The user's thread; raises NotFound."""
        self._check()
        if await self.rows.thread(user_id, thread_id) is None:
            raise NotFound(f"There is no thread {thread_id}.")
        return ThreadRef(thread_id, user_id)

    async def head(self, thread: ThreadRef) -> int:
        self._check()
        return (await self._store.heads([thread]))[0]

    async def run_row(self, run_id: str) -> RunRow | None:
        return await self._store.run_row(run_id)

    async def cancelling(self) -> list[str]:
        """Unfinished runs that a cancel was asked for."""
        return await self._store.cancelling()

    async def read(self, thread: ThreadRef, *, after: int, limit: int = PAGE_ROWS_MAX) -> Page:
        """Events after a seq: those in memory, or one page from the store."""
        self._check()
        page = self._windows.read(thread, after, limit)
        if page is None:
            page = await self._store.events(thread, after=after, limit=limit, bytes_max=PAGE_BYTES_MAX)
        return page

    async def read_before(self, thread: ThreadRef, *, before: int, limit: int) -> Page:
        """The events right below a seq, ascending."""
        self._check()
        return await self._store.events_before(thread, before=before, limit=limit, bytes_max=PAGE_BYTES_MAX)

    @asynccontextmanager
    async def tail(self, thread: ThreadRef, *, after: int, wake: Callable[[], None]) -> AsyncIterator[Tail]:
        """Follows a thread: `wake` is called whenever there may be something to read.

        Subscribes first and looks at the head then: the other way round leaves a gap. Raises CursorAhead.
        """
        tail = Tail(self, thread, after, wake)
        self._watched.setdefault(thread, set()).add(tail)
        self._by_id[thread.thread_id] = thread
        try:
            tail.hinted(await self.head(thread))
            if after > tail.head:
                raise CursorAhead(f"The cursor {after} is beyond the thread's head {tail.head}.")
            yield tail
        finally:
            tails = self._watched[thread]
            tails.discard(tail)
            if not tails:
                del self._watched[thread], self._by_id[thread.thread_id]

    def lag_s(self, thread: ThreadRef) -> float | None:
        """Seconds since the thread's newest event was committed here."""
        committed = self._windows.committed_at(thread)
        return None if committed is None else self._clock.monotonic() - committed

    def _hinted(self, hint: Hint) -> None:
        if hint.about == "events":
            thread = self._by_id.get(hint.id)
            if thread is not None:
                for tail in self._watched[thread]:
                    tail.hinted(hint.seq)
        else:
            for listener in self._listeners:
                listener(hint)

    async def _poll(self) -> None:
        """Finds what lost hints did not say."""
        threads = list(self._watched)
        for start in range(0, len(threads), PAGE_ROWS_MAX):
            some = threads[start : start + PAGE_ROWS_MAX]
            try:
                heads = await self._store.heads(some)
            except StoreFailed as failure:
                self._fail(failure)
                return
            for thread, head in zip(some, heads, strict=True):
                for tail in self._watched.get(thread, ()):
                    tail.hinted(head)


class Tail:
    """One reader's place in a thread. It keeps a cursor and no events: who reads slowly falls behind, that is all."""

    def __init__(self, log: Log, thread: ThreadRef, after: int, wake: Callable[[], None]) -> None:
        self._log = log
        self.thread = thread
        self.cursor = after
        self.head = 0
        self.wake = wake

    @property
    def behind(self) -> bool:
        return self.head > self.cursor

    def hinted(self, head: int) -> None:
        if head > self.head:
            self.head = head
            self.wake()

    async def read(self, limit: int = PAGE_ROWS_MAX) -> Page:
        """The next events, possibly none; moves the cursor past them."""
        page = await self._log.read(self.thread, after=self.cursor, limit=limit)
        self.cursor = page.last
        return page


class _Pending:
    """Adjacent deltas of one part, joined when they are taken."""

    __slots__ = ("kind", "message_id", "offset", "part", "pieces", "size")

    def __init__(self, kind: type[Delta], message_id: str, part: int, offset: int, text: str, size: int) -> None:
        self.kind = kind
        self.message_id = message_id
        self.part = part
        self.offset = offset
        self.pieces = [text]
        self.size = size

    def draft(self, run_id: str, attempt: int) -> Draft:
        data = self.kind(message_id=self.message_id, part=self.part, offset=self.offset, delta="".join(self.pieces))
        return Draft(data=data, run_id=run_id, attempt=attempt)


class Outbox:
    """What one attempt has said and the log has not yet committed: first in, first out, bounded.

    `delta` and `write` return once buffered; `append` and `flush` are barriers. After a failure every call raises
    it; `on_failure` is called once, so that the agent can be stopped.
    """

    def __init__(self, log: Log, run_id: str, attempt: int) -> None:
        self._log = log
        self._run_id = run_id
        self._attempt = attempt
        self._pending: list[Draft | _Pending] = []
        self._bytes = 0  # buffered and not committed
        self._taken_bytes = 0
        self._put = self._committed = self._taken = 0  # drafts, counted from the start
        self._barriers: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._queued = False
        self._writes = 0
        self.failure: RunstoneError | None = None
        self.on_failure: Callable[[RunstoneError], None] | None = None

    async def delta(
        self, kind: type[AgentThinking | MessageDelta], message_id: str, part: int, offset: int, text: str
    ) -> None:
        """Text of one part, at most DELTA_BYTES_MAX; joins what is waiting of the same part."""
        if self.failure is not None:
            raise self.failure
        size = len(text) if text.isascii() else len(text.encode())
        last = self._pending[-1] if self._pending else None
        if (
            type(last) is _Pending
            and last.kind is kind
            and last.part == part
            and last.message_id == message_id
            and last.size + size <= DELTA_BYTES_MAX
        ):
            last.pieces.append(text)
            last.size += size
            self._count(size)
        else:
            self._add(_Pending(kind, message_id, part, offset, text, size), size + _DRAFT_BYTES)
        await self._breathe()

    async def write(self, *drafts: Draft) -> None:
        """Buffered: returns before the commit."""
        self._add_all(drafts)
        await self._breathe()

    async def append(self, *drafts: Draft) -> None:
        """A barrier: everything said before, then these, committed."""
        self._add_all(drafts)
        await self.flush()

    async def flush(self) -> None:
        """Returns when everything said so far is committed."""
        if self.failure is not None:
            raise self.failure
        if self._committed == self._put:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._barriers.append((self._put, done))
        await done

    def take(self) -> tuple[Append, int]:
        """Everything that waits, for the next commit, and its size in bytes."""
        drafts = [
            item.draft(self._run_id, self._attempt) if isinstance(item, _Pending) else item for item in self._pending
        ]
        self._pending = []
        self._queued = False
        self._taken = self._put
        self._taken_bytes = self._bytes
        return Append(self._run_id, self._attempt, drafts), self._taken_bytes

    def settle(self, outcome: RunstoneError | None) -> None:
        """What was taken is committed, or refused."""
        if isinstance(outcome, RunstoneError):
            self.fail(outcome)
            return
        self._committed = self._taken
        self._bytes -= self._taken_bytes
        self._log.release_space(self._taken_bytes)
        while self._barriers and self._barriers[0][0] <= self._committed:
            _, done = self._barriers.popleft()
            if not done.done():
                done.set_result(None)

    def fail(self, failure: RunstoneError) -> None:
        """Nothing more goes in."""
        if self.failure is not None:
            return
        self.failure = failure
        self._pending = []
        self._log.release_space(self._bytes)
        self._bytes = 0
        for _, done in self._barriers:
            if not done.done():
                done.set_exception(failure)
        self._barriers.clear()
        if self.on_failure is not None:
            self.on_failure(failure)

    def close(self) -> None:
        """The run has ended; whoever still holds it is refused."""
        self.on_failure = None
        self.fail(StaleAttempt(f"The run {self._run_id} has ended."))

    def _add_all(self, drafts: Sequence[Draft]) -> None:
        if self.failure is not None:
            raise self.failure
        sizes = [_DRAFT_BYTES + len(draft.payload()) for draft in drafts]  # too large ones are refused here, whole
        for draft, size in zip(drafts, sizes, strict=True):
            self._add(draft, size)

    def _add(self, item: Draft | _Pending, size: int) -> None:
        self._pending.append(item)
        self._put += 1
        self._count(size)
        if not self._queued:
            self._queued = True
            self._log._put(self)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._log.take_space(size)

    async def _breathe(self) -> None:
        while self.failure is None and (self._bytes >= RUN_BUFFER_BYTES_MAX or self._log.full):
            await self._log.wait_for_space()
        self._writes += 1
        if self._writes % _YIELD_EVERY == 0:
            await asyncio.sleep(0)


class _Window:
    __slots__ = ("bytes", "committed_at", "events")

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.bytes = 0
        self.committed_at = 0.0


class _Windows:
    """The newest committed events of the threads that were written last, for readers who are nearly there."""

    def __init__(self) -> None:
        self._windows: OrderedDict[ThreadRef, _Window] = OrderedDict()
        self._bytes = 0

    def add(self, thread: ThreadRef, events: list[Event], now: float) -> None:
        window = self._windows.get(thread)
        if window is None:
            window = self._windows[thread] = _Window()
        else:
            self._windows.move_to_end(thread)
            if window.events and window.events[-1].seq + 1 != events[0].seq:
                self._drop(window, len(window.events))  # somebody else wrote in between
        size = sum(len(event.wire) for event in events)
        window.events += events
        window.committed_at = now
        window.bytes += size
        self._bytes += size
        if window.bytes > WINDOW_BYTES_MAX or len(window.events) > 2 * WINDOW_EVENTS_MAX:
            self._drop(window, max(len(window.events) - WINDOW_EVENTS_MAX, len(window.events) // 2))
        while self._bytes > WINDOWS_BYTES_MAX and len(self._windows) > 1:
            _, oldest = self._windows.popitem(last=False)
            self._bytes -= oldest.bytes

    def read(self, thread: ThreadRef, after: int, limit: int) -> Page | None:
        """The events after a seq, or None if the window does not reach back to it."""
        window = self._windows.get(thread)
        if window is None or not window.events:
            return None
        start = after + 1 - window.events[0].seq
        if start < 0:
            return None
        found = window.events[start : start + limit]
        size = 0
        for index, event in enumerate(found):
            size += len(event.wire)
            if size > PAGE_BYTES_MAX and index:
                found = found[:index]
                break
        return Page(found, found[-1].seq if found else after)

    def committed_at(self, thread: ThreadRef) -> float | None:
        window = self._windows.get(thread)
        return None if window is None else window.committed_at

    def _drop(self, window: _Window, count: int) -> None:
        size = sum(len(event.wire) for event in window.events[:count])
        del window.events[:count]
        window.bytes -= size
        self._bytes -= size
