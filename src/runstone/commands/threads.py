"""Threads: made, changed, deleted; imported histories."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runstone import events as e
from runstone import values
from runstone.commands.ends import Cancelled, ending
from runstone.commands.keys import Key, Made, key_of, key_rows, made_before
from runstone.errors import NotFound
from runstone.events import Draft
from runstone.ids import new_id
from runstone.messages import MessageFold
from runstone.store import (
    Command,
    Decision,
    Facts,
    Need,
)
from runstone.views import ThreadRef


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


def create_thread(user_id: str, new: NewThread) -> Command:
    """Result: `Made`. Refuses with KeyReused."""

    def decide(facts: Facts) -> Decision:
        if new.key is not None and facts.key is not None:
            return Decision(result=made_before(facts.key, new.key))
        thread = ThreadRef(new_id("thr"), user_id)
        drafts = [thread_created(user_id, new)]
        for message in new.messages:
            drafts += _imported(message, user_id)
        return Decision(
            appends=[(thread, drafts)],
            keys=key_rows(user_id, "thread", new.key, thread.thread_id, thread.thread_id),
            result=Made(thread.thread_id, True),
        )

    return Command(need=Need(user_id=user_id, key=key_of("thread", new.key)), decide=decide)


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
            drafts += ending(facts, unfinished, Cancelled("deleted"), attempt=None)
        drafts.append(Draft(data=e.ThreadDeleted(by=user_id)))
        return Decision(appends=[(thread, drafts)], result=[unfinished.run.run_id for unfinished in facts.thread_runs])

    return Command(need=Need(user_id=user_id, thread_id=thread_id, thread_runs=True, open_items=True), decide=decide)


def thread_created(user_id: str, new: NewThread) -> Draft:
    data = e.ThreadCreated(
        title=UNSET if new.title is None else new.title,
        metadata=UNSET if new.metadata is None else new.metadata,
        key=UNSET if new.key is None else new.key.key,
        by=user_id,
    )
    return Draft(data=data)


def _found(thread: ThreadRef | None, thread_id: str) -> ThreadRef:
    if thread is None:
        raise NotFound(f"There is no thread {thread_id}.")
    return thread


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
