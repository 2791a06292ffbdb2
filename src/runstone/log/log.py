"""Appends by group commit, then hints; reads, and wakes who tails."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from runstone.broker import Broker, Hint
from runstone.clock import Clock
from runstone.errors import CursorAhead, NotFound, RunstoneError, StoreFailed
from runstone.events import Event
from runstone.failpoints import hit
from runstone.limits import BATCH_BYTES_MAX, BATCH_EVENTS_MAX, FEED_ROWS_MAX, PAGE_BYTES_MAX, PAGE_ROWS_MAX
from runstone.log.feed import Feeds, FeedTail
from runstone.log.outbox import Outbox
from runstone.log.space import Space
from runstone.log.tail import Tail
from runstone.log.windows import Windows
from runstone.metrics import Metrics
from runstone.projection import FEED
from runstone.service import Tasks, every
from runstone.states import TERMINAL_EVENTS
from runstone.store import Command, Committed, Entry, Record, RecordedApproval, RunRow, Store, ToStop
from runstone.views import FeedPage, Page, Rows, ThreadRef

logger = structlog.get_logger(__name__)

POLL_S = 1.0  # how late an event may be when its hint was lost


class Log:
    """One per process. `start` it before use; after a `StoreFailed` it acknowledges and shows nothing more."""

    def __init__(self, store: Store, broker: Broker, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        store.on_failure = self._fail
        self._broker = broker
        self._clock = clock
        self._metrics = metrics
        self._tasks = Tasks("log", on_crash=self.crashed)
        self._ready: deque[Outbox | tuple[Command, asyncio.Future[Any]]] = deque()
        self._committing: Sequence[Outbox | asyncio.Future[Any]] = ()  # who waits for the commit under way
        self._wakeup = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._space = Space(metrics)
        self._windows = Windows()
        self._watched: dict[ThreadRef, set[Tail]] = {}
        self._by_id: dict[str, ThreadRef] = {}
        self._feeds = Feeds(self._read_feed, store.feed_heads)
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
        try:
            await self._store.close()
        except StoreFailed as failure:
            self._fail(failure)

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

    def outbox(self, run: RunRow, epoch: int) -> Outbox:
        """Where one attempt of a run says what it says; `epoch` is the attempt of its root."""
        return Outbox(self._space, self._put, run, epoch)

    def _put(self, item: Outbox | tuple[Command, asyncio.Future[Any]]) -> None:
        if self.failure is not None:  # of a run that was silent when the store failed
            self._tell(item, self.failure)
            return
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
        self._committing = owners
        try:
            committed = await self._store.commit(entries)
        except StoreFailed as failure:
            self._fail(failure)
            return
        if self.failure is not None:
            return  # whether it was committed is not known to anyone who was told of the failure
        self._show(committed)
        self._committing = ()
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
        moved: set[str] = set()  # users some of whose threads are others now
        hit("before_hint")
        for thread, events in committed.events.items():
            self._windows.add(thread, events, now)
            self._broker.publish(Hint("events", thread.thread_id, events[-1].seq))
            if not FEED.isdisjoint([event.type for event in events]):  # workers, too, are told of these only
                self._tell_workers(events)
                moved.add(thread.user_id)
            count += len(events)
        for user_id in moved:
            self._broker.publish(Hint("feed", user_id))
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
            elif event.type == "approval_resolved":
                self._broker.publish(Hint("answer", event.run_id or ""))
                self._broker.publish(Hint("work"))  # of an owner that is gone
            elif event.type in TERMINAL_EVENTS:
                self._broker.publish(Hint("ended", event.run_id or ""))

    def _fail(self, failure: StoreFailed) -> None:
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
        for item in (*self._committing, *self._ready):
            self._tell(item, failure)
        self._ready.clear()
        self._idle.set()
        self._space.release(0)  # who waits for room is told, too
        for tails in self._watched.values():
            for tail in tails:
                tail.wake()
        self._feeds.wake()

    def _tell(
        self, item: Outbox | tuple[Command, asyncio.Future[Any]] | asyncio.Future[Any], failure: StoreFailed
    ) -> None:
        if isinstance(item, Outbox):
            item.settle(failure)
            return
        future = item[1] if isinstance(item, tuple) else item
        if not future.done():
            future.set_exception(failure)

    def crashed(self, error: BaseException) -> None:
        """A service that the process cannot do without has died: better no server than half a one."""
        self._fail(StoreFailed(f"A service died: {type(error).__name__}: {error}"))

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

    async def to_stop(self, run_ids: Sequence[str]) -> dict[str, ToStop]:
        """Which of these runs must not go on."""
        return await self._store.to_stop(run_ids)

    async def record(self, run_id: str) -> Record:
        """What a run has done so far."""
        return await self._store.record(run_id)

    async def resolved(self, approval_ids: Sequence[str]) -> list[RecordedApproval]:
        """Which of these approvals are no longer open."""
        return await self._store.resolved(approval_ids)

    async def beats(self) -> dict[str, int]:
        """The beats of all living workers, by id."""
        return await self._store.beats()

    async def read(self, thread: ThreadRef, *, after: int, limit: int = PAGE_ROWS_MAX) -> Page:
        """Events after a seq: those in memory, or one page from the store."""
        self._check()
        page = self._windows.read(thread, after, limit)
        if page is None:
            page = await self._store.events(thread, after=after, limit=limit, bytes_max=PAGE_BYTES_MAX)
        return page

    def _read_now(self, thread: ThreadRef, after: int, limit: int) -> Page | None:
        return None if self.failure is not None else self._windows.read(thread, after, limit)

    async def _read_after(self, thread: ThreadRef, after: int, limit: int) -> Page:
        return await self.read(thread, after=after, limit=limit)

    async def read_before(self, thread: ThreadRef, *, before: int, limit: int) -> Page:
        """The events right below a seq, ascending."""
        self._check()
        return await self._store.events_before(thread, before=before, limit=limit, bytes_max=PAGE_BYTES_MAX)

    @asynccontextmanager
    async def tail(self, thread: ThreadRef, *, after: int, wake: Callable[[], None]) -> AsyncIterator[Tail]:
        """Follows a thread while the context is open, see `follow`."""
        tail = await self.follow(thread, after=after, wake=wake)
        try:
            yield tail
        finally:
            self.leave(tail)

    async def follow(self, thread: ThreadRef, *, after: int, wake: Callable[[], None]) -> Tail:
        """Follows a thread until `leave`: `wake` is called whenever there may be something to read.

        Subscribes first and looks at the head then: the other way round leaves a gap. Raises CursorAhead.
        """
        tail = Tail(self._read_after, self._read_now, thread, after, wake)
        self._watched.setdefault(thread, set()).add(tail)
        self._by_id[thread.thread_id] = thread
        try:
            tail.hinted(await self.head(thread))
            if after > tail.head:
                raise CursorAhead(f"The cursor {after} is beyond the thread's head {tail.head}.")
        except BaseException:
            self.leave(tail)
            raise
        return tail

    def leave(self, tail: Tail) -> None:
        """The tail is woken no more; safe twice."""
        tails = self._watched.get(tail.thread)
        if tails is not None:
            tails.discard(tail)
            if not tails:
                del self._watched[tail.thread], self._by_id[tail.thread.thread_id]

    @asynccontextmanager
    async def feed(self, user_id: str, *, after: int | None, wake: Callable[[], None]) -> AsyncIterator[FeedTail]:
        """Follows the changes of a user's threads while the context is open, see `follow_feed`."""
        tail = await self.follow_feed(user_id, after=after, wake=wake)
        try:
            yield tail
        finally:
            self.leave_feed(tail)

    async def follow_feed(self, user_id: str, *, after: int | None, wake: Callable[[], None]) -> FeedTail:
        """Follows them until `leave_feed`: after a pos, or anew with all threads there are. Raises CursorAhead."""
        self._check()
        return await self._feeds.follow(user_id, after=after, wake=wake)

    def leave_feed(self, tail: FeedTail) -> None:
        """The tail is woken no more; safe twice."""
        self._feeds.leave(tail)

    async def _read_feed(self, user_id: str, after: int, deleted_after: int) -> FeedPage:
        self._check()
        return await self.rows.feed(user_id, after=after, limit=FEED_ROWS_MAX, deleted_after=deleted_after)

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
        elif hint.about == "feed":
            self._feeds.hinted(hint.id)
        else:
            for listener in self._listeners:
                listener(hint)

    async def _poll(self) -> None:
        """Finds what lost hints did not say."""
        await self._feeds.poll()
        threads = list(self._watched)
        for start in range(0, len(threads), PAGE_ROWS_MAX):
            some = threads[start : start + PAGE_ROWS_MAX]
            heads = await self._store.heads(some)
            for thread, head in zip(some, heads, strict=True):
                for tail in self._watched.get(thread, ()):
                    tail.hinted(head)
