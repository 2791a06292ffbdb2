"""Resources: what the rows of a store look like to people, on the wire and in the clients alike."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PlainSerializer

from runstone.clock import to_rfc3339
from runstone.states import FINISHED, ApprovalStatus, Status


def _rfc3339(time: datetime) -> str:
    return to_rfc3339(round(time.timestamp() * 1_000_000))


Time = Annotated[datetime, PlainSerializer(_rfc3339, return_type=str, when_used="json")]
T = TypeVar("T")


class Resource(BaseModel):
    """Frozen; members that a newer server adds are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Error(Resource):
    """Why a run or an action failed; `id` is found in the server's log."""

    type: str
    message: str
    retryable: bool = False
    id: str | None = None


class UsageSum(Resource):
    """Model usage, summed over all attempts of a run."""

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int
    reasoning_tokens: int
    cost: float


class Preview(Resource):
    """The beginning of a thread's newest message."""

    message_id: str
    role: Literal["user", "assistant"]
    status: str
    content: str
    created_at: Time


class Thread(Resource):
    thread_id: str
    key: str | None
    title: str | None
    metadata: dict[str, JsonValue]
    status: Literal["idle", "queued", "running", "waiting"]
    last_message: Preview | None
    head: int
    created_at: Time
    updated_at: Time


class Run(Resource):
    run_id: str
    thread_id: str
    key: str | None
    agent: str
    status: Status
    attempt: int
    input: JsonValue
    output: JsonValue
    error: Error | None
    usage: UsageSum | None
    metadata: dict[str, JsonValue]
    parent_run_id: str | None
    root_run_id: str
    created_at: Time
    started_at: Time | None
    ended_at: Time | None
    first_seq: int
    last_seq: int | None
    interrupted: list[str] | None = None  # only in the answer to a start with on_busy=interrupt

    @property
    def ended(self) -> bool:
        return self.status in FINISHED


class Message(Resource):
    message_id: str
    thread_id: str
    run_id: str | None
    role: Literal["user", "assistant"]
    status: Literal["streaming", "completed", "partial", "superseded"]
    reason: str | None
    content: str
    parts: list[dict[str, JsonValue]]
    first_seq: int
    last_seq: int
    created_at: Time
    metadata: dict[str, JsonValue]


class Action(Resource):
    action_id: str
    thread_id: str
    run_id: str
    tool: str
    executor: Literal["server", "client", "provider", "agent"]
    input: JsonValue
    status: Literal["pending", "success", "error", "interrupted"]
    output: JsonValue
    error: Error | None
    started_at: Time
    ended_at: Time | None
    seq: int


class Approval(Resource):
    """A question to a person; `value` is the answer to one of kind question."""

    model_config = ConfigDict(serialize_by_alias=True)

    approval_id: str
    thread_id: str
    run_id: str
    action_id: str | None
    kind: Literal["approval", "question"]
    prompt: str
    input: JsonValue
    input_hash: str
    schema_: JsonValue = Field(alias="schema")  # pydantic has a method of that name
    status: ApprovalStatus
    value: JsonValue
    by: str | None
    comment: str | None
    created_at: Time
    expires_at: Time
    resolved_at: Time | None


class AgentInfo(Resource):
    name: str
    description: str | None
    input_schema: dict[str, JsonValue]


class Listing(Resource, Generic[T]):
    """One page of resources; `head` only under a thread, `feed_head` only on the first page of threads.

    Both are read in the same transaction.
    """

    items: list[T]
    next_cursor: str | None
    head: int | None = None
    feed_head: int | None = None
