"""Events: what a thread's log is made of. One record per type, one envelope for all.

`Draft` is an event before it is committed, `Event` after: it has its `seq` and its bytes for the wire.
Free values (inputs, outputs, metadata) are kept as canonical JSON bytes (`msgspec.Raw`), encoded once.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runstone import values
from runstone.errors import TooLarge
from runstone.limits import DELTA_BYTES_MAX, EVENT_BYTES_MAX

SCHEMA_VERSION = 1  # of payloads; older ones are raised by upcasters on read, rows are never rewritten
DELTA_CHARS_MAX = DELTA_BYTES_MAX // 4  # code points that fit a delta, however many bytes each takes
PROJECTION_VERSION = 1  # of what other protocols make of the log

OnBusy = Literal["enqueue", "interrupt", "reject"]
OnCrash = Literal["resume", "fail"]
Role = Literal["user", "assistant"]
Executor = Literal["server", "client", "provider", "agent"]
PartialReason = Literal["cancelled", "error", "timeout"]

ON_BUSY: tuple[OnBusy, ...] = get_args(OnBusy)


class Data(msgspec.Struct, frozen=True, kw_only=True):
    """The data of one event; what is `UNSET` is omitted."""


class ThreadCreated(Data, frozen=True, kw_only=True):
    title: str | UnsetType = UNSET
    metadata: Raw | UnsetType = UNSET
    key: str | UnsetType = UNSET
    by: str


class ThreadUpdated(Data, frozen=True, kw_only=True):
    title: str | UnsetType | None = UNSET
    metadata: Raw | UnsetType = UNSET
    by: str


class ThreadDeleted(Data, frozen=True, kw_only=True):
    by: str


class UserMessage(Data, frozen=True, kw_only=True):
    message_id: str
    parts: Raw
    by: str


class RunQueued(Data, frozen=True, kw_only=True):
    agent: str
    input: Raw
    message_id: str | UnsetType = UNSET
    on_busy: OnBusy
    key: str | UnsetType = UNSET
    parent_run_id: str | UnsetType = UNSET
    root_run_id: str
    by: str
    on_crash: OnCrash
    max_attempts: int
    timeout_s: float
    projection_version: int = PROJECTION_VERSION


class AttemptSuperseded(Data, frozen=True, kw_only=True):
    attempt: int
    reason: Literal["lost", "released"]
    messages: tuple[str, ...]


class AgentStarted(Data, frozen=True, kw_only=True):
    agent: str
    worker: str


class MessageStarted(Data, frozen=True, kw_only=True):
    message_id: str
    role: Role


class Delta(Data, frozen=True, kw_only=True):
    """A piece of one part of a message; `offset` counts code points of the part before it."""

    message_id: str
    part: int
    offset: int
    delta: str


class AgentThinking(Delta, frozen=True, kw_only=True):
    pass


class MessageDelta(Delta, frozen=True, kw_only=True):
    pass


class MessagePart(Data, frozen=True, kw_only=True):
    message_id: str
    part: int
    value: Raw


class MessageCompleted(Data, frozen=True, kw_only=True):
    message_id: str
    status: Literal["completed", "partial"]
    reason: PartialReason | UnsetType = UNSET
    length: int
    finish_reason: str | UnsetType = UNSET


class ToolInput(Data, frozen=True, kw_only=True):
    action_id: str
    tool: str
    delta: str


class ToolExecuting(Data, frozen=True, kw_only=True):
    """`key` is the caller's own name for the call, by which a later attempt finds it again.

    `beside`: the call was made in another task than the run's own, so its place among the others says nothing.
    """

    action_id: str
    tool: str
    input: Raw
    executor: Executor
    call_id: str | UnsetType = UNSET
    message_id: str | UnsetType = UNSET
    part: int | UnsetType = UNSET
    retry_of: str | UnsetType = UNSET
    key: str | UnsetType = UNSET
    beside: bool | UnsetType = UNSET


class ToolOutput(Data, frozen=True, kw_only=True):
    action_id: str
    delta: str


class ToolCompleted(Data, frozen=True, kw_only=True):
    action_id: str
    status: Literal["success", "error", "interrupted"]
    output: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET
    duration_ms: int
    inner: tuple[str, ...] | UnsetType = UNSET


class StepCompleted(Data, frozen=True, kw_only=True):
    """`inner`: the ids of what was said, done, asked and called inside; of those messages, none is superseded."""

    key: str
    output: Raw
    inner: tuple[str, ...] | UnsetType = UNSET


class StateChanged(Data, frozen=True, kw_only=True):
    key: str
    value: Raw


class ApprovalRequested(Data, frozen=True, kw_only=True):
    approval_id: str
    kind: Literal["approval", "question"]
    action_id: str | UnsetType = UNSET
    prompt: str
    input: Raw
    input_hash: str
    schema: Raw | UnsetType = UNSET
    key: str | UnsetType = UNSET
    expires_at: str


class ApprovalResolved(Data, frozen=True, kw_only=True):
    approval_id: str
    decision: Literal["approved", "denied", "answered", "expired", "cancelled"]
    value: Raw | UnsetType = UNSET
    by: str | UnsetType = UNSET
    comment: str | UnsetType = UNSET


class AgentRetrying(Data, frozen=True, kw_only=True):
    action_id: str | UnsetType = UNSET
    try_: int = msgspec.field(name="try")
    delay_ms: int
    error: Raw
    expected_recovery: str


class CancelRequested(Data, frozen=True, kw_only=True):
    by: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    deadline: str


class Usage(Data, frozen=True, kw_only=True):
    provider: str | UnsetType = UNSET
    model: str
    input_tokens: int
    output_tokens: int
    cached_input_tokens: int | UnsetType = UNSET
    reasoning_tokens: int | UnsetType = UNSET
    cost: float | UnsetType = UNSET


class ArtifactCreated(Data, frozen=True, kw_only=True):
    artifact_id: str
    name: str
    version: int
    digest: str
    size: int


class Custom(Data, frozen=True, kw_only=True):
    name: str
    value: Raw


class AgentCompleted(Data, frozen=True, kw_only=True):
    output: Raw
    usage: Raw


class AgentFailed(Data, frozen=True, kw_only=True):
    error: Raw


class AgentCancelled(Data, frozen=True, kw_only=True):
    by: str | UnsetType = UNSET
    reason: str | UnsetType = UNSET
    output: Raw | UnsetType = UNSET


TYPES: dict[str, type[Data]] = {
    "thread_created": ThreadCreated,
    "thread_updated": ThreadUpdated,
    "thread_deleted": ThreadDeleted,
    "user_message": UserMessage,
    "run_queued": RunQueued,
    "attempt_superseded": AttemptSuperseded,
    "agent_started": AgentStarted,
    "message_started": MessageStarted,
    "agent_thinking": AgentThinking,
    "message_delta": MessageDelta,
    "message_part": MessagePart,
    "message_completed": MessageCompleted,
    "tool_input": ToolInput,
    "tool_executing": ToolExecuting,
    "tool_output": ToolOutput,
    "tool_completed": ToolCompleted,
    "step_completed": StepCompleted,
    "state_changed": StateChanged,
    "approval_requested": ApprovalRequested,
    "approval_resolved": ApprovalResolved,
    "agent_retrying": AgentRetrying,
    "cancel_requested": CancelRequested,
    "usage": Usage,
    "artifact_created": ArtifactCreated,
    "custom": Custom,
    "agent_completed": AgentCompleted,
    "agent_failed": AgentFailed,
    "agent_cancelled": AgentCancelled,
}
TYPE_OF: dict[type[Data], str] = {data: name for name, data in TYPES.items()}


class Draft(msgspec.Struct, kw_only=True):
    """An event that is to be committed.

    `content` is not part of the event: the parts of a message that ends here, as its row will hold them.
    """

    data: Data
    run_id: str | None = None
    attempt: int | None = None
    metadata: Raw | None = None
    raw: Raw | None = None
    private: bool = False
    content: bytes | None = None

    @property
    def type(self) -> str:
        return TYPE_OF[type(self.data)]

    def payload(self) -> bytes:
        """Canonical bytes of `data`, `metadata` and `raw`; raises `TooLarge`."""
        payload = b'{"data":' + values.encode_record(self.data)
        if self.metadata is not None:
            payload += b',"metadata":' + bytes(self.metadata)
        if self.raw is not None:
            payload += b',"raw":' + bytes(self.raw)
        if len(payload) > EVENT_BYTES_MAX - _ENVELOPE_BYTES:
            raise TooLarge(f"A {self.type} event of {len(payload)} bytes; the most is {EVENT_BYTES_MAX}.")
        return payload + b"}"


_ENVELOPE_BYTES = 4096  # what the envelope may add: ids, user, type, time


class Payload(msgspec.Struct, frozen=True):
    """The free part of an event, as stored."""

    data: Raw
    given_metadata: Raw | UnsetType = msgspec.field(name="metadata", default=UNSET)  # `Raw | None` reads only null
    given_raw: Raw | UnsetType = msgspec.field(name="raw", default=UNSET)

    @property
    def metadata(self) -> Raw | None:
        return None if isinstance(self.given_metadata, UnsetType) else self.given_metadata

    @property
    def raw(self) -> Raw | None:
        return None if isinstance(self.given_raw, UnsetType) else self.given_raw


class Event(msgspec.Struct, frozen=True, gc=False):
    """A committed event. `wire` is its envelope as any client may see it."""

    seq: int
    run_id: str | None
    type: str
    wire: bytes


def data_of(type: str, payload: bytes) -> Data:
    """The record inside stored payload bytes."""
    return msgspec.json.decode(msgspec.json.decode(payload, type=Payload).data, type=TYPES[type])


def envelope_head(thread_id: str, run_id: str | None, attempt: int | None, user_id: str) -> bytes:
    """The middle of the envelope, which is the same for all events of one attempt."""
    head = b'"thread_id":' + values.encode(thread_id)
    if run_id is not None:
        head += b',"run_id":' + values.encode(run_id)
    if attempt is not None:
        head += b',"attempt":%d' % attempt
    return head + b',"user_id":' + values.encode(user_id) + b',"type":"'


def envelope(seq: int, head: bytes, type: str, time: bytes, payload: bytes) -> bytes:
    """The bytes of one event on the wire: stored payload bytes, spliced in as they are."""
    return b'{"seq":%d,%b%b","time":"%b",%b' % (seq, head, type.encode(), time, payload[1:])


def redacted(payload: bytes) -> bytes:
    """A private event's payload as clients see it: its ids, and that it is private."""
    data = values.decode(msgspec.json.decode(payload, type=Payload).data)
    assert isinstance(data, dict)
    shown = {name: value for name, value in data.items() if name.endswith("_id")}
    return b'{"data":' + values.encode(shown | {"private": True}) + b"}"
