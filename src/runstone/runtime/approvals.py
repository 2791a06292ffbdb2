"""Questions to people: written down before anyone is asked, answered from anywhere, found again by later attempts."""

from __future__ import annotations

import math
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Raw
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from runstone import events as e
from runstone import schemas, values
from runstone.clock import to_rfc3339
from runstone.errors import ApprovalDenied, Invalid
from runstone.failpoints import hit
from runstone.ids import new_id
from runstone.limits import APPROVAL_S_MAX, INPUT_BYTES_MAX, PROMPT_CHARS_MAX
from runstone.runtime.attempt import Attempt, gathered
from runstone.runtime.bounds import bounded, sized
from runstone.states import ApprovalStatus
from runstone.store import RecordedApproval
from runstone.values import Json

APPROVAL_S = 86_400.0  # a day, over a night and a flight


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What a person decided; true only when they approved."""

    approval_id: str
    status: ApprovalStatus
    value: Json = None
    by: str | None = None
    comment: str | None = None
    action_id: str | None = None  # the id that the approved tool call will have

    def __bool__(self) -> bool:
        return self.status == "approved"


async def approve(
    attempt: Attempt, prompt: str, input: Json, *, expires_in_s: float, key: str | None, of_tool: bool = False
) -> Decision:
    """Asks whether something may be done; returns when it is decided, or its time is over."""
    return await _decided(attempt, "approval", prompt, input, None, expires_in_s, key, of_tool=of_tool)


async def ask(attempt: Attempt, prompt: str, schema: Any, *, expires_in_s: float, key: str | None) -> Any:
    """The answer to a question, as a value of the type that `schema` names. Raises ApprovalDenied without one."""
    try:
        adapter = TypeAdapter[Any](Any if isinstance(schema, dict) else schema)
        described = schema if isinstance(schema, dict) else adapter.json_schema()
    except (PydanticUserError, NameError) as error:
        raise Invalid.at("schema", f"must be a type that JSON can be read into: {error}") from None
    encoded = sized("schema", described, INPUT_BYTES_MAX)
    schemas.check(values.decode(encoded))
    decision = await _decided(attempt, "question", prompt, None, encoded, expires_in_s, key)
    if decision.status != "answered":
        raise ApprovalDenied(f"The question was not answered: it is {decision.status}.")
    try:
        return adapter.validate_json(values.encode(decision.value))
    except ValidationError as error:
        raise Invalid.at("value", f"the answer is not of the type that was asked for: {error}") from None


async def _decided(
    attempt: Attempt,
    kind: Literal["approval", "question"],
    prompt: str,
    input: Json,
    schema: Raw | None,
    expires_in_s: float,
    key: str | None,
    *,
    of_tool: bool = False,
) -> Decision:
    bounded("prompt", prompt, PROMPT_CHARS_MAX)
    if not (math.isfinite(expires_in_s) and 0 < expires_in_s <= APPROVAL_S_MAX):
        raise Invalid.at("expires_in_s", f"must be above 0 and at most {APPROVAL_S_MAX:.0f}")
    encoded = sized("input", input, INPUT_BYTES_MAX)
    found = attempt.replay.approval(kind, prompt, bytes(encoded), key, of_tool=of_tool)
    if found is not None and found.status != "open":
        gathered(found.approval_id)
        return _decision(found)
    approval_id = new_id("apr") if found is None else found.approval_id
    if found is None:
        expires = attempt.clock.now_us() + round(expires_in_s * 1_000_000)
        data = e.ApprovalRequested(
            approval_id=approval_id,
            kind=kind,
            action_id=new_id("act") if of_tool else UNSET,
            prompt=prompt,
            input=encoded,
            input_hash=values.digest(bytes(encoded)),
            schema=UNSET if schema is None else schema,
            key=UNSET if key is None else key,
            expires_at=to_rfc3339(expires),
        )
        await attempt.outbox.append(attempt.draft(data))
        hit("asked")
    gathered(approval_id)
    with attempt.presence.asking():
        decided = await attempt.answers.wait(attempt.row.run_id, approval_id)
        hit("answered")
        return _decision(decided)


def _decision(approval: RecordedApproval) -> Decision:
    return Decision(
        approval_id=approval.approval_id,
        status=approval.status,
        value=None if approval.value is None else values.decode(approval.value),
        by=approval.by,
        comment=approval.comment,
        action_id=approval.action_id,
    )
