"""How runs end: everything that is open is closed, children first, then the one terminal event."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw, UnsetType

from runstone import events as e
from runstone import values
from runstone.events import Draft
from runstone.store import (
    Facts,
    OpenMessage,
    Unfinished,
)


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


def ending(facts: Facts, item: Unfinished, outcome: Outcome, *, attempt: int | None) -> list[Draft]:
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
    drafts += interrupted(facts, item)
    drafts += [
        Draft(data=e.ApprovalResolved(approval_id=approval_id, decision="cancelled")) for approval_id in item.approvals
    ]
    drafts.append(Draft(data=end))
    for draft in drafts:
        draft.run_id, draft.attempt = run.run_id, attempt
    below = [draft for child in item.children for draft in ending(facts, child, Cancelled("parent"), attempt=None)]
    return below + drafts


def interrupted(facts: Facts, item: Unfinished) -> list[Draft]:
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
