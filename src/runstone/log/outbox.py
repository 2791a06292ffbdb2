"""What an attempt of a run says, on its way into the log."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from runstone.errors import RunstoneError, StaleAttempt
from runstone.events import AgentThinking, Delta, Draft, MessageDelta
from runstone.limits import DELTA_BYTES_MAX, RUN_BUFFER_BYTES_MAX
from runstone.log.space import Space
from runstone.store import Append, RunRow

_YIELD_EVERY = 32  # buffered writes between two turns of the loop, so that one run cannot hold it
_DRAFT_BYTES = 256  # what a draft that is not text counts in the buffer


class Outbox:
    """What one attempt has said and the log has not yet committed: first in, first out, bounded.

    `delta` and `write` return once buffered; `append` and `flush` are barriers. After a failure every call raises
    it; `on_failure` is called once, so that the agent can be stopped.
    """

    def __init__(self, space: Space, enqueue: Callable[[Outbox], None], run: RunRow, epoch: int) -> None:
        self._space = space
        self._enqueue = enqueue
        self._run_id = run.run_id
        self._attempt = run.attempt
        self._epoch = epoch
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
        if self.put(kind, message_id, part, offset, text):
            await self.pause()

    def put(self, kind: type[AgentThinking | MessageDelta], message_id: str, part: int, offset: int, text: str) -> bool:
        """What `delta` does, without waiting: this is done once a token. True: `pause` before saying more."""
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
        return self._crowded()

    async def pause(self) -> None:
        """Waits for room, and lets others have their turn."""
        while self.failure is None and (self._bytes >= RUN_BUFFER_BYTES_MAX or self._space.full):
            await self._space.wait()
        await asyncio.sleep(0)

    async def write(self, *drafts: Draft) -> None:
        """Buffered: returns before the commit."""
        self._add_all(drafts)
        if self._crowded():
            await self.pause()

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
        return Append(self._run_id, self._attempt, self._epoch, drafts), self._taken_bytes

    def settle(self, outcome: RunstoneError | None) -> None:
        """What was taken is committed, or refused."""
        if isinstance(outcome, RunstoneError):
            self.fail(outcome)
            return
        if self.failure is not None:
            return  # closed while the commit was under way; its room was given back then
        self._committed = self._taken
        self._bytes -= self._taken_bytes
        self._space.release(self._taken_bytes)
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
        self._space.release(self._bytes)
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
        if self.failure is not None:
            return  # by the enqueueing of the draft before it
        self._pending.append(item)
        self._put += 1
        self._count(size)
        if not self._queued:
            self._queued = True
            self._enqueue(self)

    def _count(self, size: int) -> None:
        self._bytes += size
        self._space.take(size)

    def _crowded(self) -> bool:
        self._writes += 1
        return self._writes % _YIELD_EVERY == 0 or self._bytes >= RUN_BUFFER_BYTES_MAX or self._space.full


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
