"""Runs, as people see them: started and cancelled."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runstone import events as e
from runstone.clock import to_rfc3339
from runstone.commands.ends import Cancelled, ending
from runstone.commands.keys import Key, Made, key_of, key_rows, made_before
from runstone.commands.threads import NewThread, thread_created
from runstone.errors import NotFound, RunstoneError, ThreadBusy
from runstone.events import Draft, OnBusy, OnCrash
from runstone.ids import new_id
from runstone.store import (
    Command,
    Decision,
    Facts,
    KeyRow,
    Need,
    Unfinished,
)
from runstone.views import ThreadRef

CANCEL_DEADLINE_S = 10.0  # how long a cancelled agent may still write


class NewRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run to start, its input checked already, with the agent's options as they are now."""

    agent: str
    input: Raw
    message: Raw | None  # parts
    message_metadata: Raw | None = None
    metadata: Raw | None = None
    on_busy: OnBusy = "enqueue"
    key: Key | None = None
    on_crash: OnCrash
    max_attempts: int
    timeout_s: float


def start_run(
    user_id: str,
    new: NewRun,
    *,
    thread_id: str | None = None,
    thread_key: Key | None = None,
    refusal: RunstoneError | None = None,
) -> Command:
    """In a thread, or in one that is found or made by its key, or in a new one.

    Result: `Made`. Refuses with NotFound, ThreadBusy, KeyReused; and with `refusal`, unless it was started before.
    """

    def decide(facts: Facts) -> Decision:
        if new.key is not None and facts.key is not None:
            return Decision(result=made_before(facts.key, new.key))
        if thread_id is not None and facts.thread is None:
            raise NotFound(f"There is no thread {thread_id}.")
        if refusal is not None:
            raise refusal
        keys: list[KeyRow] = []
        drafts: list[Draft] = []
        thread = facts.thread
        if thread is None:
            thread = ThreadRef(new_id("thr"), user_id)
            drafts.append(thread_created(user_id, NewThread(key=thread_key)))
            keys += key_rows(user_id, "thread", thread_key, thread.thread_id, thread.thread_id)
        interrupted = _make_room(facts, new.on_busy, user_id, drafts)
        run_id = new_id("run")
        drafts += _queued(user_id, new, run_id)
        keys += key_rows(user_id, "run", new.key, run_id, thread.thread_id)
        return Decision(appends=[(thread, drafts)], keys=keys, result=Made(run_id, True, interrupted))

    need = Need(
        user_id=user_id,
        thread_id=thread_id,
        thread_key=None if thread_key is None else thread_key.key,
        key=key_of("run", new.key),
        thread_runs=True,
        open_items=new.on_busy == "interrupt",
    )
    return Command(need=need, decide=decide)


def cancel_run(user_id: str, run_id: str, reason: str | None) -> Command:
    """Result: whether the run had not ended yet. A second cancel writes nothing. Refuses with NotFound."""

    def decide(facts: Facts) -> Decision:
        if facts.run is None or facts.thread is None:
            raise NotFound(f"There is no run {run_id}.")
        run = facts.run.run
        if run.ended or run.cancel_deadline is not None:
            return Decision(result=not run.ended)
        return Decision(appends=[(facts.thread, _cancelling(facts, facts.run, user_id, reason))], result=True)

    return Command(need=Need(user_id=user_id, run_id=run_id, open_items=True), decide=decide)


def _queued(user_id: str, new: NewRun, run_id: str) -> list[Draft]:
    drafts = []
    message_id: str | UnsetType = UNSET
    if new.message is not None:
        message_id = new_id("msg")
        said = e.UserMessage(message_id=message_id, parts=new.message, by=user_id)
        drafts.append(Draft(data=said, run_id=run_id, metadata=new.message_metadata))
    queued = e.RunQueued(
        agent=new.agent,
        input=new.input,
        message_id=message_id,
        on_busy=new.on_busy,
        key=UNSET if new.key is None else new.key.key,
        root_run_id=run_id,
        by=user_id,
        on_crash=new.on_crash,
        max_attempts=new.max_attempts,
        timeout_s=new.timeout_s,
    )
    return [*drafts, Draft(data=queued, run_id=run_id, metadata=new.metadata)]


def _make_room(facts: Facts, on_busy: OnBusy, user_id: str, drafts: list[Draft]) -> tuple[str, ...]:
    """What happens to the thread's unfinished root runs; the ids of those that are interrupted."""
    roots = [item for item in facts.thread_runs if item.run.parent_run_id is None]
    if on_busy == "reject" and roots:
        raise ThreadBusy(f"The run {roots[0].run.run_id} of this thread is {roots[0].run.status}.")
    if on_busy != "interrupt":
        return ()
    for root in roots:
        if root.run.cancel_deadline is None:
            drafts += _cancelling(facts, root, user_id, "interrupted by a new run")
    return tuple(root.run.run_id for root in roots)


def _cancelling(facts: Facts, item: Unfinished, by: str, reason: str | None) -> list[Draft]:
    """A cancel that was asked for; what nobody runs ends at once."""
    deadline = to_rfc3339(facts.now_us + round(CANCEL_DEADLINE_S * 1_000_000))
    asked = e.CancelRequested(by=by, reason=UNSET if reason is None else reason, deadline=deadline)
    drafts = [Draft(data=asked, run_id=item.run.run_id)]
    if not item.owned:
        drafts += ending(facts, item, Cancelled(reason, by), attempt=None)
    return drafts  # a run without a living owner ends at once
