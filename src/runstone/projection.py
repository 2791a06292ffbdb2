"""State = f(log): what each event changes in the tables that are derived from the log.

Pure, and the same for every store: a store carries the changes out in the event's own transaction,
`verify` carries them out in memory and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from runstone import events as e
from runstone import values
from runstone.clock import from_rfc3339
from runstone.messages import text_of

Table = Literal["threads", "runs", "messages", "actions", "approvals", "steps", "state"]
Column: TypeAlias = "int | float | str | bytes | None"
_D = TypeVar("_D", bound=e.Data)

KEYS: dict[Table, tuple[str, ...]] = {
    "threads": ("thread_id",),
    "runs": ("run_id",),
    "messages": ("message_id",),
    "actions": ("action_id",),
    "approvals": ("approval_id",),
    "steps": ("run_id", "key"),
    "state": ("thread_id", "key"),
}

# Events that make a thread (and a run) "active": lists are sorted by the time of the last one.
ACTIVITY = frozenset(
    {
        "thread_created",
        "thread_updated",
        "user_message",
        "run_queued",
        "agent_started",
        "message_completed",
        "approval_requested",
        "approval_resolved",
        "cancel_requested",
        "agent_completed",
        "agent_failed",
        "agent_cancelled",
    }
)

# Events after which a thread is another one in its owner's feed.
FEED = ACTIVITY | {"thread_deleted"}


class Change(msgspec.Struct, frozen=True):
    """One row to insert, update or delete; `add` adds to numbers, null counting as 0."""

    op: Literal["insert", "update", "delete"]
    table: Table
    key: tuple[str, ...]
    columns: Mapping[str, Column] = {}
    add: Mapping[str, float] = {}


class Place(msgspec.Struct, frozen=True):
    """Where and when an event was committed."""

    thread_id: str
    user_id: str
    pos: int
    seq: int
    time_us: int


def changes(draft: e.Draft, place: Place) -> list[Change]:
    """What committing the event at that place changes, in order."""
    rule = _RULES.get(type(draft.data))
    found = rule(draft, place) if rule is not None else []
    kind = draft.type
    if kind in ACTIVITY:
        moved: dict[str, Column] = {"updated_at": place.time_us, "activity_pos": place.pos}
        found.append(Change("update", "threads", (place.thread_id,), moved))
        if draft.run_id is not None and kind != "user_message":
            found.append(Change("update", "runs", (draft.run_id,), {"updated_at": place.time_us}))
    return found


def _opt(value: object) -> Column:
    """A value that may be unset, as a column; text is mended, as it is in the event."""
    if isinstance(value, UnsetType):
        return None
    if isinstance(value, str):
        return values.mend(value)
    return bytes(value) if isinstance(value, msgspec.Raw) else value  # type: ignore[return-value]


def _thread_created(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.ThreadCreated)
    return [
        Change(
            "insert",
            "threads",
            (place.thread_id,),
            {
                "user_id": place.user_id,
                "key": _opt(data.key),
                "title": _opt(data.title),
                "metadata": b"{}" if data.metadata is UNSET else _opt(data.metadata),
                "created_at": place.time_us,
                "updated_at": place.time_us,
                "activity_pos": place.pos,
                "deleted_at": None,
            },
        )
    ]


def _thread_updated(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.ThreadUpdated)
    columns = {name: _opt(getattr(data, name)) for name in ("title", "metadata") if getattr(data, name) is not UNSET}
    return [Change("update", "threads", (place.thread_id,), columns)] if columns else []


def _thread_deleted(_draft: e.Draft, place: Place) -> list[Change]:
    gone: dict[str, Column] = {"deleted_at": place.time_us, "activity_pos": place.pos, "key": None}
    return [Change("update", "threads", (place.thread_id,), gone)]


def _user_message(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.UserMessage)
    parts = values.decode(data.parts)
    assert isinstance(parts, list)
    return [
        Change(
            "insert",
            "messages",
            (data.message_id,),
            _message(draft, place, "user")
            | {
                "status": "completed",
                "parts": bytes(data.parts),
                "length": len(text_of(p for p in parts if isinstance(p, dict))),
                "last_seq": place.seq,
            },
        )
    ]


def _message(draft: e.Draft, place: Place, role: e.Role) -> dict[str, Column]:
    return {
        "thread_id": place.thread_id,
        "run_id": draft.run_id,
        "user_id": place.user_id,
        "role": role,
        "status": "streaming",
        "reason": None,
        "parts": None,
        "length": None,
        "finish_reason": None,
        "metadata": b"{}" if draft.metadata is None else bytes(draft.metadata),
        "first_seq": place.seq,
        "last_seq": None,
        "created_at": place.time_us,
    }


def _run_queued(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.RunQueued)
    return [
        Change(
            "insert",
            "runs",
            (_run_id(draft),),
            {
                "thread_id": place.thread_id,
                "user_id": place.user_id,
                "key": _opt(data.key),
                "agent": _opt(data.agent),
                "status": "queued",
                "attempt": 0,
                "input": bytes(data.input),
                "output": None,
                "error": None,
                "input_tokens": None,
                "output_tokens": None,
                "cached_input_tokens": None,
                "reasoning_tokens": None,
                "cost": None,
                "metadata": b"{}" if draft.metadata is None else bytes(draft.metadata),
                "message_id": _opt(data.message_id),
                "parent_run_id": _opt(data.parent_run_id),
                "root_run_id": data.root_run_id,
                "on_busy": data.on_busy,
                "on_crash": data.on_crash,
                "max_attempts": data.max_attempts,
                "timeout_s": data.timeout_s,
                "projection_version": data.projection_version,
                "lost": 0,
                "cancel_by": None,
                "cancel_reason": None,
                "cancel_deadline": None,
                "created_at": place.time_us,
                "started_at": None,
                "ended_at": None,
                "updated_at": place.time_us,
                # the user's message, if there is one, stands right before and belongs to the run
                "first_seq": place.seq if data.message_id is UNSET else place.seq - 1,
                "last_seq": None,
            },
        )
    ]


def _agent_started(draft: e.Draft, place: Place) -> list[Change]:
    columns: dict[str, Column] = {"status": "running", "attempt": draft.attempt}
    if draft.attempt == 1:
        columns["started_at"] = place.time_us
    return [Change("update", "runs", (_run_id(draft),), columns)]


def _message_started(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.MessageStarted)
    return [Change("insert", "messages", (data.message_id,), _message(draft, place, data.role))]


def _message_completed(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.MessageCompleted)
    assert draft.content is not None, "a message that ends brings its parts"
    columns: dict[str, Column] = {
        "status": data.status,
        "reason": _opt(data.reason),
        "parts": draft.content,
        "length": data.length,
        "finish_reason": _opt(data.finish_reason),
        "last_seq": place.seq,
    }
    return [Change("update", "messages", (data.message_id,), columns)]


def _attempt_superseded(draft: e.Draft, _place: Place) -> list[Change]:
    data = _as(draft, e.AttemptSuperseded)
    found = [Change("update", "messages", (message_id,), {"status": "superseded"}) for message_id in data.messages]
    return [*found, Change("update", "runs", (_run_id(draft),), add={"lost": int(data.reason == "lost")})]


def _tool_executing(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.ToolExecuting)
    return [
        Change(
            "insert",
            "actions",
            (data.action_id,),
            {
                "thread_id": place.thread_id,
                "run_id": _run_id(draft),
                "user_id": place.user_id,
                "tool": _opt(data.tool),
                "executor": data.executor,
                "input": bytes(data.input),
                "key": _opt(data.key),
                "retry_of": _opt(data.retry_of),
                "beside": int(data.beside is True),
                "status": "pending",
                "output": None,
                "error": None,
                "inner": None,
                "private": int(draft.private),
                "started_at": place.time_us,
                "ended_at": None,
                "seq": place.seq,
            },
        )
    ]


def _tool_completed(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.ToolCompleted)
    columns: dict[str, Column] = {
        "status": data.status,
        "output": _opt(data.output),
        "error": _opt(data.error),
        "inner": None if data.inner is UNSET else values.encode(list(data.inner)),
        "ended_at": place.time_us,
    }
    return [Change("update", "actions", (data.action_id,), columns)]


def _step_completed(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.StepCompleted)
    columns: dict[str, Column] = {
        "thread_id": place.thread_id,
        "user_id": place.user_id,
        "output": bytes(data.output),
        "inner": values.encode([] if data.inner is UNSET else list(data.inner)),
        "seq": place.seq,
    }
    return [Change("insert", "steps", (_run_id(draft), values.mend(data.key)), columns)]


def _approval_requested(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.ApprovalRequested)
    columns: dict[str, Column] = {
        "thread_id": place.thread_id,
        "run_id": _run_id(draft),
        "user_id": place.user_id,
        "action_id": _opt(data.action_id),
        "key": _opt(data.key),
        "kind": data.kind,
        "prompt": _opt(data.prompt),
        "input": bytes(data.input),
        "input_hash": data.input_hash,
        "schema": _opt(data.schema),
        "status": "open",
        "value": None,
        "by": None,
        "comment": None,
        "created_at": place.time_us,
        "expires_at": from_rfc3339(data.expires_at),
        "resolved_at": None,
        "seq": place.seq,
    }
    return [Change("insert", "approvals", (data.approval_id,), columns)]


def _approval_resolved(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.ApprovalResolved)
    columns: dict[str, Column] = {
        "status": data.decision,
        "value": _opt(data.value),
        "by": _opt(data.by),
        "comment": _opt(data.comment),
        "resolved_at": place.time_us,
    }
    return [Change("update", "approvals", (data.approval_id,), columns)]


def _state_changed(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.StateChanged)
    key = (place.thread_id, values.mend(data.key))
    found = [Change("delete", "state", key)]
    if bytes(data.value) != b"null":
        columns: dict[str, Column] = {
            "user_id": place.user_id,
            "value": bytes(data.value),
            "public": int(not draft.private),
            "seq": place.seq,
        }
        found.append(Change("insert", "state", key, columns))
    return found


def _cancel_requested(draft: e.Draft, place: Place) -> list[Change]:
    data = _as(draft, e.CancelRequested)
    columns: dict[str, Column] = {
        "cancel_by": _opt(data.by),
        "cancel_reason": _opt(data.reason),
        "cancel_deadline": data.deadline,
    }
    return [Change("update", "runs", (_run_id(draft),), columns)]


def _usage(draft: e.Draft, _place: Place) -> list[Change]:
    data = _as(draft, e.Usage)
    names = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost")
    add = {name: 0 if getattr(data, name) is UNSET else getattr(data, name) for name in names}
    return [Change("update", "runs", (_run_id(draft),), add=add)]


def _ended(status: str, draft: e.Draft, place: Place, **columns: Column) -> list[Change]:
    columns |= {"status": status, "ended_at": place.time_us, "last_seq": place.seq}
    return [Change("update", "runs", (_run_id(draft),), columns)]


def _agent_completed(draft: e.Draft, place: Place) -> list[Change]:
    return _ended("completed", draft, place, output=bytes(_as(draft, e.AgentCompleted).output))


def _agent_failed(draft: e.Draft, place: Place) -> list[Change]:
    return _ended("failed", draft, place, error=bytes(_as(draft, e.AgentFailed).error))


def _agent_cancelled(draft: e.Draft, place: Place) -> list[Change]:
    return _ended("cancelled", draft, place, output=_opt(_as(draft, e.AgentCancelled).output))


_RULES: dict[type[e.Data], Callable[[e.Draft, Place], list[Change]]] = {
    e.ThreadCreated: _thread_created,
    e.ThreadUpdated: _thread_updated,
    e.ThreadDeleted: _thread_deleted,
    e.UserMessage: _user_message,
    e.RunQueued: _run_queued,
    e.AttemptSuperseded: _attempt_superseded,
    e.AgentStarted: _agent_started,
    e.MessageStarted: _message_started,
    e.MessageCompleted: _message_completed,
    e.ToolExecuting: _tool_executing,
    e.ToolCompleted: _tool_completed,
    e.StepCompleted: _step_completed,
    e.ApprovalRequested: _approval_requested,
    e.ApprovalResolved: _approval_resolved,
    e.StateChanged: _state_changed,
    e.CancelRequested: _cancel_requested,
    e.Usage: _usage,
    e.AgentCompleted: _agent_completed,
    e.AgentFailed: _agent_failed,
    e.AgentCancelled: _agent_cancelled,
}


# Events that change no row, tokens among them: nothing has to be asked about these.
WITHOUT_ROWS = frozenset(kind for kind, name in e.TYPE_OF.items() if kind not in _RULES and name not in ACTIVITY)


def _run_id(draft: e.Draft) -> str:
    assert draft.run_id is not None, f"{draft.type} is an event of a run"
    return draft.run_id


def _as(draft: e.Draft, kind: type[_D]) -> _D:
    assert isinstance(draft.data, kind)
    return draft.data
