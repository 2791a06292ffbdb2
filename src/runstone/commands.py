"""Commands: what people and the runtime ask of the log, decided by pure functions of the facts.

Each function here makes a `Command`: it names the facts, and decides on them, inside the transaction, what to append.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runstone import events as e
from runstone import values
from runstone.clock import to_rfc3339
from runstone.errors import KeyReused, NotFound, RunstoneError, StaleAttempt, StaleWorker, ThreadBusy
from runstone.events import Draft, OnBusy, OnCrash
from runstone.ids import new_id
from runstone.messages import MessageFold
from runstone.states import ApprovalStatus
from runstone.store import (
    ApprovalRow,
    Command,
    Decision,
    Facts,
    KeyRow,
    Need,
    OpenMessage,
    RunRow,
    Unfinished,
)
from runstone.views import ThreadRef

LeftBy = Literal["lost", "released"]  # what became of an attempt that is followed by another

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


class NewChild(msgspec.Struct, frozen=True, kw_only=True):
    """A run that another one calls, with its agent's options as they are now."""

    agent: str
    input: Raw
    key: str | None
    max_attempts: int
    timeout_s: float


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a person decides; `value` only with `answered`."""

    decision: Literal["approved", "denied", "answered"]
    value: Raw | None = None
    comment: str | None = None


class Answered(msgspec.Struct, frozen=True):
    """How an approval stands after somebody tried to decide it: `taken` where it stands as they wanted."""

    status: ApprovalStatus
    taken: bool


class Claimed(msgspec.Struct, frozen=True):
    """A run whose next attempt has begun; `reason` says what became of the one before, if there was one."""

    run: RunRow
    reason: LeftBy | None


class Fence(msgspec.Struct, frozen=True):
    """An attempt, and that of its root: for a root the same."""

    attempt: int
    epoch: int


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
        for unfinished in facts.thread_runs:
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
                appends.append((item.run.thread, _ending(facts, item, outcome, attempt=None)))
                continue
            run = msgspec.structs.replace(item.run, status="running", attempt=item.run.attempt + 1, owner=worker)
            started.append(Claimed(run, _left_by(item.run)))
            appends.append((run.thread, _next_attempt(facts, item, _left_by(item.run), worker)))
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
                return Decision(appends=[(run.thread, _ending(facts, item, Cancelled(), attempt=None))], result=run)
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
        drafts = _ending(facts, item, outcome, attempt=None if over_its_head else fence.attempt)
        return Decision(appends=[(thread, drafts)], result=e.TYPE_OF[type(drafts[-1].data)])

    return Command(need=Need(run_id=run_id, root=True, open_items=True), decide=decide)


def end_stopping(limit: int) -> Command:
    """Ends runs whose cancel is past its deadline. Result: their ids, at most so many."""

    def decide(facts: Facts) -> Decision:
        appends = [(item.run.thread, _ending(facts, item, Cancelled(), attempt=None)) for item in _outermost(facts)]
        return Decision(appends=appends, result=[item.run.run_id for item in facts.stopping])

    return Command(need=Need(stopping=limit, open_items=True), decide=decide)


# --- approvals -------------------------------------------------------------------------------------------


def resolve_approval(user_id: str, approval_id: str, answer: Answer) -> Command:
    """Decides an open approval. Result: `Answered`. Refuses with NotFound."""

    def decide(facts: Facts) -> Decision:
        approval = facts.approval
        if approval is None or facts.thread is None:
            raise NotFound(f"There is no approval {approval_id}.")
        if approval.status != "open":
            same = approval.status == answer.decision and approval.value == answer.value
            return Decision(result=Answered(approval.status, same))
        if approval.expires_at <= facts.now_us:
            return Decision(appends=[(facts.thread, [_expired(approval)])], result=Answered("expired", False))
        data = e.ApprovalResolved(
            approval_id=approval_id,
            decision=answer.decision,
            value=UNSET if answer.value is None else answer.value,
            by=user_id,
            comment=UNSET if answer.comment is None else answer.comment,
        )
        draft = Draft(data=data, run_id=approval.run_id)
        return Decision(appends=[(facts.thread, [draft])], result=Answered(answer.decision, True))

    return Command(need=Need(user_id=user_id, approval_id=approval_id), decide=decide)


def expire_approvals(limit: int) -> Command:
    """Result: the ids of those whose time was over, at most so many."""

    def decide(facts: Facts) -> Decision:
        appends = [(thread, [_expired(approval)]) for thread, approval in facts.expired]
        return Decision(appends=appends, result=[approval.approval_id for _, approval in facts.expired])

    return Command(need=Need(expired=limit), decide=decide)


# --- the pieces ------------------------------------------------------------------------------------------


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
        drafts += _interrupted(facts, item)
        drafts.append(Draft(data=e.AttemptSuperseded(attempt=run.attempt, reason=reason or "lost", messages=item.said)))
    drafts.append(Draft(data=e.AgentStarted(agent=run.agent, worker=worker), attempt=run.attempt + 1))
    for draft in drafts:
        draft.run_id = run.run_id
    return drafts


def _interrupted(facts: Facts, item: Unfinished) -> list[Draft]:
    return [
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


def _outermost(facts: Facts) -> list[Unfinished]:
    """Of runs that end together, those that are not within another: its end closes them."""
    inner = {child.run.run_id for item in facts.stopping for child in _descendants(item)}
    return [item for item in facts.stopping if item.run.run_id not in inner]


def _descendants(item: Unfinished) -> Iterator[Unfinished]:
    for child in item.children:
        yield child
        yield from _descendants(child)


def _expired(approval: ApprovalRow) -> Draft:
    data = e.ApprovalResolved(approval_id=approval.approval_id, decision="expired")
    return Draft(data=data, run_id=approval.run_id)


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
    if not item.owned:
        drafts += _ending(facts, item, Cancelled(reason, by), attempt=None)
    return drafts  # a run without a living owner ends at once


def _ending(facts: Facts, item: Unfinished, outcome: Outcome, *, attempt: int | None) -> list[Draft]:
    """Everything that is open is closed, children first, then the one terminal event."""
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
    drafts += _interrupted(facts, item)
    drafts += [
        Draft(data=e.ApprovalResolved(approval_id=approval_id, decision="cancelled")) for approval_id in item.approvals
    ]
    drafts.append(Draft(data=end))
    for draft in drafts:
        draft.run_id, draft.attempt = run.run_id, attempt
    below = [draft for child in item.children for draft in _ending(facts, child, Cancelled("parent"), attempt=None)]
    return below + drafts


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
