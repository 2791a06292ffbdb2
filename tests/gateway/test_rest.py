"""The routes in this process: statuses, codes, shapes, keys, lists and pages, as PROTOCOL.md gives them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Stage

pytestmark = pytest.mark.anyio

UNKNOWN_THREAD = "thr_00000000-0000-7000-8000-000000000000"
UNKNOWN_RUN = "run_00000000-0000-7000-8000-000000000000"
JSON_TYPE = {"content-type": "application/json"}

THREAD = {"thread_id", "key", "title", "metadata", "status", "last_message", "head", "created_at", "updated_at"}
RUN = {
    *("run_id", "thread_id", "key", "agent", "status", "attempt", "input", "output", "error", "usage", "metadata"),
    *("parent_run_id", "root_run_id", "created_at", "started_at", "ended_at", "first_seq", "last_seq"),
}
MESSAGE = {
    *("message_id", "thread_id", "run_id", "role", "status", "reason", "content", "parts", "first_seq", "last_seq"),
    *("created_at", "metadata"),
}
ACTION = {
    *("action_id", "thread_id", "run_id", "tool", "executor", "input", "status", "output", "error"),
    *("started_at", "ended_at", "seq"),
}


def assert_problem(response: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    """An RFC 9457 problem with everything that PROTOCOL.md promises of one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = response.json()
    assert problem["code"] == code
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert all(problem[name] for name in ("title", "detail", "remedy"))
    assert ("errors" in problem) == (code == "invalid")
    for error in problem.get("errors", ()):
        assert set(error) == {"path", "detail"}
    return problem


# --- resources ------------------------------------------------------------


async def test_a_new_thread_is_answered_201_with_every_member_of_a_thread(stage: Stage) -> None:
    body = {"title": "a title", "metadata": {"team": "x", "n": [1, None, 2.5]}}
    made = await stage.alice.post("/v1/threads", json=body)
    assert made.status_code == 201
    thread = made.json()
    assert set(thread) == THREAD
    assert thread | body == thread
    assert (thread["status"], thread["last_message"], thread["head"], thread["key"]) == ("idle", None, 1, None)
    assert (await stage.alice.get(f"/v1/threads/{thread['thread_id']}")).content == made.content


async def test_a_run_is_answered_201_and_read_back_with_every_member_of_a_run(stage: Stage) -> None:
    made = await stage.start("say", message="hello", metadata={"trace": "t"})
    assert set(made) == RUN
    assert (made["status"], made["attempt"]) in {("queued", 0), ("running", 1)}, "it may have been claimed already"
    assert (made["input"], made["metadata"]) == ("hello", {"trace": "t"})
    run = await stage.finished("say", message="hello")
    assert set(run) == RUN
    assert (run["status"], run["attempt"], run["output"], run["error"]) == ("completed", 1, 5, None)
    assert (run["root_run_id"], run["parent_run_id"]) == (run["run_id"], None)
    assert run["created_at"] <= run["started_at"] <= run["ended_at"]


async def test_a_failed_run_shows_its_error_and_keeps_what_was_said(stage: Stage) -> None:
    run = await stage.finished("fails", input="no paper")
    run = await stage.finished("fails", input="no paper")
    error = run["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["message"], error["retryable"]) == ("AgentError", "no paper", False)
    [_, said] = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/messages")).json()["messages"]
    assert said["content"] == "so far"


async def test_messages_show_who_said_what_with_every_member(stage: Stage) -> None:
    run = await stage.finished("say", message={"parts": [{"type": "text", "text": "hi"}], "metadata": {"m": 1}})
    page = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/messages")).json()
    assert set(page) == {"messages", "next_cursor", "head"}
    user, assistant = page["messages"]
    assert set(user) == set(assistant) == MESSAGE
    assert (user["role"], user["content"], user["metadata"]) == ("user", "hi", {"m": 1})
    assert (assistant["role"], assistant["status"], assistant["content"]) == ("assistant", "completed", "hi")
    assert assistant["parts"] == [{"type": "text", "text": "hi"}]
    assert user["run_id"] == assistant["run_id"] == run["run_id"]


async def test_a_message_that_streams_is_listed_with_its_content_so_far(stage: Stage) -> None:
    run = await stage.start("held", input="half a sen")
    await stage.said(run)
    page = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/messages", params={"role": "assistant"})).json()
    assert [message["content"] for message in page["messages"]] == ["half a sen"]
    stage.curtain.set()


async def test_actions_show_a_private_tool_without_what_went_in_and_out(stage: Stage) -> None:
    run = await stage.finished("tooler", input="drop")
    page = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/actions")).json()
    public, private = page["actions"]
    assert set(public) == set(private) == ACTION
    assert (public["tool"], public["status"], public["output"]) == ("look_up", "success", ["drop", "DROP"])
    assert public["input"] == {"query": "drop"}
    assert (private["status"], private["input"], private["output"]) == ("success", None, None)
    events = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/events")).text
    assert "pord" not in events
    [hidden] = [event for event in json.loads(events)["events"] if event["data"].get("private")][:1]
    assert set(hidden["data"]) <= {"private", "action_id", "message_id", "call_id"}


async def test_state_shows_public_keys_only(stage: Stage) -> None:
    run = await stage.finished("keeper", input={"shown": "yes", "hidden": "no, never"})
    answer = await stage.alice.get(f"/v1/threads/{run['thread_id']}/state")
    assert answer.json() == {"state": {"shown": "yes"}, "head": run["last_seq"]}
    assert (
        "never"
        not in (await stage.alice.get(f"/v1/threads/{run['thread_id']}/events"))
        .text.split("run_queued")[1]
        .split("agent_started")[1]
    )


async def test_agents_are_listed_with_the_schema_of_their_input(stage: Stage) -> None:
    agents = {agent["name"]: agent for agent in (await stage.alice.get("/v1/agents")).json()["agents"]}
    assert {"say", "held", "keeper"} <= set(agents)
    assert all(set(agent) == {"name", "description", "input_schema"} for agent in agents.values())
    assert agents["say"]["description"] == "Says a text."
    assert set(agents["keeper"]["input_schema"]["properties"]) == {"shown", "hidden"}


async def test_an_imported_history_is_there_as_messages_before_any_run(stage: Stage) -> None:
    history: list[dict[str, Any]] = [
        {"role": "user", "parts": [{"type": "text", "text": "what is this?"}], "metadata": {"from": "before"}},
        {
            "role": "assistant",
            "parts": [
                {"type": "reasoning", "text": "look"},
                {"type": "text", "text": "a picture"},
                {"type": "file", "url": "https://example.org/a.png", "media_type": "image/png"},
                {"type": "data", "value": {"k": [1]}},
                {"type": "source", "url": "https://example.org", "title": "there"},
            ],
        },
        {"role": "assistant", "parts": [{"type": "text", "text": ""}]},
    ]
    thread_id = await stage.thread(messages=history)
    messages = (await stage.alice.get(f"/v1/threads/{thread_id}/messages")).json()["messages"]
    assert [message["parts"] for message in messages] == [message["parts"] for message in history]
    assert [message["content"] for message in messages] == ["what is this?", "a picture", ""]
    assert {(message["run_id"], message["status"]) for message in messages} == {(None, "completed")}
    events = (await stage.alice.get(f"/v1/threads/{thread_id}/events")).json()["events"]
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert all("run_id" not in event for event in events)
    thread = (await stage.alice.get(f"/v1/threads/{thread_id}")).json()
    assert thread["status"] == "idle"


async def test_a_string_input_is_the_message_and_a_message_is_the_input(stage: Stage) -> None:
    by_input = await stage.finished("say", input="one")
    by_message = await stage.finished("say", message="two")
    by_both = await stage.finished("anything", input={"value": 3}, message="three")
    by_neither = await stage.finished("anything", input={"value": 4})
    said = []
    for run in (by_input, by_message, by_both, by_neither):
        page = await stage.alice.get(f"/v1/threads/{run['thread_id']}/messages", params={"role": "user"})
        said.append([message["content"] for message in page.json()["messages"]])
    assert said == [["one"], ["two"], ["three"], []]
    assert [run["input"] for run in (by_input, by_message, by_both, by_neither)] == [
        "one",
        "two",
        {"value": 3},
        {"value": 4},
    ]


# --- PATCH and DELETE ------------------------------------------------------------------------------------------


async def test_patch_replaces_what_it_names_whole_and_leaves_the_rest(stage: Stage) -> None:
    thread_id = await stage.thread(title="old", metadata={"a": 1, "b": 2})
    path = f"/v1/threads/{thread_id}"
    only_title = (await stage.alice.patch(path, json={"title": "new"})).json()
    assert (only_title["title"], only_title["metadata"]) == ("new", {"a": 1, "b": 2})
    only_metadata = (await stage.alice.patch(path, json={"metadata": {"c": 3}})).json()
    assert (only_metadata["title"], only_metadata["metadata"]) == ("new", {"c": 3})
    emptied = (await stage.alice.patch(path, json={"title": None, "metadata": {}})).json()
    assert (emptied["title"], emptied["metadata"]) == (None, {})
    before = emptied["head"]
    nothing = await stage.alice.patch(path, json={})
    assert nothing.status_code == 200
    assert nothing.json()["head"] == before
    types = [event["type"] for event in (await stage.alice.get(f"{path}/events")).json()["events"]]
    assert types == ["thread_created", "thread_updated", "thread_updated", "thread_updated"]


async def test_delete_ends_what_runs_in_one_commit_and_then_nothing_is_there(stage: Stage) -> None:
    thread_id = await stage.thread()
    running = await stage.start("held", thread_id=thread_id)
    await stage.said(running)
    queued = await stage.start("held", thread_id=thread_id)
    opened = asyncio.Event()
    watcher = asyncio.create_task(_sse_text(stage.alice, f"/v1/threads/{thread_id}/events", opened))
    await opened.wait()
    path = f"/v1/threads/{thread_id}"
    answer = await stage.alice.delete(path)
    assert (answer.status_code, answer.content) == (204, b"")
    seen = await asyncio.wait_for(watcher, 10)
    events = [json.loads(line[6:]) for line in seen.split("\n") if line.startswith('data: {"seq"')]
    assert events[-1]["type"] == "thread_deleted"
    ends = {event["run_id"]: event for event in events if event["type"] == "agent_cancelled"}
    assert set(ends) == {running["run_id"], queued["run_id"]}
    assert all(end["data"] == {"reason": "deleted"} for end in ends.values())
    closed = [event for event in events if event["type"] == "message_completed"]
    assert [event["data"]["status"] for event in closed] == ["partial"]
    times = {event["time"] for event in events if event["seq"] >= min(end["seq"] for end in ends.values())}
    assert len(times) == 1, "one commit has one time"
    assert seen.endswith('event: closing\ndata: {"reason":"deleted"}\n\n')
    for run in (running, queued):
        for way in ("", "/events"):
            assert_problem(await stage.alice.get(f"/v1/runs/{run['run_id']}{way}"), 404, "not_found")
        assert_problem(await stage.alice.post(f"/v1/runs/{run['run_id']}/cancel"), 404, "not_found")
    for way in ("", "/messages", "/actions", "/state", "/events"):
        assert_problem(await stage.alice.get(f"{path}{way}"), 404, "not_found")
    assert_problem(await stage.alice.delete(path), 404, "not_found")
    assert_problem(await stage.alice.patch(path, json={"title": "x"}), 404, "not_found")
    assert_problem(await stage.alice.post(f"{path}/runs", json={"agent": "say", "input": "x"}), 404, "not_found")
    assert (await stage.alice.get("/v1/threads")).json()["threads"] == []
    assert (await stage.alice.get("/v1/runs")).json()["runs"] == []
    assert (await stage.alice.get("/v1/runs", params={"thread_id": thread_id})).json()["runs"] == []


async def _sse_text(client: httpx2.AsyncClient, path: str, opened: asyncio.Event) -> str:
    async with client.stream("GET", path, headers={"accept": "text/event-stream"}) as response:
        assert response.status_code == 200
        opened.set()
        return (await response.aread()).decode()


async def test_a_key_is_free_again_after_what_it_made_was_deleted(stage: Stage) -> None:
    first = await stage.thread(key="k")
    run = await stage.start("say", thread_id=first, input="x", key="r")
    assert (await stage.alice.delete(f"/v1/threads/{first}")).status_code == 204
    again = await stage.alice.post("/v1/threads", json={"key": "k"})
    assert again.status_code == 201
    assert again.json()["thread_id"] != first
    restarted = await stage.alice.post("/v1/runs", json={"agent": "say", "input": "x", "key": "r"})
    assert restarted.status_code == 201
    assert restarted.json()["run_id"] != run["run_id"]


# --- runs: waiting, cancelling, busy threads ------------------------------------------------------------


async def test_wait_s_answers_at_the_end_of_the_run_and_not_before(stage: Stage) -> None:
    run = await stage.start("held")
    path = f"/v1/runs/{run['run_id']}"
    short = (await stage.alice.get(path, params={"wait_s": 0.05})).json()
    assert short["status"] in {"queued", "running"}
    waiting = asyncio.create_task(stage.alice.get(path, params={"wait_s": 1e9}))  # above 60 counts as 60
    await stage.said(run)
    assert not waiting.done()
    stage.curtain.set()
    ended = (await asyncio.wait_for(waiting, 10)).json()
    assert (ended["status"], ended["output"]) == ("completed", "held")


@pytest.mark.parametrize("wait_s", ["-1", "nan", "soon", ""])
async def test_a_wait_that_is_no_time_is_422(stage: Stage, wait_s: str) -> None:
    run = await stage.finished("say", input="x")
    problem = assert_problem(await stage.alice.get(f"/v1/runs/{run['run_id']}?wait_s={wait_s}"), 422, "invalid")
    assert problem["errors"][0]["path"] == "wait_s"


async def test_cancel_is_202_until_the_run_has_ended_and_200_after(stage: Stage) -> None:
    run = await stage.start("held")
    await stage.said(run)
    path = f"/v1/runs/{run['run_id']}"
    first = await stage.alice.post(f"{path}/cancel", json={"reason": "enough"})
    assert first.status_code == 202
    assert first.json()["run_id"] == run["run_id"]
    ended = (await stage.alice.get(path, params={"wait_s": 30})).json()
    assert ended["status"] == "cancelled"
    again = await stage.alice.post(f"{path}/cancel")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    events = (await stage.alice.get(f"{path}/events")).json()["events"]
    asked = [event["data"] for event in events if event["type"] == "cancel_requested"]
    assert [(data["by"], data["reason"]) for data in asked] == [("alice", "enough")]
    assert events[-1]["type"] == "agent_cancelled"


async def test_two_cancels_at_once_write_one_event(stage: Stage) -> None:
    run = await stage.start("held")
    await stage.said(run)
    path = f"/v1/runs/{run['run_id']}"
    answers = await asyncio.gather(*(stage.alice.post(f"{path}/cancel") for _ in range(5)))
    assert {answer.status_code for answer in answers} <= {200, 202}
    assert answers[0].status_code == 202
    await stage.alice.get(path, params={"wait_s": 30})
    events = (await stage.alice.get(f"{path}/events")).json()["events"]
    assert [event["type"] for event in events].count("cancel_requested") == 1


async def test_enqueue_waits_for_the_run_before_it(stage: Stage) -> None:
    thread_id = await stage.thread()
    first = await stage.start("held", thread_id=thread_id)
    await stage.said(first)
    second = await stage.start("say", thread_id=thread_id, input="after", on_busy="enqueue")
    assert "interrupted" not in second
    assert (await stage.alice.get(f"/v1/runs/{second['run_id']}")).json()["status"] == "queued"
    assert (await stage.alice.get(f"/v1/threads/{thread_id}")).json()["status"] == "running"
    stage.curtain.set()
    ended = (await stage.alice.get(f"/v1/runs/{second['run_id']}", params={"wait_s": 30})).json()
    before = (await stage.alice.get(f"/v1/runs/{first['run_id']}")).json()
    assert before["last_seq"] < ended["last_seq"]
    assert before["ended_at"] <= ended["started_at"]


async def test_interrupt_cancels_the_others_and_says_which(stage: Stage) -> None:
    thread_id = await stage.thread()
    first = await stage.start("held", thread_id=thread_id)
    await stage.said(first)
    waiting = await stage.start("held", thread_id=thread_id)
    made = await stage.alice.post(
        f"/v1/threads/{thread_id}/runs", json={"agent": "say", "input": "me", "on_busy": "interrupt", "key": "i"}
    )
    assert made.status_code == 201
    assert set(made.json()["interrupted"]) == {first["run_id"], waiting["run_id"]}
    ended = (await stage.alice.get(f"/v1/runs/{made.json()['run_id']}", params={"wait_s": 30})).json()
    assert ended["status"] == "completed"
    assert "interrupted" not in ended
    for run in (first, waiting):
        assert (await stage.alice.get(f"/v1/runs/{run['run_id']}")).json()["status"] == "cancelled"
    idle = await stage.alice.post(
        f"/v1/threads/{thread_id}/runs", json={"agent": "say", "input": "x", "on_busy": "interrupt"}
    )
    assert idle.json()["interrupted"] == []


async def test_reject_is_409_thread_busy_and_leaves_no_trace(stage: Stage) -> None:
    thread_id = await stage.thread()
    run = await stage.start("held", thread_id=thread_id)
    await stage.said(run)
    head = (await stage.alice.get(f"/v1/threads/{thread_id}")).json()["head"]
    body = {"agent": "say", "input": "x", "on_busy": "reject", "key": "again"}
    assert_problem(await stage.alice.post(f"/v1/threads/{thread_id}/runs", json=body), 409, "thread_busy")
    assert (await stage.alice.get(f"/v1/threads/{thread_id}")).json()["head"] == head
    stage.curtain.set()
    await stage.alice.get(f"/v1/runs/{run['run_id']}", params={"wait_s": 30})
    later = await stage.alice.post(f"/v1/threads/{thread_id}/runs", json=body)
    assert later.status_code == 201, "a refused request keeps no key"


async def test_a_wrong_body_is_told_before_the_state_of_the_thread(stage: Stage) -> None:
    thread_id = await stage.thread()
    await stage.said(await stage.start("held", thread_id=thread_id))
    for body, status, code in (
        ({"agent": "nobody", "on_busy": "reject"}, 404, "unknown_agent"),
        ({"agent": "say", "on_busy": "reject"}, 422, "invalid"),
        ({"agent": "say", "input": "x", "on_busy": "shout"}, 422, "invalid"),
    ):
        assert_problem(await stage.alice.post(f"/v1/threads/{thread_id}/runs", json=body), status, code)
    assert_problem(
        await stage.alice.post(f"/v1/threads/{UNKNOWN_THREAD}/runs", json={"agent": "say", "input": 3}), 422, "invalid"
    )


# --- keys ------------------------------------------------------------


async def test_the_same_key_and_body_give_200_and_what_was_made_whatever_the_order_of_members(stage: Stage) -> None:
    first = await stage.alice.post(
        "/v1/threads", content=b'{"title":"t","metadata":{"a":1,"b":2},"key":"k"}', headers=JSON_TYPE
    )
    again = await stage.alice.post(
        "/v1/threads", content=b'{ "key":"k", "metadata":{"b":2,"a":1}, "title":"\\u0074"}', headers=JSON_TYPE
    )
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.content == first.content
    by_header = await stage.alice.post(
        "/v1/threads", json={"title": "t", "metadata": {"a": 1, "b": 2}}, headers={"idempotency-key": "k"}
    )
    assert (by_header.status_code, by_header.content) == (200, first.content)
    assert len((await stage.alice.get("/v1/threads")).json()["threads"]) == 1


async def test_another_body_under_a_used_key_is_422_key_reused(stage: Stage) -> None:
    await stage.thread(key="k", title="one")
    assert_problem(await stage.alice.post("/v1/threads", json={"key": "k", "title": "two"}), 422, "key_reused")
    assert_problem(await stage.alice.post("/v1/threads", json={"key": "k"}), 422, "key_reused")
    run = await stage.start("say", input="x", key="r")
    assert_problem(
        await stage.alice.post("/v1/runs", json={"agent": "say", "input": "y", "key": "r"}), 422, "key_reused"
    )
    elsewhere = f"/v1/threads/{run['thread_id']}/runs"
    assert_problem(
        await stage.alice.post(elsewhere, json={"agent": "say", "input": "x", "key": "r"}), 422, "key_reused"
    )


async def test_a_key_is_unique_per_kind_and_user(stage: Stage) -> None:
    thread = await stage.alice.post("/v1/threads", json={"key": "same"})
    run = await stage.alice.post("/v1/runs", json={"agent": "say", "input": "x", "key": "same"})
    theirs = await stage.bob.post("/v1/threads", json={"key": "same"})
    assert [answer.status_code for answer in (thread, run, theirs)] == [201, 201, 201]
    assert theirs.json()["thread_id"] != thread.json()["thread_id"]


async def test_a_header_that_differs_from_the_key_in_the_body_is_422(stage: Stage) -> None:
    differs = await stage.alice.post("/v1/threads", json={"key": "a"}, headers={"idempotency-key": "b"})
    assert_problem(differs, 422, "invalid")
    same = await stage.alice.post("/v1/threads", json={"key": "a"}, headers={"idempotency-key": "a"})
    assert same.status_code == 201
    for bad in ("", "x" * 257):
        assert_problem(await stage.alice.post("/v1/threads", json={}, headers={"idempotency-key": bad}), 422, "invalid")
        assert_problem(await stage.alice.post("/v1/threads", json={"key": bad}), 422, "invalid")


async def test_a_race_of_many_with_one_key_makes_one_thread_and_one_run(stage: Stage) -> None:
    body = {"agent": "say", "input": "once", "key": "race", "thread_key": "race"}
    answers = await asyncio.gather(*(stage.alice.post("/v1/runs", json=body) for _ in range(20)))
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    assert len({answer.json()["run_id"] for answer in answers}) == 1
    threads = await asyncio.gather(*(stage.alice.post("/v1/threads", json={"key": "both"}) for _ in range(20)))
    assert sorted(answer.status_code for answer in threads) == [200] * 19 + [201]
    assert len((await stage.alice.get("/v1/threads")).json()["threads"]) == 2


async def test_a_key_of_a_refused_request_is_not_kept(stage: Stage) -> None:
    assert_problem(await stage.alice.post("/v1/runs", json={"agent": "say", "key": "k"}), 422, "invalid")
    made = await stage.alice.post("/v1/runs", json={"agent": "say", "input": "x", "key": "k"})
    assert made.status_code == 201


async def test_a_thread_key_makes_the_thread_or_finds_it(stage: Stage) -> None:
    first = await stage.start("say", input="a", thread_key="room")
    second = await stage.start("say", input="b", thread_key="room")
    assert first["thread_id"] == second["thread_id"]
    thread = (await stage.alice.get(f"/v1/threads/{first['thread_id']}")).json()
    assert thread["key"] == "room"
    made_here = await stage.thread(key="there", title="named")
    third = await stage.start("say", input="c", thread_key="there")
    assert third["thread_id"] == made_here
    assert (await stage.alice.post("/v1/threads", json={"key": "room"})).status_code == 200


# --- lists ------------------------------------------------------------


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "1.5", "many", ""])
async def test_a_limit_outside_1_to_1000_is_422_on_every_list(stage: Stage, limit: str) -> None:
    run = await stage.finished("say", input="x")
    thread = f"/v1/threads/{run['thread_id']}"
    lists = ["/v1/threads", "/v1/runs", *(f"{thread}/{name}" for name in ("messages", "actions", "events"))]
    for path in [*lists, f"/v1/runs/{run['run_id']}/events"]:
        problem = assert_problem(await stage.alice.get(f"{path}?limit={limit}"), 422, "invalid")
        assert problem["errors"][0]["path"] == "limit"


@pytest.mark.parametrize(
    "cursor",
    ["x", "é", "WzEsIlx1ZDgwMCJd", "W10", "e30", "WzkyMjMzNzIwMzY4NTQ3NzU4MDgsIngiXQ", "%00", "W1tbW1tbW1tb"],
    ids=["letter", "accent", "surrogate", "empty", "object", "64bits", "nul", "deep"],
)
async def test_a_cursor_that_no_list_gave_is_422(stage: Stage, cursor: str) -> None:
    for path in ("/v1/threads", "/v1/runs"):
        assert_problem(await stage.alice.get(f"{path}?cursor={cursor}"), 422, "invalid")


async def test_pages_of_every_list_come_together_to_the_whole_in_both_orders(stage: Stage) -> None:
    thread_id = await stage.thread()
    for number in range(5):
        await stage.finished("tooler", thread_id=thread_id, message=f"word{number}")
        await stage.finished("say", input="elsewhere")
    for path, plural, name in (
        ("/v1/threads", "threads", "thread_id"),
        ("/v1/runs", "runs", "run_id"),
        (f"/v1/threads/{thread_id}/messages", "messages", "message_id"),
        (f"/v1/threads/{thread_id}/actions", "actions", "action_id"),
    ):
        whole = (await stage.alice.get(path)).json()
        assert whole["next_cursor"] is None
        ids = [item[name] for item in whole[plural]]
        assert len(ids) == len(set(ids)) >= 5
        default = "desc" if plural in {"threads", "runs"} else "asc"
        for order in ("asc", "desc"):
            gathered: list[str] = []
            cursor = None
            while True:
                params = {"limit": 2, "order": order} | ({} if cursor is None else {"cursor": cursor})
                page = (await stage.alice.get(path, params=params)).json()
                assert len(page[plural]) <= 2
                gathered += [item[name] for item in page[plural]]
                cursor = page["next_cursor"]
                if cursor is None:
                    break
            assert gathered == (ids if order == default else ids[::-1])
    newest = (await stage.alice.get("/v1/threads", params={"limit": 1})).json()["threads"][0]
    await stage.finished("say", thread_id=thread_id, input="back")
    assert newest["thread_id"] != thread_id
    assert (await stage.alice.get("/v1/threads", params={"limit": 1})).json()["threads"][0]["thread_id"] == thread_id


async def test_a_page_of_large_messages_ends_early_and_says_where_to_go_on(stage: Stage) -> None:
    thread_id = await stage.thread()
    for letter in "abcdef":
        await stage.finished("say", thread_id=thread_id, input=letter * 600_000)
    contents: list[str] = []
    params: dict[str, str] = {}
    pages = 0
    while True:
        answer = await stage.alice.get(f"/v1/threads/{thread_id}/messages", params=params)
        page = answer.json()
        assert 0 < len(page["messages"]) < 12
        pages += 1
        contents += [message["content"][:1] for message in page["messages"]]
        if page["next_cursor"] is None:
            break
        params = {"cursor": page["next_cursor"]}
    assert "".join(contents) == "aabbccddeeff"
    assert pages > 1


async def test_filters_of_lists_hold_back_what_does_not_match(stage: Stage) -> None:
    done = await stage.finished("say", input="x")
    failed = await stage.finished("fails", input="y")

    async def runs(**params: str) -> list[str]:
        return [run["run_id"] for run in (await stage.alice.get("/v1/runs", params=params)).json()["runs"]]

    assert await runs(status="failed") == [failed["run_id"]]
    assert await runs(agent="say") == [done["run_id"]]
    assert await runs(thread_id=str(failed["thread_id"])) == [failed["run_id"]]
    assert await runs(thread_id=UNKNOWN_THREAD) == []
    path = f"/v1/threads/{done['thread_id']}/messages"
    by_role = (await stage.alice.get(path, params={"role": "user"})).json()["messages"]
    assert [message["role"] for message in by_role] == ["user"]
    assert (await stage.alice.get(path, params={"status": "partial"})).json()["messages"] == []
    assert (await stage.alice.get(path, params={"run_id": UNKNOWN_RUN})).json()["messages"] == []
    for bad in ({"role": "system"}, {"order": "up"}, {"children": "maybe"}):
        assert_problem(await stage.alice.get(path, params=bad), 422, "invalid")
    for bad_path in ("/v1/runs", path, f"/v1/threads/{done['thread_id']}/actions"):
        assert_problem(await stage.alice.get(bad_path, params={"status": "misspelt"}), 422, "invalid")


async def test_the_head_of_a_list_is_where_its_events_go_on(stage: Stage) -> None:
    thread_id = await stage.thread()
    run = await stage.finished("tooler", thread_id=thread_id, message="word")
    for name in ("messages", "actions", "state"):
        assert (await stage.alice.get(f"/v1/threads/{thread_id}/{name}")).json()["head"] == run["last_seq"]
    more = await stage.finished("say", thread_id=thread_id, input="x")
    page = await stage.alice.get(f"/v1/threads/{thread_id}/events", params={"after": run["last_seq"]})
    assert [event["seq"] for event in page.json()["events"]] == list(range(run["last_seq"] + 1, more["last_seq"] + 1))


# --- events ------------------------------------------------------------


async def test_an_event_carries_the_envelope_of_the_protocol(stage: Stage) -> None:
    run = await stage.finished("say", message="x")
    page = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/events")).json()
    assert set(page) == {"events", "next_after", "head", "generation"}
    for event in page["events"]:
        assert event["thread_id"] == run["thread_id"]
        assert event["user_id"] == "alice"
        assert None not in event.values()
        assert set(event) <= {
            "seq",
            "thread_id",
            "run_id",
            "attempt",
            "user_id",
            "type",
            "time",
            "data",
            "metadata",
            "raw",
        }
    created, *of_run = page["events"]
    assert "run_id" not in created
    assert {event["run_id"] for event in of_run} == {run["run_id"]}
    assert [event.get("attempt") for event in of_run[:2]] == [None, None]
    assert {event["attempt"] for event in of_run[2:]} == {1}
    assert [event["type"] for event in of_run] == [
        *("user_message", "run_queued", "agent_started", "message_started", "message_delta", "message_completed"),
        "agent_completed",
    ]
    times = [event["time"] for event in page["events"]]
    assert times == sorted(times)
    assert all(len(time) == 27 and time.endswith("Z") for time in times)


async def test_pages_of_events_ascend_and_next_after_is_never_null(stage: Stage) -> None:
    run = await stage.finished("tooler", input="a word")
    path = f"/v1/threads/{run['thread_id']}/events"
    whole = (await stage.alice.get(path)).json()["events"]
    head = whole[-1]["seq"]
    after, gathered = 0, []
    while after < head:
        page = (await stage.alice.get(path, params={"after": after, "limit": 3})).json()
        assert page["head"] == head
        assert page["next_after"] == page["events"][-1]["seq"]
        gathered += page["events"]
        after = page["next_after"]
    assert gathered == whole
    end = (await stage.alice.get(path, params={"after": head})).json()
    assert (end["events"], end["next_after"], end["head"]) == ([], head, head)
    below = (await stage.alice.get(path, params={"before": 5, "limit": 2})).json()
    assert [event["seq"] for event in below["events"]] == [3, 4]
    assert below["next_after"] == 4
    newest = (await stage.alice.get(path, params={"before": head + 1, "limit": 2})).json()
    assert [event["seq"] for event in newest["events"]] == [head - 1, head]
    for before in (0, 1):
        first = (await stage.alice.get(path, params={"before": before})).json()
        assert (first["events"], first["next_after"]) == ([], 0)


async def test_types_filter_a_page_without_moving_its_cursor(stage: Stage) -> None:
    run = await stage.finished("say", input="x")
    path = f"/v1/threads/{run['thread_id']}/events"
    page = (await stage.alice.get(path, params={"types": "message_delta,run_queued"})).json()
    assert [event["type"] for event in page["events"]] == ["run_queued", "message_delta"]
    assert page["next_after"] == page["head"]
    none = (await stage.alice.get(path, params={"types": "usage", "limit": 3})).json()
    assert (none["events"], none["next_after"]) == ([], 3)
    for types in ("nothing_like_it", "", ",", "message_delta,"):
        problem = assert_problem(await stage.alice.get(path, params={"types": types}), 422, "invalid")
        assert problem["errors"][0]["path"] == "types"


async def test_events_of_one_run_leave_out_the_others_of_its_thread(stage: Stage) -> None:
    thread_id = await stage.thread()
    first = await stage.finished("say", thread_id=thread_id, input="one")
    second = await stage.finished("say", thread_id=thread_id, input="two")
    of_run = (await stage.alice.get(f"/v1/runs/{second['run_id']}/events")).json()
    assert {event["run_id"] for event in of_run["events"]} == {second["run_id"]}
    assert [event["seq"] for event in of_run["events"]] == list(range(second["first_seq"], second["last_seq"] + 1))
    filtered = (await stage.alice.get(f"/v1/threads/{thread_id}/events", params={"run_id": first["run_id"]})).json()
    assert {event["run_id"] for event in filtered["events"]} == {first["run_id"]}
    assert filtered["next_after"] == filtered["head"]
    unknown = await stage.alice.get(f"/v1/threads/{thread_id}/events", params={"run_id": UNKNOWN_RUN})
    assert_problem(unknown, 404, "not_found")


async def test_a_cursor_beyond_the_head_is_409_on_pages_and_streams(stage: Stage) -> None:
    run = await stage.finished("say", input="x")
    for path in (f"/v1/threads/{run['thread_id']}/events", f"/v1/runs/{run['run_id']}/events"):
        for headers in ({}, {"accept": "text/event-stream"}):
            beyond = await stage.alice.get(path, params={"after": run["last_seq"] + 1}, headers=headers)
            assert_problem(beyond, 409, "cursor_ahead")
            for bad in ("-1", "x", str(2**63), "1.5"):
                assert_problem(await stage.alice.get(f"{path}?after={bad}", headers=headers), 422, "invalid")
        both = await stage.alice.get(path, params={"after": 1, "before": 3})
        assert_problem(both, 422, "invalid")
        stream = {"accept": "text/event-stream"}
        assert_problem(await stage.alice.get(path, params={"before": 3}, headers=stream), 422, "invalid")
        for bad in ("x", "-1", "1.5", "9" * 19, "9" * 30, "\xb2"):
            last = [(b"accept", b"text/event-stream"), (b"last-event-id", bad.encode("latin-1"))]
            assert_problem(await stage.alice.get(path, headers=last), 422, "invalid")


async def test_another_generation_is_409_and_the_right_one_is_not(stage: Stage) -> None:
    run = await stage.finished("say", input="x")
    for path in (f"/v1/threads/{run['thread_id']}/events", f"/v1/runs/{run['run_id']}/events"):
        generation = (await stage.alice.get(path)).json()["generation"]
        assert generation
        assert (await stage.alice.get(path, params={"generation": generation})).status_code == 200
        for headers in ({}, {"accept": "text/event-stream"}):
            other = await stage.alice.get(path, params={"generation": "another"}, headers=headers)
            assert_problem(other, 409, "generation_changed")


# --- what is not yours does not exist ------------------------------------------------------------


async def test_what_is_somebody_elses_is_answered_like_what_does_not_exist(stage: Stage) -> None:
    thread_id = await stage.thread(key="room")
    run = await stage.start("held", thread_id=thread_id, input="mine")
    run_id = str(run["run_id"])
    await stage.said(run)
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("GET", "/v1/threads/{thread}", {}),
        ("PATCH", "/v1/threads/{thread}", {"json": {"title": "stolen"}}),
        ("DELETE", "/v1/threads/{thread}", {}),
        ("POST", "/v1/threads/{thread}/runs", {"json": {"agent": "say", "input": "x"}}),
        *(("GET", f"/v1/threads/{{thread}}/{name}", {}) for name in ("messages", "actions", "state", "events")),
        ("GET", "/v1/threads/{thread}/events", {"headers": {"accept": "text/event-stream"}}),
        ("GET", "/v1/runs/{run}", {"params": {"wait_s": 1}}),
        ("POST", "/v1/runs/{run}/cancel", {}),
        ("GET", "/v1/runs/{run}/events", {}),
        ("GET", "/v1/runs/{run}/events", {"headers": {"accept": "text/event-stream"}}),
    ]
    for method, path, rest in requests:
        foreign = await stage.bob.request(method, path.format(thread=thread_id, run=run_id), **rest)
        unknown = await stage.bob.request(method, path.format(thread=UNKNOWN_THREAD, run=UNKNOWN_RUN), **rest)
        assert_problem(foreign, 404, "not_found")
        said = foreign.content.replace(thread_id.encode(), b"ID").replace(run_id.encode(), b"ID")
        expected = unknown.content.replace(UNKNOWN_THREAD.encode(), b"ID").replace(UNKNOWN_RUN.encode(), b"ID")
        assert said == expected
        assert foreign.headers == unknown.headers or len(foreign.content) != len(unknown.content)
    bobs = (await stage.bob.post("/v1/threads", json={})).json()["thread_id"]
    for name in ("messages", "actions"):
        through = await stage.bob.get(f"/v1/threads/{bobs}/{name}", params={"run_id": run_id, "children": "true"})
        assert through.json()[name] == []
    assert_problem(await stage.bob.get(f"/v1/threads/{bobs}/events", params={"run_id": run_id}), 404, "not_found")
    assert [thread["thread_id"] for thread in (await stage.bob.get("/v1/threads")).json()["threads"]] == [bobs]
    assert (await stage.bob.get("/v1/runs")).json()["runs"] == []
    assert (await stage.bob.get("/v1/runs", params={"thread_id": thread_id})).json()["runs"] == []
    in_room = await stage.bob.post("/v1/runs", json={"agent": "say", "input": "x", "thread_key": "room"})
    assert in_room.json()["thread_id"] != thread_id
    assert (await stage.alice.get(f"/v1/threads/{thread_id}")).json()["title"] is None
    assert (await stage.alice.get(f"/v1/runs/{run_id}")).json()["status"] == "running"


# --- what is refused ------------------------------------------------------------


async def test_an_unknown_agent_is_404_and_names_the_way_out(stage: Stage) -> None:
    thread_id = await stage.thread()
    for path in ("/v1/runs", f"/v1/threads/{thread_id}/runs"):
        problem = assert_problem(await stage.alice.post(path, json={"agent": "nobody"}), 404, "unknown_agent")
        assert "/v1/agents" in problem["remedy"]


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"{", 400, "bad_json"),
        (b"[]", 400, "bad_json"),
        (b"null", 400, "bad_json"),
        (b'"text"', 400, "bad_json"),
        (b"\x00", 400, "bad_json"),
        (b'{"title":"\xff"}', 400, "bad_json"),
        (b'{"title":"\xed\xa0\x80"}', 400, "bad_json"),
        ('{"title":"wide"}'.encode("utf-16"), 400, "bad_json"),
        (b'{"metadata":{"a":NaN}}', 400, "bad_json"),
        (b'{"metadata":{"a":-Infinity}}', 400, "bad_json"),
        (b'{"metadata":{"a":' + b"9" * 10_000 + b"}}", 400, "bad_json"),
        (b'{"metadata":{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}}", 400, "bad_json"),
        (b'{"metadata":{"a":' + b"[" * 200 + b"]" * 200 + b"}}", 422, "invalid"),
        (b'{"metadata":{"a":1e999}}', 422, "invalid"),
        (b'{"metadata":{"a":18446744073709551616}}', 422, "invalid"),
        (b'{"metadata":{"\\ud800":1e999}}', 422, "invalid"),
        (b'{"\\ud800":1}', 422, "invalid"),
        (b'{"title":1}', 422, "invalid"),
        (b'{"titel":"misspelt"}', 422, "invalid"),
        (b'{"title":"' + b"x" * 1001 + b'"}', 422, "invalid"),
        (b'{"key":""}', 422, "invalid"),
        (b'{"messages":[{"role":"user","parts":[]}]}', 422, "invalid"),
        (b'{"messages":[{"role":"system","parts":[{"type":"text","text":"x"}]}]}', 422, "invalid"),
        (b'{"messages":[{"role":"user","parts":[{"type":"file","media_type":"a/b"}]}]}', 422, "invalid"),
        (b'{"metadata":{"a":"' + b"x" * 17_000 + b'"}}', 413, "too_large"),
        (b'{"metadata":{"a":"' + b"x" * 800_000 + b'"}}', 413, "too_large"),
    ],
    ids=lambda value: value[:24].decode("latin-1") if isinstance(value, bytes) else str(value),
)
async def test_a_bad_body_is_refused_with_what_is_wrong_with_it(
    stage: Stage, content: bytes, status: int, code: str
) -> None:
    assert_problem(await stage.alice.post("/v1/threads", content=content, headers=JSON_TYPE), status, code)
    assert (await stage.alice.get("/v1/threads")).json()["threads"] == []


async def test_lone_surrogates_become_replacement_characters_everywhere(stage: Stage) -> None:
    content = b'{"title":"a\\ud800b","key":"k\\udfff","metadata":{"m\\ud83d":"\\ude00"}}'
    thread = (await stage.alice.post("/v1/threads", content=content, headers=JSON_TYPE)).json()
    assert (thread["title"], thread["key"], thread["metadata"]) == ("a�b", "k�", {"m�": "�"})
    pair = await stage.alice.post("/v1/threads", content=b'{"title":"\\ud83d\\ude00"}', headers=JSON_TYPE)
    assert pair.json()["title"] == "😀"
    unknown = await stage.alice.post("/v1/runs", content=b'{"agent":"\\ud800"}', headers=JSON_TYPE)
    assert_problem(unknown, 404, "unknown_agent")


async def test_nul_and_line_separators_go_in_and_come_out(stage: Stage) -> None:
    text = "a\x00b\r\nc\u2028d\u2029e\x85f\x1cg\x0bh\ufeffi"
    run = await stage.finished("say", input=text)
    messages = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/messages")).json()["messages"]
    assert [message["content"] for message in messages] == [text, text]
    assert run["input"] == text


async def test_integers_of_64_bits_go_in_and_come_out_exactly(stage: Stage) -> None:
    value = {"max": 2**64 - 1, "min": -(2**63), "odd": 2**53 + 1}
    run = await stage.finished("anything", input={"value": value})
    assert run["output"] == value


async def test_the_path_of_what_is_wrong_in_an_input_is_named(stage: Stage) -> None:
    wrong = await stage.alice.post("/v1/runs", json={"agent": "keeper", "input": {"shown": 1}})
    paths = {error["path"] for error in assert_problem(wrong, 422, "invalid")["errors"]}
    assert {path.rpartition(".")[2] for path in paths} == {"shown", "hidden"}


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None, "json"]
)
async def test_a_body_that_is_not_declared_as_json_is_415(stage: Stage, media: str | None) -> None:
    headers = {} if media is None else {"content-type": media}
    assert_problem(await stage.alice.post("/v1/threads", content=b"{}", headers=headers), 415, "unsupported_media")


@pytest.mark.parametrize("media", ["application/json", "application/JSON; charset=utf-8", "application/vnd.x+json"])
async def test_json_media_types_are_taken(stage: Stage, media: str) -> None:
    made = await stage.alice.post("/v1/threads", content=b'\xef\xbb\xbf{"title":"x"}', headers={"content-type": media})
    assert made.status_code == 201


async def test_no_body_is_an_empty_object(stage: Stage) -> None:
    assert (await stage.alice.post("/v1/threads")).status_code == 201
    assert_problem(await stage.alice.post("/v1/runs"), 422, "invalid")


async def test_an_input_over_its_bound_is_413_and_one_below_it_is_kept_whole(stage: Stage) -> None:
    fits = "x" * (640 * 1024 - len('[{"text":"","type":"text"}]'))
    run = await stage.finished("say", input=fits)
    assert run["output"] == len(fits)
    messages = (await stage.alice.get(f"/v1/threads/{run['thread_id']}/messages")).json()
    assert messages["messages"][0]["content"] == fits
    assert_problem(await stage.alice.post("/v1/runs", json={"agent": "say", "input": fits + "x"}), 413, "too_large")
    assert_problem(await stage.alice.post("/v1/runs", json={"agent": "say", "message": fits + "x"}), 413, "too_large")


async def test_a_method_that_a_path_does_not_take_is_405_and_says_which_it_takes(stage: Stage) -> None:
    thread = f"/v1/threads/{await stage.thread()}"
    for method, path, allowed in (
        ("DELETE", "/v1/threads", "GET, POST"),
        ("PUT", thread, "DELETE, GET, PATCH"),
        ("POST", f"{thread}/messages", "GET"),
        ("GET", f"{thread}/runs", "POST"),
        ("POST", "/healthz", "GET"),
        ("POST", "/metrics", "GET"),
        ("TRACE", "/v1/agents", "GET"),
    ):
        answer = await stage.alice.request(method, path)
        assert_problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/threads/", "/v1/nothing", "/v2/threads", "/v1/ws", "/v1//threads", "/docs"]
)
async def test_a_path_with_nothing_there_is_404_and_never_a_redirect(stage: Stage, path: str) -> None:
    assert_problem(await stage.alice.get(path), 404, "not_found")


@pytest.mark.parametrize(
    "odd", ["%00", "..%2f..%2fetc%2fpasswd", "%ff", "%ed%a0%80", "x" * 3000, "'%20OR%201=1--", "💥"]
)
async def test_an_id_that_cannot_be_one_is_simply_not_found(stage: Stage, odd: str) -> None:
    for path in (f"/v1/threads/{odd}", f"/v1/runs/{odd}", f"/v1/threads/{odd}/events"):
        answer = await stage.alice.get(path)
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"


async def test_health_readiness_and_metrics_answer(stage: Stage) -> None:
    assert (await stage.alice.get("/healthz")).json() == {"status": "ok"}
    assert (await stage.alice.get("/readyz")).json() == {"status": "ready", "reasons": []}
    metrics = await stage.alice.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    for name in ("commit_seconds", "batch_events", "tail_lag_seconds", "connections", "runs", "events_appended"):
        assert f"runstone_{name}" in metrics.text
