"""The seam to a database: commit batches, read events, read rows.

A store is the only thing that knows how rows are kept. What changes them is decided elsewhere, by pure
functions: a `Command` names the facts it needs and decides, on facts read in the transaction that will carry
its decision out, which events to append. One contract suite runs on every store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeAlias

import msgspec
from msgspec import Raw

from runstone.errors import RunstoneError, StoreFailed
from runstone.events import Draft, Event, Executor, OnBusy, OnCrash
from runstone.states import FINISHED, ApprovalStatus, Status
from runstone.views import Page, Rows, ThreadRef


class RunRow(msgspec.Struct, frozen=True):
    """A run, as decisions see it."""

    run_id: str
    thread_id: str
    user_id: str
    agent: str
    status: Status
    attempt: int
    input: Raw
    metadata: Raw
    message_id: str | None
    parent_run_id: str | None
    root_run_id: str
    on_busy: OnBusy
    on_crash: OnCrash
    max_attempts: int
    timeout_s: float
    cancel_by: str | None
    cancel_reason: str | None
    cancel_deadline: str | None  # null: no cancel was asked for
    usage: Raw  # sums over all attempts
    first_seq: int
    lost: int  # attempts that died with their worker
    owner: str | None  # the worker of the newest attempt; null: nobody's, and the attempt can write nothing more

    @property
    def ended(self) -> bool:
        return self.status in FINISHED

    @property
    def thread(self) -> ThreadRef:
        return ThreadRef(self.thread_id, self.user_id)


class OpenMessage(msgspec.Struct, frozen=True):
    """A message that is still streaming, folded from what is in the log."""

    message_id: str
    parts: bytes
    length: int


class OpenAction(msgspec.Struct, frozen=True):
    action_id: str
    started_at: int
    private: bool


class Unfinished(msgspec.Struct, frozen=True):
    """An unfinished run with what it left open."""

    run: RunRow
    owned: bool = False  # a living worker has it, or its root
    messages: tuple[OpenMessage, ...] = ()
    actions: tuple[OpenAction, ...] = ()
    approvals: tuple[str, ...] = ()  # ids of open ones
    said: tuple[str, ...] = ()  # ids of messages that a later attempt supersedes
    children: tuple[Unfinished, ...] = ()  # unfinished, in the order they were called


class ApprovalRow(msgspec.Struct, frozen=True):
    """A question to a person, as decisions see it."""

    approval_id: str
    run_id: str
    kind: Literal["approval", "question"]
    status: ApprovalStatus
    value: Raw | None
    expires_at: int


class KeyRow(msgspec.Struct, frozen=True):
    """A caller's own id of what it made, with the digest of the request that made it."""

    user_id: str
    kind: str  # thread or run
    key: str
    digest: str
    made: str  # the id of the thread or run
    thread_id: str  # the key goes when the thread goes


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """The facts a command decides on. `user_id` is the owner in every look-up; null only for the runtime itself."""

    user_id: str | None = None
    thread_id: str | None = None
    thread_key: str | None = None
    run_id: str | None = None
    key: tuple[str, str] | None = None  # kind, key
    thread_runs: bool = False  # the thread's unfinished root runs
    open_items: bool = False  # with what they left open
    root: bool = False  # and its root's row
    child: str | None = None  # the id of a run that `run_id` called
    worker: str | None = None
    owned: bool = False  # the root runs that the worker owns
    claim: tuple[frozenset[str], int] | None = None  # agents, at most so many
    stopping: int = 0  # runs whose cancel is past its deadline, at most so many
    approval_id: str | None = None
    expired: int = 0  # open approvals past their time, at most so many


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is true in the transaction; null where there is no such row, or it is not the user's."""

    now_us: int
    thread: ThreadRef | None = None
    run: Unfinished | None = None  # also when it has ended
    thread_runs: tuple[Unfinished, ...] = ()  # root runs, in the order they were queued
    key: KeyRow | None = None
    root: RunRow | None = None
    owned: tuple[str, ...] = ()  # ids
    child: Unfinished | None = None
    beat: int | None = None  # of the worker; null: it is dead
    claimable: tuple[Unfinished, ...] = ()
    stopping: tuple[Unfinished, ...] = ()
    approval: ApprovalRow | None = None
    expired: tuple[tuple[ThreadRef, ApprovalRow], ...] = ()


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a command appends, per thread and in order, and what it answers."""

    appends: Sequence[tuple[ThreadRef, Sequence[Draft]]] = ()
    keys: Sequence[KeyRow] = ()
    owners: Mapping[str, str | None] = {}  # of root runs, by id
    workers: Mapping[str, int | None] = {}  # beats, by id; null buries the worker
    result: Any = None


class Command(msgspec.Struct, frozen=True, kw_only=True):
    """Read facts, decide, append: in one transaction. `decide` is pure and refuses by raising RunstoneError."""

    need: Need
    decide: Callable[[Facts], Decision]


class Append(msgspec.Struct, frozen=True):
    """Events of one attempt of a run; refused with `StaleAttempt` once the run has ended, moved on or been let go.

    `epoch` is the attempt of the root run: a child is its root's worker's, and goes with it.
    """

    run_id: str
    attempt: int
    epoch: int
    drafts: Sequence[Draft]


class RecordedAction(msgspec.Struct, frozen=True):
    """A tool call of a run, as the log has it."""

    action_id: str
    tool: str
    executor: Executor
    input: Raw
    key: str | None
    beside: bool  # made in another task than the run's own
    status: Literal["pending", "success", "error", "interrupted"]
    output: Raw | None
    error: Raw | None
    retry_of: str | None
    inner: Raw | None  # ids of what was done inside


class RecordedApproval(msgspec.Struct, frozen=True):
    approval_id: str
    run_id: str
    action_id: str | None
    kind: Literal["approval", "question"]
    prompt: str
    input: Raw
    key: str | None
    status: ApprovalStatus
    value: Raw | None
    by: str | None
    comment: str | None
    expires_at: int


class RecordedChild(msgspec.Struct, frozen=True):
    run_id: str
    agent: str
    input: Raw
    key: str | None
    status: Status
    output: Raw | None
    error: Raw | None


class RecordedStep(msgspec.Struct, frozen=True):
    key: str
    output: Raw
    inner: Raw


class Record(msgspec.Struct, frozen=True):
    """What earlier attempts of a run did, in the order they began it; and for how long they ran, without waiting."""

    steps: Sequence[RecordedStep] = ()
    actions: Sequence[RecordedAction] = ()
    approvals: Sequence[RecordedApproval] = ()
    children: Sequence[RecordedChild] = ()
    ran_us: int = 0


Span: TypeAlias = tuple[int, int]  # microseconds, from and to


def ran_us(attempts: Sequence[Span], waits: Sequence[Span]) -> int:
    """How long attempts ran, without the time in which they waited for people."""
    total = 0
    for start, end in attempts:
        total += end - start
        reached = start
        for wait_start, wait_end in sorted(waits):
            from_, to = max(wait_start, reached), min(wait_end, end)
            if to > from_:
                total -= to - from_
                reached = to
    return total


ToStop: TypeAlias = Literal["cancel", "ended"]
Entry: TypeAlias = "Append | Command"


class Committed(msgspec.Struct, frozen=True):
    """What a batch has become: per entry its result or its refusal, per thread its new events."""

    outcomes: Sequence[Any | RunstoneError]
    events: dict[ThreadRef, list[Event]]
    seconds: float  # that the transaction took


class Store(Protocol):
    """The contract every implementation keeps.

    - `commit` is one transaction: all of the batch is durable when it returns, or none of it. An entry that is
      refused hurts only itself. A `StoreFailed` is for ever: the caller must stop acknowledging and showing.
    - `seq` is gapless per thread and `pos` per shard, in the order of commit.
    - Calls of `commit` are made one at a time, by the log.
    - What only one process can hold has no living worker when it is opened: whatever is found running is nobody's.
    - Reads are bounded pages, see only what is committed, and end before they return. One that fails tells
      `on_failure` before it raises StoreFailed, whoever asked: a disk that cannot be read fails like one that
      cannot be written.
    """

    on_failure: Callable[[StoreFailed], None]

    @property
    def generation(self) -> str:
        """The name of this history; a restore changes it."""
        ...

    @property
    def rows(self) -> Rows: ...

    async def open(self) -> None:
        """Raises StoreLocked, StoreTooNew, StoreOutdated or BadConfig."""
        ...

    async def close(self) -> None:
        """Lets go of everything, also where it raises StoreFailed. Safe twice, and before `open`."""
        ...

    async def commit(self, batch: Sequence[Entry]) -> Committed: ...

    async def events(self, thread: ThreadRef, *, after: int, limit: int, bytes_max: int) -> Page: ...

    async def events_before(self, thread: ThreadRef, *, before: int, limit: int, bytes_max: int) -> Page: ...

    async def heads(self, threads: Sequence[ThreadRef]) -> list[int]:
        """The newest seq of each thread; 0 where there is none."""
        ...

    async def feed_heads(self, user_ids: Sequence[str]) -> list[int]:
        """The pos of the newest change of each user's threads; 0 where there is none. It never falls."""
        ...

    async def run_row(self, run_id: str) -> RunRow | None:
        """A run as the runtime needs it."""
        ...

    async def to_stop(self, run_ids: Sequence[str]) -> dict[str, ToStop]:
        """Which of these runs must not go on: a cancel was asked for, or they have ended."""
        ...

    async def record(self, run_id: str) -> Record:
        """What a run has done so far."""
        ...

    async def resolved(self, approval_ids: Sequence[str]) -> list[RecordedApproval]:
        """Which of these approvals are no longer open, as the runs that wait for them need them."""
        ...

    async def beats(self) -> dict[str, int]:
        """The beats of all living workers, by id."""
        ...
