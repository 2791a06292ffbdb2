"""A request whose answer is lost is sent again as it was; what a server refuses is an error with a class."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

import httpx2
import pytest
import stamina

from runstone import errors
from runstone.client import Client
from runstone.client import http as client_http
from runstone.errors import (
    AlreadyDecided,
    BadConfig,
    CursorGone,
    Invalid,
    KeyReused,
    NotFound,
    RunstoneError,
    ThreadBusy,
    Unavailable,
)

pytestmark = pytest.mark.anyio

TIME = "2026-11-20T08:15:30.123456Z"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_pauses() -> Iterator[None]:
    with stamina.set_testing(True, attempts=4):
        yield


def run(status: str = "running", **more: object) -> dict[str, object]:
    return {
        "run_id": "run_1", "thread_id": "thr_1", "key": None, "agent": "a", "status": status, "attempt": 1,
        "input": None, "output": None, "error": None, "usage": None, "metadata": {}, "parent_run_id": None,
        "root_run_id": "run_1", "created_at": TIME, "started_at": None, "ended_at": None, "first_seq": 1,
        "last_seq": None,
    } | more  # fmt: skip


def thread(number: int) -> dict[str, object]:
    return {
        "thread_id": f"thr_{number}", "key": None, "title": None, "metadata": {}, "status": "idle",
        "last_message": None, "head": 1, "created_at": TIME, "updated_at": TIME,
    }  # fmt: skip


def approval(status: str = "approved", **more: object) -> dict[str, object]:
    return {
        "approval_id": "apr_1", "thread_id": "thr_1", "run_id": "run_1", "action_id": None, "kind": "approval",
        "prompt": "May I?", "input": None, "input_hash": "h", "schema": None, "status": status, "value": None,
        "by": None, "comment": None, "created_at": TIME, "expires_at": TIME, "resolved_at": None,
    } | more  # fmt: skip


def problem(status: int, code: str, **more: object) -> httpx2.Response:
    said = {"type": "about:blank", "title": "T", "status": status, "code": code, "detail": "D", "remedy": "R"}
    return httpx2.Response(status, json=said | more)


class Server:
    """Answers requests with what it is given, in order, and keeps them."""

    def __init__(self, *answers: httpx2.Response | Exception) -> None:
        self._answers = list(answers)
        self.requests: list[httpx2.Request] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> Client:
        return Client("http://runstone.test", transport=httpx2.MockTransport(self))


LOST: list[Callable[[], httpx2.Response | Exception]] = [
    lambda: httpx2.ConnectError("refused"),
    lambda: httpx2.ReadError("reset"),
    lambda: httpx2.ReadTimeout(""),
    lambda: httpx2.RemoteProtocolError("half an answer"),
    lambda: httpx2.Response(502, text="<html>"),
    lambda: problem(503, "unavailable"),
    lambda: httpx2.Response(504),
]


@pytest.mark.parametrize("lost", LOST)
async def test_a_start_whose_answer_is_lost_is_sent_again_with_the_same_key(
    lost: Callable[[], httpx2.Response | Exception],
) -> None:
    server = Server(lost(), lost(), httpx2.Response(200, json=run()))
    async with server.client() as client:
        assert (await client.start("a", "hi")).run_id == "run_1"
    first, second, third = server.requests
    assert first.content == second.content == third.content
    assert len(json.loads(first.content)["key"]) == 36


async def test_two_starts_have_two_keys_and_a_key_of_ones_own_is_kept() -> None:
    server = Server(*(httpx2.Response(201, json=run()) for _ in range(3)))
    async with server.client() as client:
        await client.start("a")
        await client.start("a")
        await client.start("a", key="mine")
    keys = [json.loads(request.content)["key"] for request in server.requests]
    assert keys[0] != keys[1]
    assert keys[2] == "mine"


async def test_a_server_that_stays_away_is_unavailable_in_the_end() -> None:
    server = Server(*(httpx2.ConnectError("refused") for _ in range(4)))
    async with server.client() as client:
        with pytest.raises(Unavailable, match=r"no server at http://runstone\.test") as caught:
            await client.agents()
    assert "runstone serve" in caught.value.remedy


async def test_health_is_asked_once() -> None:
    server = Server(httpx2.ConnectError("refused"))
    async with server.client() as client:
        with pytest.raises(Unavailable):
            await client.health()


async def test_a_server_that_is_not_ready_says_why() -> None:
    server = Server(httpx2.Response(503, json={"status": "not_ready", "reasons": ["store"]}))
    async with server.client() as client:
        assert (await client.health()).reasons == ["store"]


async def test_a_server_that_names_a_pause_is_given_it() -> None:
    answer = httpx2.Response(503, headers={"retry-after": "7"})
    now = asyncio.get_running_loop().time()
    async with Client("http://runstone.test") as client:
        failure = client._http._failure(answer)
        assert client_http._pause(now + 45, failure) == 7.0
        assert client_http._pause(now + 6, failure) is False


async def test_a_server_that_is_away_for_longer_than_a_client_waits_is_not_waited_for() -> None:
    asked = problem(503, "unavailable")
    asked.headers["retry-after"] = "46"
    server = Server(asked)
    async with server.client() as client:
        with pytest.raises(Unavailable, match="D") as caught:
            await client.start("a")
    assert len(server.requests) == 1
    assert caught.value.retry_after_s == 46


async def test_none_is_an_input_and_no_input_is_none() -> None:
    server = Server(*(httpx2.Response(201, json=run()) for _ in range(2)))
    async with server.client() as client:
        await client.start("a", None, thread_id="thr_1", message="hi", on_busy="reject", metadata={"n": 1}, key="k")
        await client.start("a", thread_key="t", key="k")
    first, second = server.requests
    assert first.url.path == "/v1/threads/thr_1/runs"
    assert json.loads(first.content) == {
        "agent": "a", "input": None, "message": "hi", "on_busy": "reject", "metadata": {"n": 1}, "key": "k"
    }  # fmt: skip
    assert second.url.path == "/v1/runs"
    assert json.loads(second.content) == {"agent": "a", "thread_key": "t", "key": "k"}


async def test_what_is_not_json_is_refused_before_it_is_sent() -> None:
    async with Server().client() as client:
        with pytest.raises(Invalid, match=r"input\.when"):
            await client.start("a", {"when": object()})


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (problem(404, "not_found"), NotFound),
        (problem(409, "thread_busy"), ThreadBusy),
        (problem(422, "key_reused"), KeyReused),
        (problem(418, "teapot"), RunstoneError),
        (httpx2.Response(404, text="<html>"), RunstoneError),
        (httpx2.Response(307, headers={"location": "/"}), RunstoneError),
    ],
)
async def test_a_problem_is_raised_as_the_class_of_its_code(
    answer: httpx2.Response, expected: type[RunstoneError]
) -> None:
    server = Server(answer)
    async with server.client() as client:
        with pytest.raises(RunstoneError) as caught:
            await client.thread("thr_1")
    assert type(caught.value) is expected
    assert len(server.requests) == 1


async def test_a_problem_keeps_its_words_and_its_members() -> None:
    gone = problem(410, "cursor_gone", first=12)
    invalid = problem(422, "invalid", errors=[{"path": "input.n", "detail": "missing"}])
    async with Server(gone, invalid).client() as client:
        with pytest.raises(CursorGone) as caught_gone:
            await client.event_page("thr_1", after=3)
        with pytest.raises(Invalid) as caught:
            await client.start("a", {})
    assert caught_gone.value.first == 12
    assert (caught.value.detail, caught.value.remedy) == ("D", "R")
    assert caught.value.errors == [{"path": "input.n", "detail": "missing"}]


def test_every_error_that_travels_has_a_class_and_no_other() -> None:
    assert client_http._CLASSES["store_failed"] is errors.StoreFailed
    assert not {"internal", "agent_error", "tool_error", "store_locked"} & client_http._CLASSES.keys()


async def test_a_result_is_waited_for_until_the_run_has_ended() -> None:
    server = Server(httpx2.Response(200, json=run()), httpx2.Response(200, json=run("completed", output="done")))
    async with server.client() as client:
        handle = client.run("run_1")
        with pytest.raises(RuntimeError):
            _ = handle.thread_id
        assert (await handle.result(timeout_s=10)).output == "done"
        assert handle.thread_id == "thr_1"
    assert server.requests[0].url.params["wait_s"] == "60.0"


async def test_a_result_that_takes_too_long_is_a_timeout() -> None:
    async with Server(httpx2.Response(200, json=run())).client() as client:
        with pytest.raises(TimeoutError):
            await client.run("run_1").result(timeout_s=0.01)


async def test_a_handle_remembers_whom_its_start_interrupted() -> None:
    server = Server(httpx2.Response(201, json=run(interrupted=["run_0"])), httpx2.Response(200, json=run()))
    async with server.client() as client:
        handle = await client.start("a", on_busy="interrupt")
        await handle.refresh()
        assert handle.interrupted == ["run_0"]


async def test_a_list_is_read_page_by_page_up_to_its_limit() -> None:
    pages = [
        {"threads": [thread(1), thread(2)], "next_cursor": "x"},  # a page may be shorter than asked for
        {"threads": [thread(3)], "next_cursor": "y"},
    ]
    server = Server(*(httpx2.Response(200, json=page) for page in pages))
    async with server.client() as client:
        assert [t.thread_id for t in await client.threads(limit=3)] == ["thr_1", "thr_2", "thr_3"]
    assert [dict(request.url.params) for request in server.requests] == [
        {"limit": "3"},
        {"limit": "1", "cursor": "x"},
    ]


async def test_a_delete_whose_answer_was_lost_is_done_when_the_thread_is_gone() -> None:
    async with Server(httpx2.ReadError("reset"), problem(404, "not_found")).client() as client:
        await client.delete_thread("thr_1")
    async with Server(problem(404, "not_found")).client() as client:
        with pytest.raises(NotFound):
            await client.delete_thread("thr_1")


async def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    server = Server(problem(404, "not_found"))
    async with server.client() as client:
        with pytest.raises(NotFound):
            await client.thread("../runs?x=1#")
    assert server.requests[0].url.raw_path == b"/v1/threads/..%2Fruns%3Fx%3D1%23"


@pytest.mark.parametrize("url", ["localhost:8700", "ftp://a", "http://", "::"])
def test_a_url_that_cannot_be_asked_is_refused_at_once(url: str) -> None:
    with pytest.raises(BadConfig):
        Client(url)


def test_a_token_that_no_header_carries_is_refused_at_once() -> None:
    with pytest.raises(BadConfig):
        Client("http://127.0.0.1", token="a\nb")


async def test_url_and_token_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNSTONE_URL", "http://elsewhere.test/agents/")
    monkeypatch.setenv("RUNSTONE_TOKEN", "secret")
    server = Server(httpx2.Response(200, json={"agents": []}))
    async with Client(transport=httpx2.MockTransport(server)) as client:
        assert await client.agents() == []
    assert str(server.requests[0].url) == "http://elsewhere.test/agents/v1/agents"
    assert server.requests[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("lost", LOST)
async def test_a_decision_whose_answer_is_lost_is_sent_again_as_it_was(
    lost: Callable[[], httpx2.Response | Exception],
) -> None:
    server = Server(lost(), httpx2.Response(200, json=approval()))
    async with server.client() as client:
        assert (await client.approve("apr_1", comment="fine")).status == "approved"
    first, second = server.requests
    assert first.url.path == second.url.path == "/v1/approvals/apr_1"
    assert json.loads(first.content) == json.loads(second.content) == {"decision": "approve", "comment": "fine"}


async def test_each_decision_is_said_in_its_own_words_and_an_answer_may_be_null() -> None:
    server = Server(*(httpx2.Response(200, json=approval()) for _ in range(4)))
    async with server.client() as client:
        await client.approve("apr_1")
        await client.deny("apr_1", "no")
        await client.answer("apr/1", None)
        await client.answer("apr_1", [1])
    assert [json.loads(request.content) for request in server.requests] == [
        {"decision": "approve"},
        {"decision": "deny", "comment": "no"},
        {"decision": "answer", "value": None},
        {"decision": "answer", "value": [1]},
    ]
    assert server.requests[2].url.raw_path == b"/v1/approvals/apr%2F1"


async def test_a_decision_that_another_one_came_before_is_told_as_that() -> None:
    server = Server(problem(409, "already_decided"))
    async with server.client() as client:
        with pytest.raises(AlreadyDecided):
            await client.deny("apr_1")
    assert len(server.requests) == 1


async def test_what_is_asked_is_listed_of_all_runs_or_of_one() -> None:
    page = {"approvals": [approval("open", schema={"type": "integer"})], "next_cursor": None}
    server = Server(*(httpx2.Response(200, json=page) for _ in range(3)))
    async with server.client() as client:
        (one,) = await client.approvals(run_id="run_1", status="open", limit=5)
        assert (one.status, one.schema_) == ("open", {"type": "integer"})
        await client.run("run_1").approvals("open")
        await client.run("run_1").approvals()
    asked = [dict(request.url.params) for request in server.requests]
    assert asked == [
        {"run_id": "run_1", "status": "open", "limit": "5"},
        {"run_id": "run_1", "status": "open", "limit": "1000"},
        {"run_id": "run_1", "limit": "1000"},
    ]
