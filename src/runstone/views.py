"""What may be read of a store: records and reads that carry their owner, for everyone above the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from runstone.events import Event
from runstone.resources import Action, Approval, Listing, Message, Run, Thread
from runstone.values import Json


class ThreadRef(msgspec.Struct, frozen=True):
    """A thread that was looked up together with its owner; whoever holds one may read its events."""

    thread_id: str
    user_id: str


class Page(msgspec.Struct, frozen=True):
    """Events in order. `last` is the last seq looked at: filtered ones count."""

    events: Sequence[Event]
    last: int


class Changed(msgspec.Struct, frozen=True):
    """A thread of a feed as it was when it was read; null where it is deleted. `pos` is its newest change."""

    pos: int
    thread_id: str
    thread: Thread | None


class FeedPage(msgspec.Struct, frozen=True):
    """Changed threads, each once, in the order of their newest changes, all of one moment.

    `last` is the last pos looked at, `head` that of the user's newest change.
    """

    items: Sequence[Changed]
    last: int
    head: int


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list; `cursor` is what an earlier page of the same list returned."""

    limit: int
    cursor: str | None = None
    descending: bool
    status: str | None = None
    role: str | None = None
    agent: str | None = None
    thread_id: str | None = None
    run_id: str | None = None
    children: bool = False
    superseded: bool = False
    before_seq: int | None = None  # of messages and actions
    private: bool = False  # what private tools took and gave, for the thread's own agents


class Rows(Protocol):
    """Reads of what is committed. Every one looks up with the owner; what is not the user's is not there."""

    async def thread(self, user_id: str, thread_id: str) -> Thread | None: ...
    async def run(self, user_id: str, run_id: str) -> Run | None: ...
    async def threads(self, user_id: str, query: ListQuery) -> Listing[Thread]: ...
    async def feed(self, user_id: str, *, after: int, limit: int, deleted_after: int) -> FeedPage:
        """The threads that changed after a pos, at most so many; of deleted ones those deleted after another pos."""
        ...

    async def runs(self, user_id: str, query: ListQuery) -> Listing[Run]: ...
    async def messages(self, user_id: str, query: ListQuery) -> Listing[Message]: ...
    async def actions(self, user_id: str, query: ListQuery) -> Listing[Action]: ...
    async def message(self, user_id: str, message_id: str) -> Message | None: ...
    async def approvals(self, user_id: str, query: ListQuery) -> Listing[Approval]:
        """Those of a run with its descendants', or of a thread, or all; those of deleted threads are not there."""
        ...

    async def approval(self, user_id: str, approval_id: str) -> Approval | None: ...
    async def state(self, user_id: str, thread_id: str, *, private: bool) -> tuple[dict[str, Json], int]:
        """Thread state by key, and the head it was read at; private keys are for the thread's agents."""
        ...

    async def family(self, user_id: str, run_id: str) -> frozenset[str]:
        """A run and its descendants, by id."""
        ...

    async def statuses(self) -> dict[str, int]:
        """How many unfinished runs there are, by status."""
        ...
