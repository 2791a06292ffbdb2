"""What people decide: the words of a request, held against what was asked."""

from __future__ import annotations

from runstone import schemas
from runstone.commands import Answer
from runstone.errors import Invalid
from runstone.gateway.bodies import DecisionBody, sized
from runstone.resources import Approval

_TAKES = {"approval": ("approve", "deny"), "question": ("answer", "deny")}


def answer_of(approval: Approval, body: DecisionBody) -> Answer:
    """Raises Invalid where the decision is not one that this kind takes or its value not of the form asked for."""
    if body.decision not in _TAKES[approval.kind]:
        raise Invalid.at("decision", f"this is of kind {approval.kind}: it takes {' or '.join(_TAKES[approval.kind])}")
    given = "value" in body.model_fields_set
    if body.decision != "answer":
        if given:
            raise Invalid.at("value", "goes with answer only")
        return Answer(decision="approved" if body.decision == "approve" else "denied", comment=body.comment)
    if not given:
        raise Invalid.at("value", "an answer has one; it may be null")
    value = sized("value", body.value)
    found = schemas.faults(approval.schema_, body.value)
    if found:
        errors = [{"path": ".".join(map(str, ("value", *path))), "detail": detail} for path, detail in found]
        raise Invalid(f"{errors[0]['path']}: {errors[0]['detail']}", errors)
    return Answer(decision="answered", value=value, comment=body.comment)
