"""Runs, as workers see them: claimed, called by others, let go of, ended; and the life of the workers themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import msgspec
from msgspec import UNSET, Raw

from runstone import events as e
from runstone import values
from runstone.commands.ends import Cancelled, Failed, Outcome, ending, interrupted
from runstone.errors import StaleAttempt, StaleWorker
from runstone.events import Draft
from runstone.ids import new_id
from runstone.store import (
    Command,
    Decision,
    Facts,
    Need,
    RunRow,
    Unfinished,
)

LeftBy = Literal["lost", "released"]  # what became of an attempt that is followed by another


class NewChild(msgspec.Struct, frozen=True, kw_only=True):
    """A run that another one calls, with its agent's options as they are now."""

    agent: str
    input: Raw
    key: str | None
    max_attempts: int
    timeout_s: float


class Claimed(msgspec.Struct, frozen=True):
    """A run whose next attempt has begun; `reason` says what became of the one before, if there was one."""

    run: RunRow
    reason: LeftBy | None


class Fence(msgspec.Struct, frozen=True):
    """An attempt, and that of its root: for a root the same."""

    attempt: int
    epoch: int


def beat(worker: str, *, first: bool = False) -> Command:
    """A worker's sign of life; its first one is its registration. Refuses with StaleWorker once it is buried."""

    def decide(facts: Facts) -> Decision:
        if not first:
            _living(facts, worker)
        return Decision(workers={worker: (facts.beat or 0) + 1})

    return Command(need=Need(worker=worker), decide=decide)


def bury(worker: str, seen: int) -> Command:
    """Declares a worker dead whose beat has stood still; its runs may be claimed then. Result: whether it is."""

    def decide(facts: Facts) -> Decision:
        if facts.beat is not None and facts.beat != seen:
            return Decision(result=False)
        return Decision(workers={worker: None}, result=True)

    return Command(need=Need(worker=worker), decide=decide)


def claim_runs(agents: frozenset[str], limit: int, worker: str) -> Command:
    """Starts the next attempt of runs that wait for one, and ends those that are to have none.

    Result: the started ones, as `Claimed`, and how many there were to claim. Refuses with StaleWorker.
    """

    def decide(facts: Facts) -> Decision:
        _living(facts, worker)
        appends, started = [], []
        for item in facts.claimable:
            outcome = _no_further_attempt(item.run)
            if outcome is not None:
                appends.append((item.run.thread, ending(facts, item, outcome, attempt=None)))
                continue
            run = msgspec.structs.replace(item.run, status="running", attempt=item.run.attempt + 1, owner=worker)
            reason = _left_by(item.run)
            started.append(Claimed(run, reason))
            appends.append((run.thread, _next_attempt(facts, item, reason, worker)))
        owners = {claimed.run.run_id: worker for claimed in started}
        return Decision(appends=appends, owners=owners, result=(started, len(facts.claimable)))

    return Command(need=Need(claim=(agents, limit), worker=worker, open_items=True), decide=decide)


def release_runs(worker: str) -> Command:
    """Takes a worker's leave: its attempts can write nothing more, and another may take their runs up at once.

    Result: the ids of those runs.
    """

    def decide(facts: Facts) -> Decision:
        return Decision(owners=dict.fromkeys(facts.owned), workers={worker: None}, result=list(facts.owned))

    return Command(need=Need(worker=worker, owned=True), decide=decide)


def call_agent(parent: RunRow, epoch: int, new: NewChild, *, child: str | None, reason: LeftBy) -> Command:
    """Starts a run that a run calls, or, where an earlier attempt began that call, its next attempt.

    `reason` says what became of the attempts of an earlier epoch. Result: the child's `RunRow`, which may have ended.
    Refuses with StaleAttempt.
    """

    def decide(facts: Facts) -> Decision:
        caller = _own(facts, parent.run_id, Fence(parent.attempt, epoch)).run
        if facts.child is not None:
            item = facts.child
            if item.run.ended:
                return Decision(result=item.run)
            if item.run.cancel_deadline is not None:
                run = msgspec.structs.replace(item.run, status="cancelled")
                return Decision(appends=[(run.thread, ending(facts, item, Cancelled(), attempt=None))], result=run)
            run = msgspec.structs.replace(item.run, status="running", attempt=item.run.attempt + 1)
            return Decision(appends=[(run.thread, _next_attempt(facts, item, reason, _worker(facts)))], result=run)
        run_id = new_id("run")
        queued = e.RunQueued(
            agent=new.agent,
            input=new.input,
            on_busy="enqueue",
            key=UNSET if new.key is None else new.key,
            parent_run_id=caller.run_id,
            root_run_id=caller.root_run_id,
            by=caller.agent,
            on_crash="resume",  # it goes with its root
            max_attempts=new.max_attempts,
            timeout_s=new.timeout_s,
        )
        started = e.AgentStarted(agent=new.agent, worker=_worker(facts))
        run = RunRow(
            run_id=run_id,
            thread_id=caller.thread_id,
            user_id=caller.user_id,
            agent=new.agent,
            status="running",
            attempt=1,
            input=new.input,
            metadata=values.raw({}),
            message_id=None,
            parent_run_id=caller.run_id,
            root_run_id=caller.root_run_id,
            on_busy="enqueue",
            on_crash="resume",
            max_attempts=new.max_attempts,
            timeout_s=new.timeout_s,
            cancel_by=None,
            cancel_reason=None,
            cancel_deadline=None,
            usage=values.raw({}),
            first_seq=caller.first_seq,  # its history is its caller's
            lost=0,
            owner=None,
        )
        drafts = [Draft(data=queued, run_id=run_id), Draft(data=started, run_id=run_id, attempt=1)]
        return Decision(appends=[(run.thread, drafts)], result=run)

    need = Need(run_id=parent.run_id, root=True, child=child, open_items=child is not None)
    return Command(need=need, decide=decide)


def end_run(run_id: str, outcome: Outcome, fence: Fence, *, over_its_head: bool = False) -> Command:
    """Ends a run and closes what it left open, whatever it is. Result: the type of its terminal event.

    After a cancel was asked for, the end is `agent_cancelled`. Over the head of an agent that does not stop, the end is
    not its attempt's own. Refuses with StaleAttempt.
    """

    def decide(facts: Facts) -> Decision:
        item, thread = _own(facts, run_id, fence), facts.thread
        assert thread is not None
        drafts = ending(facts, item, outcome, attempt=None if over_its_head else fence.attempt)
        return Decision(appends=[(thread, drafts)], result=e.TYPE_OF[type(drafts[-1].data)])

    return Command(need=Need(run_id=run_id, root=True, open_items=True), decide=decide)


def end_stopping(limit: int) -> Command:
    """Ends runs whose cancel is past its deadline. Result: their ids, at most so many."""

    def decide(facts: Facts) -> Decision:
        appends = [(item.run.thread, ending(facts, item, Cancelled(), attempt=None)) for item in _outermost(facts)]
        return Decision(appends=appends, result=[item.run.run_id for item in facts.stopping])

    return Command(need=Need(stopping=limit, open_items=True), decide=decide)


def _living(facts: Facts, worker: str) -> None:
    if facts.beat is None:
        raise StaleWorker(f"The worker {worker} was taken for dead: its runs may have been claimed by others.")


def _own(facts: Facts, run_id: str, fence: Fence) -> Unfinished:
    """The run, of an attempt that owns it: it and its root's are the newest, and nobody has let go of them."""
    item, root = facts.run, facts.root
    if item is None or root is None:
        raise StaleAttempt(f"The run {run_id} is gone.")
    run = item.run
    if run.ended or root.owner is None or Fence(run.attempt, root.attempt) != fence:
        raise StaleAttempt(f"Attempt {fence.attempt} of {run_id} no longer owns its run, which is {run.status}.")
    return item


def _worker(facts: Facts) -> str:
    assert facts.root is not None
    assert facts.root.owner is not None
    return facts.root.owner


def _left_by(run: RunRow) -> LeftBy | None:
    if not run.attempt:
        return None
    return "released" if run.owner is None else "lost"


def _no_further_attempt(run: RunRow) -> Outcome | None:
    """How a run ends that is to have no further attempt."""
    if run.cancel_deadline is not None:
        return Cancelled()
    if not run.attempt:
        return None
    if run.on_crash == "fail":
        return Failed("WorkerLost", "The process that ran this is gone; start the run again.", retryable=True)
    lost = run.lost + (_left_by(run) == "lost")
    if lost >= run.max_attempts:
        return Failed("MaxAttempts", f"{lost} attempts died with the process that ran them.")
    return None


def _next_attempt(facts: Facts, item: Unfinished, reason: LeftBy | None, worker: str) -> list[Draft]:
    """Closes what the attempt before left under way, and starts the next one. Open approvals stay open."""
    run = item.run
    drafts: list[Draft] = []
    if run.attempt:
        drafts += interrupted(facts, item)
        drafts.append(Draft(data=e.AttemptSuperseded(attempt=run.attempt, reason=reason or "lost", messages=item.said)))
    drafts.append(Draft(data=e.AgentStarted(agent=run.agent, worker=worker), attempt=run.attempt + 1))
    for draft in drafts:
        draft.run_id = run.run_id
    return drafts


def _outermost(facts: Facts) -> list[Unfinished]:
    """Of runs that end together, those that are not within another: its end closes them."""
    inner = {child.run.run_id for item in facts.stopping for child in _descendants(item)}
    return [item for item in facts.stopping if item.run.run_id not in inner]


def _descendants(item: Unfinished) -> Iterator[Unfinished]:
    for child in item.children:
        yield child
        yield from _descendants(child)
