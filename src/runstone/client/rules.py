"""What each event changes in a view: one table from event type to rule, as `runstone.projection` is for rows.

Rules take events as the wire brings them, so what is private has no more than ids here, and what began before the
first event that was seen is not known.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import Field

from runstone import events as e
from runstone.client.stream import Event
from runstone.messages import MessageFold, text_of
from runstone.resources import Action, Approval, Error, Message, Resource, Run, Thread, Time, UsageSum
from runstone.values import Json

_R = TypeVar("_R", bound=Resource)


class Retrying(Resource):
    """A run that is degraded: what failed, and when it is expected to go on."""

    run_id: str
    action_id: str | None = None  # the tool call that is tried again; null: the run itself
    try_: int = Field(alias="try")
    delay_ms: int
    error: Error
    expected_recovery: Time
    since: Time


class Streaming:
    """A message that is not complete. A filtered stream may keep whole parts from us, but never a piece of one."""

    def __init__(self) -> None:
        self.fold = MessageFold()
        self._part = -1
        self._place = -1  # of the part, among those that came
        self._offset = 0

    def delta(self, kind: type[e.Delta], part: int, offset: int, delta: str) -> None:
        begins = part != self._part
        expected = 0 if begins else self._offset
        if offset != expected or part < self._part:
            raise ValueError(
                f"After part {self._part} up to {self._offset} came part {part} from {offset} on: an event is missing."
            )
        if begins:
            self._begin(part)
        self.fold.add(kind, self._place, delta)
        self._offset += len(delta)

    def whole(self, part: int, value: Json) -> None:
        self._begin(part)
        self.fold.put(self._place, value)

    def _begin(self, part: int) -> None:
        self._part, self._place, self._offset = part, self._place + 1, 0


class Known:
    """All that a view knows. Records are replaced, never changed."""

    def __init__(self) -> None:
        self.thread: Thread | None = None  # without what is asked of other records: status, last message, head
        self.deleted = False
        self.messages: dict[str, Message] = {}
        self.streaming: dict[str, Streaming] = {}  # messages that were never completed, superseded ones too
        self.actions: dict[str, Action] = {}
        self.live_output: dict[str, list[str]] = {}
        self.runs: dict[str, Run] = {}
        self.approvals: dict[str, Approval] = {}
        self.asking: dict[str, set[str]] = {}  # open approvals, by run
        self.state: dict[str, Json] = {}
        self.retrying: dict[tuple[str, str | None], Retrying] = {}


def content(fold: MessageFold) -> dict[str, Any]:
    """What a message says, as its record has it."""
    parts = fold.parts()
    return {"parts": parts, "content": text_of(parts)}


def change(records: dict[str, _R], id: str | None, **members: object) -> None:
    """Nothing, where the record is of before our time."""
    if id is not None and (record := records.get(id)) is not None:
        records[id] = record.model_copy(update=members)


# --- threads


def _thread_created(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    known.thread = Thread(
        thread_id=event.thread_id,
        key=data.get("key"),
        title=data.get("title"),
        metadata=data.get("metadata", {}),
        status="idle",
        last_message=None,
        head=event.seq,
        created_at=event.time,
        updated_at=event.time,
    )


def _thread_updated(known: Known, event: Event) -> None:
    if known.thread is not None:
        changed: dict[str, Any] = {name: event.data[name] for name in ("title", "metadata") if name in event.data}
        known.thread = known.thread.model_copy(update=changed)


def _thread_deleted(known: Known, event: Event) -> None:
    known.deleted = True


def _state_changed(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    if data.get("private"):
        return
    known.state.pop(data["key"], None)
    if data["value"] is not None:
        known.state[data["key"]] = data["value"]


# --- messages


def _user_message(known: Known, event: Event) -> None:
    parts: Any = event.data["parts"]
    _add_message(known, event, "user", "completed", {"parts": parts, "content": text_of(parts)})


def _message_started(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    streaming = known.streaming[data["message_id"]] = Streaming()
    _add_message(known, event, data["role"], "streaming", content(streaming.fold))


def _add_message(known: Known, event: Event, role: e.Role, status: Any, said: dict[str, Any]) -> None:
    data: dict[str, Any] = event.data
    known.messages[data["message_id"]] = Message(
        message_id=data["message_id"],
        thread_id=event.thread_id,
        run_id=event.run_id,
        role=role,
        status=status,
        reason=None,
        first_seq=event.seq,
        last_seq=event.seq,
        created_at=event.time,
        metadata=_object(event.metadata),
        **said,
    )


def _message_delta(known: Known, event: Event) -> None:
    _delta(known, e.MessageDelta, event.data)


def _agent_thinking(known: Known, event: Event) -> None:
    _delta(known, e.AgentThinking, event.data)


def _delta(known: Known, kind: type[e.Delta], data: dict[str, Any]) -> None:
    if (streaming := known.streaming.get(data["message_id"])) is not None:
        streaming.delta(kind, data["part"], data["offset"], data["delta"])


def _message_part(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    if (streaming := known.streaming.get(data["message_id"])) is not None:
        streaming.whole(data["part"], data["value"])


def _message_completed(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    if (streaming := known.streaming.pop(data["message_id"], None)) is not None:
        ended = {"status": data["status"], "reason": data.get("reason"), "last_seq": event.seq}
        change(known.messages, data["message_id"], **ended, **content(streaming.fold))


def _attempt_superseded(known: Known, event: Event) -> None:
    """By id and nothing else: what was said in a recorded step stands, and so does what others said meanwhile."""
    messages: Any = event.data["messages"]
    for message_id in messages:
        change(known.messages, message_id, status="superseded")


# --- actions


_PRIVATE = {"tool": "private", "executor": "server", "input": None}


def _tool_executing(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    shown: dict[str, Any] = _PRIVATE if data.get("private") else data
    assert event.run_id is not None
    known.actions[data["action_id"]] = Action(
        action_id=data["action_id"],
        thread_id=event.thread_id,
        run_id=event.run_id,
        tool=shown["tool"],
        executor=shown["executor"],
        input=shown["input"],
        status="pending",
        output=None,
        error=None,
        started_at=event.time,
        ended_at=None,
        seq=event.seq,
    )


def _tool_output(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    if not data.get("private") and data["action_id"] in known.actions:
        known.live_output.setdefault(data["action_id"], []).append(data["delta"])


def _tool_completed(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    status, output = data.get("status", "success"), data.get("output")
    ended = {"status": status, "output": output, "error": _error(data.get("error")), "ended_at": event.time}
    change(known.actions, data["action_id"], **ended)


# --- approvals


def _approval_requested(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    assert event.run_id is not None
    known.asking.setdefault(event.run_id, set()).add(data["approval_id"])
    known.approvals[data["approval_id"]] = Approval.model_validate(
        {
            "approval_id": data["approval_id"],
            "thread_id": event.thread_id,
            "run_id": event.run_id,
            "action_id": data.get("action_id"),
            "kind": data["kind"],
            "prompt": data["prompt"],
            "input": data["input"],
            "input_hash": data["input_hash"],
            "schema": data.get("schema"),
            "status": "open",
            "value": None,
            "by": None,
            "comment": None,
            "created_at": event.time,
            "expires_at": data["expires_at"],
            "resolved_at": None,
        }
    )


def _approval_resolved(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    known.asking.get(event.run_id or "", set()).discard(data["approval_id"])
    answer = {name: data.get(name) for name in ("value", "by", "comment")}
    change(known.approvals, data["approval_id"], status=data["decision"], **answer, resolved_at=event.time)


# --- runs


def _run_queued(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    assert event.run_id is not None
    known.runs[event.run_id] = Run(
        run_id=event.run_id,
        thread_id=event.thread_id,
        key=data.get("key"),
        agent=data["agent"],
        status="queued",
        attempt=0,
        input=data.get("input"),
        output=None,
        error=None,
        usage=None,
        metadata=_object(event.metadata),
        parent_run_id=data.get("parent_run_id"),
        root_run_id=data["root_run_id"],
        created_at=event.time,
        started_at=None,
        ended_at=None,
        first_seq=event.seq - ("message_id" in data),  # the user's message stands right before and belongs to the run
        last_seq=None,
    )


def _agent_started(known: Known, event: Event) -> None:
    run = known.runs.get(event.run_id or "")
    if run is not None:
        started_at = run.started_at or event.time
        change(known.runs, event.run_id, status="running", attempt=event.attempt, started_at=started_at)


def _usage(known: Known, event: Event) -> None:
    run = known.runs.get(event.run_id or "")
    if run is not None:
        data: dict[str, Any] = event.data
        before = {} if run.usage is None else run.usage.model_dump()
        sums = {name: before.get(name, 0) + data.get(name, 0) for name in UsageSum.model_fields}
        change(known.runs, event.run_id, usage=UsageSum(**sums))


def _agent_completed(known: Known, event: Event) -> None:
    _end(known, event, status="completed", output=event.data["output"])


def _agent_failed(known: Known, event: Event) -> None:
    _end(known, event, status="failed", error=_error(event.data["error"]))


def _agent_cancelled(known: Known, event: Event) -> None:
    _end(known, event, status="cancelled", output=event.data.get("output"))


def _end(known: Known, event: Event, **members: object) -> None:
    change(known.runs, event.run_id, ended_at=event.time, last_seq=event.seq, **members)


def _agent_retrying(known: Known, event: Event) -> None:
    data: dict[str, Any] = event.data
    if event.run_id is None or data.get("private"):
        return
    notice = Retrying.model_validate(data | {"run_id": event.run_id, "since": event.time})
    known.retrying[notice.run_id, notice.action_id] = notice


RULES: dict[str, Callable[[Known, Event], None]] = {
    "thread_created": _thread_created,
    "thread_updated": _thread_updated,
    "thread_deleted": _thread_deleted,
    "user_message": _user_message,
    "run_queued": _run_queued,
    "attempt_superseded": _attempt_superseded,
    "agent_started": _agent_started,
    "message_started": _message_started,
    "agent_thinking": _agent_thinking,
    "message_delta": _message_delta,
    "message_part": _message_part,
    "message_completed": _message_completed,
    "tool_executing": _tool_executing,
    "tool_output": _tool_output,
    "tool_completed": _tool_completed,
    "state_changed": _state_changed,
    "approval_requested": _approval_requested,
    "approval_resolved": _approval_resolved,
    "agent_retrying": _agent_retrying,
    "usage": _usage,
    "agent_completed": _agent_completed,
    "agent_failed": _agent_failed,
    "agent_cancelled": _agent_cancelled,
}


def _object(value: Json) -> dict[str, Json]:
    return value if isinstance(value, dict) else {}


def _error(value: Json) -> Error | None:
    return None if value is None else Error.model_validate(value)
