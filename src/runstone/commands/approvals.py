"""Questions to people: decided, or ended by time."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, Raw

from runstone import events as e
from runstone.errors import NotFound
from runstone.events import Draft
from runstone.states import ApprovalStatus
from runstone.store import (
    ApprovalRow,
    Command,
    Decision,
    Facts,
    Need,
)


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a person decides; `value` only with `answered`."""

    decision: Literal["approved", "denied", "answered"]
    value: Raw | None = None
    comment: str | None = None


class Answered(msgspec.Struct, frozen=True):
    """How an approval stands after somebody tried to decide it: `taken` where it stands as they wanted."""

    status: ApprovalStatus
    taken: bool


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


def _expired(approval: ApprovalRow) -> Draft:
    data = e.ApprovalResolved(approval_id=approval.approval_id, decision="expired")
    return Draft(data=data, run_id=approval.run_id)
