"""What people are asked, listed and decided over HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from runstone.limits import INPUT_BYTES_MAX, REASON_CHARS_MAX
from tests.gateway.conftest import Stage

pytestmark = pytest.mark.anyio

YES = {"decision": "approve"}
NO = {"decision": "deny"}


async def decide(stage: Stage, approval: dict[str, Any], body: object) -> httpx2.Response:
    return await stage.alice.post(f"/v1/approvals/{approval['approval_id']}", json=body)


async def ended(stage: Stage, approval: dict[str, Any]) -> dict[str, Any]:
    answer = await stage.alice.get(f"/v1/runs/{approval['run_id']}", params={"wait_s": 30})
    run: dict[str, Any] = answer.json()
    assert run["ended_at"], run
    return run


def faults(answer: httpx2.Response) -> list[str]:
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    assert problem["code"] == "invalid"
    return [error["path"] for error in problem["errors"]]


async def listed(stage: Stage, **params: str) -> list[str]:
    answer = await stage.alice.get("/v1/approvals", params=params)
    assert answer.status_code == 200, answer.text
    return [approval["approval_id"] for approval in answer.json()["approvals"]]


@pytest.mark.parametrize(("body", "status"), [(YES, "approved"), (NO, "denied")])
async def test_an_approval_is_decided_and_the_run_goes_on(stage: Stage, body: dict[str, str], status: str) -> None:
    asked = await stage.asked("approves")
    assert (asked["status"], asked["kind"], asked["prompt"]) == ("open", "approval", "May I?")
    assert (asked["input"], asked["schema"], asked["resolved_at"]) == ({"n": 1}, None, None)
    assert (await stage.alice.get(f"/v1/runs/{asked['run_id']}")).json()["status"] == "waiting"

    answer = await decide(stage, asked, body | {"comment": "so be it"})

    assert answer.status_code == 200
    decided = answer.json()
    assert decided == asked | {
        "status": status,
        "by": "alice",
        "comment": "so be it",
        "resolved_at": decided["resolved_at"],
    }
    assert (await ended(stage, asked))["output"] == status


@pytest.mark.parametrize("value", [{}, {"here": 3}])
async def test_a_question_is_answered_with_a_value_of_its_schema(stage: Stage, value: dict[str, int]) -> None:
    asked = await stage.asked("asks")
    assert asked["schema"] == {"additionalProperties": {"type": "integer"}, "type": "object"}
    answer = await decide(stage, asked, {"decision": "answer", "value": value})
    assert (answer.status_code, answer.json()["status"], answer.json()["value"]) == (200, "answered", value)
    assert (await ended(stage, asked))["output"] == value


async def test_a_question_may_be_denied(stage: Stage) -> None:
    asked = await stage.asked("asks")
    assert (await decide(stage, asked, NO)).json()["status"] == "denied"
    assert (await ended(stage, asked))["output"] == "denied"


async def test_null_is_an_answer_where_the_schema_takes_it(stage: Stage) -> None:
    asked = await stage.asked("asks_anything")
    assert faults(await decide(stage, asked, {"decision": "answer"})) == ["value"]
    answer = await decide(stage, asked, {"decision": "answer", "value": None})
    assert (answer.status_code, answer.json()["status"]) == (200, "answered")
    assert faults(await decide(stage, asked, {"decision": "answer"})) == ["value"]
    assert (await ended(stage, asked))["status"] == "completed"


async def test_what_is_no_decision_is_refused_with_its_path_and_decides_nothing(stage: Stage) -> None:
    approval, question = await stage.asked("approves"), await stage.asked("asks")
    refused: list[tuple[dict[str, Any], object, list[str]]] = [
        (approval, {}, ["decision"]),
        (approval, {"decision": "approved"}, ["decision"]),
        (approval, {"decision": None}, ["decision"]),
        (approval, {"decision": "answer", "value": 1}, ["decision"]),
        (approval, YES | {"value": None}, ["value"]),
        (approval, YES | {"more": 1}, ["more"]),
        (approval, YES | {"comment": "x" * (REASON_CHARS_MAX + 1)}, ["comment"]),
        (question, YES, ["decision"]),
        (question, NO | {"value": 1}, ["value"]),
        (question, {"decision": "answer"}, ["value"]),
        (question, {"decision": "answer", "value": None}, ["value"]),
        (question, {"decision": "answer", "value": [1]}, ["value"]),
        (question, {"decision": "answer", "value": {"a": 1, "b": "x", "c": 2.5}}, ["value.b", "value.c"]),
    ]
    for asked, body, paths in refused:
        assert faults(await decide(stage, asked, body)) == paths, body
    assert await listed(stage, status="open") == [approval["approval_id"], question["approval_id"]]


async def test_an_answer_of_more_than_640_kib_is_too_large(stage: Stage) -> None:
    asked = await stage.asked("asks_anything")
    too_large = await decide(stage, asked, {"decision": "answer", "value": "x" * (INPUT_BYTES_MAX - 1)})
    assert (too_large.status_code, too_large.json()["code"]) == (413, "too_large")
    assert await listed(stage, status="open") == [asked["approval_id"]]
    largest = await decide(stage, asked, {"decision": "answer", "value": "x" * (INPUT_BYTES_MAX - 2)})
    assert largest.status_code == 200


async def test_the_same_decision_again_is_no_conflict_and_another_one_is(stage: Stage) -> None:
    approval, question = await stage.asked("approves"), await stage.asked("asks")
    first = await decide(stage, approval, YES | {"comment": "yes"})
    again = await decide(stage, approval, YES | {"comment": "yes, again"})
    assert (again.status_code, again.content) == (200, first.content)
    other = await decide(stage, approval, NO)
    assert (other.status_code, other.json()["code"]) == (409, "already_decided")
    assert "approved" in other.json()["detail"]

    answer = {"decision": "answer", "value": {"a": 1}}
    assert (await decide(stage, question, answer)).status_code == 200
    assert (await decide(stage, question, answer)).status_code == 200
    for conflict in (NO, {"decision": "answer", "value": {"a": 2}}):
        assert (await decide(stage, question, conflict)).status_code == 409
    assert (await ended(stage, question))["output"] == {"a": 1}


async def test_of_two_devices_that_decide_at_once_exactly_one_does(stage: Stage) -> None:
    for _ in range(10):
        asked = await stage.asked("approves")
        answers = await asyncio.gather(decide(stage, asked, YES), decide(stage, asked, NO))
        (taken,) = [answer.json() for answer in answers if answer.status_code == 200]
        (refused,) = [answer.json() for answer in answers if answer.status_code == 409]
        assert refused["code"] == "already_decided"
        assert taken["status"] in refused["detail"]
        assert (await ended(stage, asked))["output"] == taken["status"]
        events = (await stage.alice.get(f"/v1/threads/{asked['thread_id']}/events", params={"limit": 1000})).json()
        assert [e["data"]["decision"] for e in events["events"] if e["type"] == "approval_resolved"] == [
            taken["status"]
        ]


async def test_a_decision_that_comes_too_late_is_a_conflict(stage: Stage) -> None:
    asked = await stage.asked("approves", input={"expires_in_s": 0.001})
    for _ in range(2):
        late = await decide(stage, asked, YES)  # nobody has looked for what is expired yet
        assert (late.status_code, late.json()["code"]) == (409, "already_decided")
        assert "expired" in late.json()["detail"]
    assert (await ended(stage, asked))["output"] == "expired"
    (listing,) = (await stage.alice.get("/v1/approvals", params={"status": "expired"})).json()["approvals"]
    assert (listing["by"], listing["approval_id"]) == (None, asked["approval_id"])


async def test_approvals_of_others_and_of_deleted_threads_do_not_exist(stage: Stage) -> None:
    asked = await stage.asked("approves")
    place = f"/v1/approvals/{asked['approval_id']}"
    foreign = await stage.bob.post(place, json=YES)
    assert foreign.status_code == 404
    assert (await stage.bob.get("/v1/approvals")).json() == {"approvals": [], "next_cursor": None}
    assert (await stage.bob.get("/v1/approvals", params={"run_id": asked["run_id"]})).json()["approvals"] == []
    assert await listed(stage, status="open") == [asked["approval_id"]], "bob has not decided it"

    assert (await stage.alice.delete(f"/v1/threads/{asked['thread_id']}")).status_code == 204
    deleted = await stage.alice.post(place, json=YES)
    assert (deleted.status_code, deleted.content) == (404, foreign.content)
    assert await listed(stage) == []
    unknown = await stage.alice.post("/v1/approvals/apr_0", json=YES)
    told = foreign.text.replace(asked["approval_id"], "apr_0")
    assert (unknown.status_code, unknown.text) == (404, told)
    for body in ({}, {"decision": "answer"}):  # the body is looked at first, of whatever it is
        status = {(await user.post(place, json=body)).status_code for user in (stage.alice, stage.bob)}
        assert status == {422 if not body else 404}


async def test_approvals_are_listed_by_run_with_its_descendants_and_by_status(stage: Stage) -> None:
    parents = await stage.asked("parent")
    own = await stage.asked("approves")
    root = (await stage.alice.get(f"/v1/runs/{parents['run_id']}")).json()["root_run_id"]
    assert root != parents["run_id"], "its child asked"
    assert await listed(stage, run_id=root) == [parents["approval_id"]]
    assert await listed(stage, run_id=parents["run_id"]) == [parents["approval_id"]]
    assert await listed(stage) == [parents["approval_id"], own["approval_id"]]
    assert await listed(stage, order="desc") == [own["approval_id"], parents["approval_id"]]
    await decide(stage, parents, YES)
    assert await listed(stage, status="open") == [own["approval_id"]]
    assert await listed(stage, status="approved") == [parents["approval_id"]]
    assert faults(await stage.alice.get("/v1/approvals", params={"status": "undecided"})) == ["status"]
    page = (await stage.alice.get("/v1/approvals", params={"limit": 1})).json()
    assert [approval["approval_id"] for approval in page["approvals"]] == [parents["approval_id"]]
    assert await listed(stage, limit="1", cursor=page["next_cursor"]) == [own["approval_id"]]
