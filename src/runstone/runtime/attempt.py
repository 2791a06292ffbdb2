"""One attempt of a run: where what it says and does goes into the log, and what earlier attempts did."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import datetime, timedelta

import msgspec
from msgspec import Raw

from runstone import events as e
from runstone.clock import Clock, to_datetime
from runstone.commands import LeftBy
from runstone.events import Draft
from runstone.log import Outbox
from runstone.runtime.answers import Answers
from runstone.runtime.presence import Presence
from runstone.runtime.replay import Replay
from runstone.store import RunRow
from runstone.views import Rows

# The lists of ids that the calling code's recorded steps and actions gather, outermost first.
_gathering: ContextVar[tuple[list[str], ...]] = ContextVar("runstone.gathering", default=())


class Attempt(msgspec.Struct, kw_only=True, eq=False):
    """What the parts of a run share. `epoch` is the attempt of the root run."""

    row: RunRow
    epoch: int
    outbox: Outbox
    rows: Rows
    clock: Clock
    answers: Answers
    presence: Presence
    replay: Replay
    left_by: LeftBy | None  # what became of the root's attempt before
    task: asyncio.Task[object] | None = None  # in which the agent's function runs

    def draft(
        self,
        data: e.Data,
        *,
        metadata: Raw | None = None,
        raw: Raw | None = None,
        private: bool = False,
        content: bytes | None = None,
    ) -> Draft:
        return Draft(
            data=data,
            run_id=self.row.run_id,
            attempt=self.row.attempt,
            metadata=metadata,
            raw=raw,
            private=private,
            content=content,
        )

    def deadline(self) -> datetime:
        """When the run will be ended as timed out, if it never waits for people again."""
        left_s = max(self.presence.left_s(), 0.0)
        return to_datetime(self.clock.now_us()) + timedelta(seconds=left_s)

    @property
    def in_own_task(self) -> bool:
        """Whether the calling code is the agent's function itself, and not something that it runs side by side."""
        return asyncio.current_task() is self.task


def gathered(id: str) -> None:
    """Something was said, done, asked or called: whatever records the calling code contains it."""
    for ids in _gathering.get():
        ids.append(id)


def began_here(id: str) -> bool:
    """Whether everything that contains the calling code contains it, too."""
    return all(id in ids for ids in _gathering.get())


@contextmanager
def gathering(*, alone: bool = False) -> Iterator[list[str]]:
    """The ids of what is said, done, asked and called in the block; `alone`: and nobody outside gathers them."""
    ids: list[str] = []
    token = _gathering.set((ids,) if alone else (*_gathering.get(), ids))
    try:
        yield ids
    finally:
        with suppress(ValueError):  # a block that nobody left is closed from elsewhere, by the garbage collector
            _gathering.reset(token)
