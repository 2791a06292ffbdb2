"""Commands and drafts as tests need them, short to write."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.errors import RunstoneError
from runstone.events import Draft
from runstone.store import Append, Command, Committed, Decision, Entry, Facts, Need, RunRow, Store
from runstone.values import Json
from runstone.views import ListQuery, ThreadRef

AGENT = "agent"
AGENTS = frozenset({AGENT})


def new_run(
    input: Json = None,
    *,
    agent: str = AGENT,
    message: str | None = None,
    on_busy: e.OnBusy = "enqueue",
    key: c.Key | None = None,
    metadata: dict[str, Json] | None = None,
) -> c.NewRun:
    return c.NewRun(
        agent=agent,
        input=values.raw(input),
        message=None if message is None else values.raw([{"type": "text", "text": message}]),
        metadata=None if metadata is None else values.raw(metadata),
        on_busy=on_busy,
        key=key,
        on_crash="resume",
        max_attempts=3,
        timeout_s=60,
    )


def query(thread_id: str | None = None, limit: int = 100, *, descending: bool = False, **more: Any) -> ListQuery:
    return ListQuery(thread_id=thread_id, limit=limit, descending=descending, **more)


def broken(error: Exception) -> Command:
    """A command whose decision raises."""

    def decide(_facts: Facts) -> Decision:
        raise error

    return Command(need=Need(), decide=decide)


def looking(need: Need, look: Callable[[Facts], Any]) -> Command:
    """A command that writes nothing and answers what it saw."""
    return Command(need=need, decide=lambda facts: Decision(result=look(facts)))


def plain(thread: ThreadRef, *data: e.Data) -> Command:
    """A command that appends events which are not a run's."""
    return Command(need=Need(), decide=lambda _facts: Decision(appends=[(thread, [Draft(data=one) for one in data])]))


def append(run: RunRow, *data: e.Data, attempt: int | None = None, content: bytes | None = None) -> Append:
    """Events of a run's attempt; `content` goes with a message that ends."""
    number = run.attempt if attempt is None else attempt
    drafts = [
        Draft(
            data=one,
            run_id=run.run_id,
            attempt=number,
            content=content if isinstance(one, e.MessageCompleted) else None,
        )
        for one in data
    ]
    return Append(run.run_id, number, number, drafts)


def fence(run: RunRow, attempt: int | None = None) -> c.Fence:
    number = run.attempt if attempt is None else attempt
    return c.Fence(number, number)


def started(message_id: str) -> e.MessageStarted:
    return e.MessageStarted(message_id=message_id, role="assistant")


def said(message_id: str, text: str, *, offset: int = 0, part: int = 0) -> e.MessageDelta:
    return e.MessageDelta(message_id=message_id, part=part, offset=offset, delta=text)


def thought(message_id: str, text: str, *, offset: int = 0, part: int = 0) -> e.AgentThinking:
    return e.AgentThinking(message_id=message_id, part=part, offset=offset, delta=text)


def executing(action_id: str, tool: str = "tool", input: Json = None) -> e.ToolExecuting:
    return e.ToolExecuting(action_id=action_id, tool=tool, input=values.raw(input), executor="server")


def completed(action_id: str, output: Json = None) -> e.ToolCompleted:
    return e.ToolCompleted(action_id=action_id, status="success", output=values.raw(output), duration_ms=1)


def asking(approval_id: str, expires_at: str = "2099-01-01T00:00:00.000000Z", **more: Any) -> e.ApprovalRequested:
    """A question to a person; it is an approval unless `more` says otherwise."""
    given: dict[str, Any] = {"kind": "approval", "prompt": "May I?", "input": values.raw(None)} | more
    input_hash = values.digest(bytes(given["input"]))
    return e.ApprovalRequested(approval_id=approval_id, input_hash=input_hash, expires_at=expires_at, **given)


def custom(name: str = "note", value: Json = None) -> e.Custom:
    return e.Custom(name=name, value=values.raw(value))


def usage(**numbers: Any) -> e.Usage:
    given: dict[str, Any] = {"model": "m", "input_tokens": 1, "output_tokens": 1} | numbers
    return e.Usage(**given)


class Shop:
    """A store with short words for what tests do over and over."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._workers: set[str] = set()

    async def commit(self, *batch: Entry) -> Committed:
        return await self.store.commit(batch)

    async def outcomes(self, *batch: Entry) -> list[Any]:
        """What became of each entry: its result or its refusal."""
        return list((await self.commit(*batch)).outcomes)

    async def ask(self, entry: Entry) -> Any:
        """The result of one entry; raises its refusal."""
        (outcome,) = (await self.commit(entry)).outcomes
        if isinstance(outcome, RunstoneError):
            raise outcome
        return outcome

    async def thread(self, user_id: str = "alice", **more: Any) -> ThreadRef:
        made: c.Made = await self.ask(c.create_thread(user_id, c.NewThread(**more)))
        return ThreadRef(made.id, user_id)

    async def queued(self, thread: ThreadRef, **more: Any) -> str:
        made: c.Made = await self.ask(c.start_run(thread.user_id, new_run(**more), thread_id=thread.thread_id))
        return made.id

    async def worker(self, worker: str = "worker") -> str:
        """A living worker."""
        if worker not in self._workers:
            self._workers.add(worker)
            await self.ask(c.beat(worker, first=True))
        return worker

    async def claim(self, limit: int = 100, agents: frozenset[str] = AGENTS, *, worker: str = "worker") -> list[RunRow]:
        return [claimed.run for claimed in await self.claimed(limit, agents, worker=worker)]

    async def claimed(
        self, limit: int = 100, agents: frozenset[str] = AGENTS, *, worker: str = "worker"
    ) -> list[c.Claimed]:
        started: list[c.Claimed]
        started, _ = await self.ask(c.claim_runs(agents, limit, await self.worker(worker)))
        return started

    async def running(self, thread: ThreadRef | None = None, user_id: str = "alice", **more: Any) -> RunRow:
        """A run under way, in a thread of its own if none is given."""
        run_id = await self.queued(thread or await self.thread(user_id), **more)
        rows = await self.claim()
        return next(row for row in rows if row.run_id == run_id)

    async def end(self, run: RunRow, output: Json = None) -> str:
        ended: str = await self.ask(c.end_run(run.run_id, c.Completed(values.raw(output)), fence(run)))
        return ended

    async def events(self, thread: ThreadRef, after: int = 0) -> list[e.Event]:
        """All events of a thread, page by page."""
        found: list[e.Event] = []
        while True:
            page = await self.store.events(thread, after=after, limit=1000, bytes_max=1 << 20)
            if not page.events:
                return found
            found += page.events
            after = page.last

    async def types(self, thread: ThreadRef, after: int = 0) -> list[str]:
        return [event.type for event in await self.events(thread, after)]


def key(text: str, digest: str = "digest") -> c.Key:
    return c.Key(text, digest)


def shown(event: e.Event) -> dict[str, Any]:
    """An event's envelope, decoded."""
    found = values.decode(event.wire)
    assert isinstance(found, dict)
    return found


def datas(events: Sequence[e.Event], *types: str) -> list[Any]:
    """The data of the events of these types."""
    return [shown(event)["data"] for event in events if event.type in types]
