"""Commands: what people and the runtime ask of the log, decided by pure functions of the facts.

Each function here makes a `Command`: it names the facts, and decides on them, inside the transaction, what to append.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runstone import events as e
from runstone import values
from runstone.clock import to_rfc3339
from runstone.errors import KeyReused, NotFound, RunstoneError, StaleAttempt, ThreadBusy
from runstone.events import Draft, OnBusy, OnCrash
from runstone.ids import new_id
from runstone.messages import MessageFold
from runstone.store import Command, Decision, Facts, KeyRow, Need, OpenMessage, Unfinished
from runstone.views import ThreadRef

CANCEL_DEADLINE_S = 10.0  # how long a cancelled agent may still write


class Key(msgspec.Struct, frozen=True):
    """A caller's own id for what a request makes, and the digest of that request."""

    key: str
    digest: str


class NewThread(msgspec.Struct, frozen=True, kw_only=True):
    title: str | None = None
    metadata: Raw | None = None
    key: Key | None = None
    messages: Sequence[ImportedMessage] = ()


class ImportedMessage(msgspec.Struct, frozen=True):
    """A message of an imported history."""

    role: e.Role
    parts: Raw
    metadata: Raw | None


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


class Made(msgspec.Struct, frozen=True):
    """The id of what a command made, or of what an earlier one made with the same key."""

    id: str
    new: bool
    interrupted: tuple[str, ...] = ()


class Completed(msgspec.Struct, frozen=True):
    output: Raw


class Failed(msgspec.Struct, frozen=True):
    type: str
    message: str
    retryable: bool = False
    id: str | None = None
    reason: Literal["error", "timeout"] = "error"


class Cancelled(msgspec.Struct, frozen=True):
    """The end by cancel; `by` is absent when Runstone acts."""

    reason: str | None = None
    by: str | None = None


Outcome = Completed | Failed | Cancelled


# --- threads -------------------------------------------------------------------------------------------


def create_thread(user_id: str, new: NewThread) -> Command:
    """Result: `Made`. Refuses with KeyReused."""

    def decide(facts: Facts) -> Decision:
        if new.key is not None and facts.key is not None:
            return Decision(result=_made_before(facts.key, new.key))
        thread = ThreadRef(new_id("thr"), user_id)
        drafts = [_thread_created(user_id, new)]
        for message in new.messages:
            drafts += _imported(message, user_id)
        return Decision(
            appends=[(thread, drafts)],
            keys=_key_rows(user_id, "thread", new.key, thread.thread_id, thread.thread_id),
            result=Made(thread.thread_id, True),
        )

    return Command(need=Need(user_id=user_id, key=_need("thread", new.key)), decide=decide)


def update_thread(user_id: str, thread_id: str, *, title: str | UnsetType | None, metadata: Raw | UnsetType) -> Command:
    """Replaces the title, the metadata, or both. Refuses with NotFound."""

    def decide(facts: Facts) -> Decision:
        thread = _found(facts.thread, thread_id)
        changed = title is not UNSET or metadata is not UNSET
        data = e.ThreadUpdated(title=title, metadata=metadata, by=user_id)
        return Decision(appends=[(thread, [Draft(data=data)])] if changed else [])

    return Command(need=Need(user_id=user_id, thread_id=thread_id), decide=decide)


def delete_thread(user_id: str, thread_id: str) -> Command:
    """Ends what is unfinished, then the thread. Result: the ids of the runs that were ended. Refuses with NotFound."""

    def decide(facts: Facts) -> Decision:
        thread = _found(facts.thread, thread_id)
        drafts: list[Draft] = []
        for unfinished in reversed(facts.thread_runs):  # the newest first: children before their parents
            drafts += _ending(facts, unfinished, Cancelled("deleted"), attempt=None)
        drafts.append(Draft(data=e.ThreadDeleted(by=user_id)))
        return Decision(appends=[(thread, drafts)], result=[unfinished.run.run_id for unfinished in facts.thread_runs])

    return Command(need=Need(user_id=user_id, thread_id=thread_id, thread_runs=True, open_items=True), decide=decide)


# --- runs, as people see them ----------------------------------------------------------------------------


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
            return Decision(result=_made_before(facts.key, new.key))
        if thread_id is not None and facts.thread is None:
            raise NotFound(f"There is no thread {thread_id}.")
        if refusal is not None:
            raise refusal
        keys: list[KeyRow] = []
        drafts: list[Draft] = []
        thread = facts.thread
        if thread is None:
            thread = ThreadRef(new_id("thr"), user_id)
            drafts.append(_thread_created(user_id, NewThread(key=thread_key)))
            keys += _key_rows(user_id, "thread", thread_key, thread.thread_id, thread.thread_id)
        interrupted = _make_room(facts, new.on_busy, user_id, drafts)
        run_id = new_id("run")
        drafts += _queued(user_id, new, run_id)
        keys += _key_rows(user_id, "run", new.key, run_id, thread.thread_id)
        return Decision(appends=[(thread, drafts)], keys=keys, result=Made(run_id, True, interrupted))

    need = Need(
        user_id=user_id,
        thread_id=thread_id,
        thread_key=None if thread_key is None else thread_key.key,
        key=_need("run", new.key),
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


# --- runs, as the runtime sees them --------------------------------------------------------------------


def claim_runs(agents: frozenset[str], limit: int, worker: str) -> Command:
    """Starts the next attempt of runs that wait for one. Result: their rows, with the new attempt."""

    def decide(facts: Facts) -> Decision:
        claimed = [msgspec.structs.replace(run, status="running", attempt=run.attempt + 1) for run in facts.claimable]
        appends = [
            (
                run.thread,
                [
                    Draft(
                        data=e.AgentStarted(agent=run.agent, worker=worker),
                        run_id=run.run_id,
                        attempt=run.attempt,
                    )
                ],
            )
            for run in claimed
        ]
        return Decision(appends=appends, result=claimed)

    return Command(need=Need(claim=(agents, limit)), decide=decide)


def end_run(run_id: str, outcome: Outcome, *, attempt: int | None) -> Command:
    """Ends a run and closes what it left open, whatever it is. Result: the status.

    After a cancel was asked for, the end is `agent_cancelled`. `attempt` is the fence of the attempt that ends itself,
    null when Runstone ends the run over its head. Refuses with StaleAttempt.
    """

    def decide(facts: Facts) -> Decision:
        if facts.run is None or facts.thread is None:
            raise StaleAttempt(f"The run {run_id} is gone.")
        run = facts.run.run
        if run.ended or attempt not in {None, run.attempt}:
            raise StaleAttempt(f"Attempt {attempt} of {run_id} no longer owns its run, which is {run.status}.")
        drafts = _ending(facts, facts.run, outcome, attempt=attempt)
        return Decision(appends=[(facts.thread, drafts)], result=e.TYPE_OF[type(drafts[-1].data)])

    return Command(need=Need(run_id=run_id, open_items=True), decide=decide)


def end_orphans(limit: int) -> Command:
    """Ends runs that a process left under way when it died. Result: the ids of those ended, at most so many."""

    def decide(facts: Facts) -> Decision:
        lost = Failed("WorkerLost", "The process that ran this died; start the run again.", retryable=True)
        appends = [(orphan.run.thread, _ending(facts, orphan, lost, attempt=None)) for orphan in facts.orphans]
        return Decision(appends=appends, result=[orphan.run.run_id for orphan in facts.orphans])

    return Command(need=Need(orphans=limit, open_items=True), decide=decide)


# --- the pieces ------------------------------------------------------------------------------------------


def _found(thread: ThreadRef | None, thread_id: str) -> ThreadRef:
    if thread is None:
        raise NotFound(f"There is no thread {thread_id}.")
    return thread


def _need(kind: str, key: Key | None) -> tuple[str, str] | None:
    return None if key is None else (kind, key.key)


def _key_rows(user_id: str, kind: str, key: Key | None, made: str, thread_id: str) -> list[KeyRow]:
    return [] if key is None else [KeyRow(user_id, kind, key.key, key.digest, made, thread_id)]


def _made_before(row: KeyRow, key: Key) -> Made:
    if row.digest != key.digest:
        raise KeyReused(f"The key {key.key!r} was used with another body, and made {row.made}.")
    return Made(row.made, False)


def _thread_created(user_id: str, new: NewThread) -> Draft:
    data = e.ThreadCreated(
        title=UNSET if new.title is None else new.title,
        metadata=UNSET if new.metadata is None else new.metadata,
        key=UNSET if new.key is None else new.key.key,
        by=user_id,
    )
    return Draft(data=data)


def _imported(message: ImportedMessage, user_id: str) -> list[Draft]:
    message_id = new_id("msg")
    if message.role == "user":
        return [
            Draft(
                data=e.UserMessage(message_id=message_id, parts=message.parts, by=user_id),
                metadata=message.metadata,
            )
        ]
    drafts = [Draft(data=e.MessageStarted(message_id=message_id, role="assistant"), metadata=message.metadata)]
    parts = msgspec.json.decode(message.parts, type=list[Raw])
    pieces: list[e.Data] = []
    for number, part in enumerate(parts):
        pieces += _part_events(message_id, number, part)
    fold = MessageFold(pieces)
    drafts += [Draft(data=piece) for piece in pieces]
    done = e.MessageCompleted(message_id=message_id, status="completed", length=fold.length)
    return [*drafts, Draft(data=done, content=fold.encoded())]


def _part_events(message_id: str, number: int, part: Raw) -> Iterable[e.Data]:
    value = values.decode(part)
    assert isinstance(value, dict)
    kinds: dict[object, type[e.Delta]] = {"text": e.MessageDelta, "reasoning": e.AgentThinking}
    kind = kinds.get(value["type"])
    if kind is None:
        yield e.MessagePart(message_id=message_id, part=number, value=part)
        return
    text = str(value["text"])
    for offset in range(0, len(text), e.DELTA_CHARS_MAX) if text else (0,):
        piece = text[offset : offset + e.DELTA_CHARS_MAX]
        yield kind(message_id=message_id, part=number, offset=offset, delta=piece)


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
    if item.run.status == "queued":
        drafts += _ending(facts, item, Cancelled(reason, by), attempt=None)
    return drafts


def _ending(facts: Facts, item: Unfinished, outcome: Outcome, *, attempt: int | None) -> list[Draft]:
    """Everything that is open is closed, then the one terminal event."""
    run = item.run
    if run.cancel_deadline is not None and not isinstance(outcome, Cancelled):
        output = outcome.output if isinstance(outcome, Completed) else UNSET
        end: e.Data = _agent_cancelled(Cancelled(run.cancel_reason, run.cancel_by), output)
        reason: e.PartialReason = "cancelled"
    elif isinstance(outcome, Completed):
        end, reason = e.AgentCompleted(output=outcome.output, usage=run.usage), "error"
    elif isinstance(outcome, Failed):
        end, reason = e.AgentFailed(error=_error(outcome)), outcome.reason
    else:
        asked = run.cancel_deadline is not None and outcome.reason is None
        end = _agent_cancelled(Cancelled(run.cancel_reason, run.cancel_by) if asked else outcome, UNSET)
        reason = "cancelled"
    finished = isinstance(outcome, Completed) and isinstance(end, e.AgentCompleted)
    drafts = [_closed_message(message, finished, reason) for message in item.messages]
    drafts += [
        Draft(
            data=e.ToolCompleted(
                action_id=action.action_id,
                status="interrupted",
                duration_ms=(facts.now_us - action.started_at) // 1000,
            ),
            private=action.private,
        )
        for action in item.actions
    ]
    drafts.append(Draft(data=end))
    for draft in drafts:
        draft.run_id, draft.attempt = run.run_id, attempt
    return drafts


def _closed_message(message: OpenMessage, finished: bool, reason: e.PartialReason) -> Draft:
    data = e.MessageCompleted(
        message_id=message.message_id,
        status="completed" if finished else "partial",
        reason=UNSET if finished else reason,
        length=message.length,
    )
    return Draft(data=data, content=message.parts)


def _agent_cancelled(cancelled: Cancelled, output: Raw | UnsetType) -> e.AgentCancelled:
    return e.AgentCancelled(
        by=UNSET if cancelled.by is None else cancelled.by,
        reason=UNSET if cancelled.reason is None else cancelled.reason,
        output=output,
    )


def _error(failed: Failed) -> Raw:
    error = {"type": failed.type, "message": failed.message, "retryable": failed.retryable, "id": failed.id}
    return values.raw(error)
