"""Bad input on every route and every frame: a refusal with a code and a remedy, never a 500 or a closed server."""

from __future__ import annotations

import contextlib
import json
import socket as sockets
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.errors import InvalidSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as connect_sync

from tests.support.server import ServerProcess

pytestmark = pytest.mark.slow

FEW = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
    database=None,
)
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
CLOSES = {1007, 1009, 4400, 4413, 4429}  # 1007: text that is not UTF-8
SOON_S = 20.0


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = ServerProcess(tmp_path_factory.mktemp("bad"))
    process.start()
    with httpx2.Client(base_url=process.url) as client:
        client.post("/v1/runs", json={"agent": "thinker", "input": "why?", "thread_key": "there", "key": "is"})
    yield process
    with httpx2.Client(base_url=process.url) as client:
        assert client.get("/healthz").json() == {"status": "ok"}, "the server is still there"
    process.kill()
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "a request failed" not in log
    assert "ASGI" not in log


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_answers_anything_as_its_document_says(
    serving: ServerProcess, mode: GenerationMode, subtests: pytest.Subtests
) -> None:
    document = schemathesis.openapi.from_url(f"{serving.url}/openapi.json")
    with httpx2.Client(base_url=serving.url) as client:
        run = client.post("/v1/runs", json={"agent": "thinker", "input": "why?"}).json()
        there = {name: run[name] for name in ("thread_id", "run_id")} | {"approval_id": _asked(client)}
    tried = []
    for found in document.get_all_operations():
        operation = found.ok()  # type: ignore[union-attr] # an Err's is the test's error too
        with subtests.test(operation.label), contextlib.suppress(Unsatisfiable):  # nothing there could be wrong
            _try(operation, mode, there)
            tried.append(operation.label)
    assert len(tried) >= (20 if mode is GenerationMode.POSITIVE else 14)


def _asked(client: httpx2.Client) -> str:
    """A question that is open."""
    run = client.post("/v1/runs", json={"agent": "asks"}).json()
    with client.stream("GET", f"/v1/runs/{run['run_id']}/events", headers={"accept": "text/event-stream"}) as stream:
        for line in stream.iter_lines():
            if '"type":"approval_requested"' in line:
                return str(json.loads(line.removeprefix("data: "))["data"]["approval_id"])
    raise AssertionError("it was not asked")


def _try(operation: Any, mode: GenerationMode, there: dict[str, str]) -> None:
    """Random requests; half of them about things that exist, so that they come past the first door."""

    @FEW
    @given(case=_generated(operation.as_strategy(generation_mode=mode)), known=st.booleans())
    def ask(case: schemathesis.Case[Any], known: bool) -> None:
        if "wait_s" in (case.query or {}):
            case.query.pop("wait_s")  # an honest wait of a minute
        known = known and case.method != "DELETE"
        if known:
            case.path_parameters |= {name: there[name] for name in case.path_parameters}
            if isinstance(case.body, dict) and "agent" in case.body:
                case.body["agent"] = "echo"
        response = case.call()
        wrong = mode is GenerationMode.NEGATIVE and not known  # else what was wrong may just have been replaced
        case.validate_response(response, checks=[*CHECKS, negative_data_rejection] if wrong else CHECKS)
        if "problem" in response.headers.get("content-type", [""])[0]:
            problem = response.json()
            assert problem["status"] == response.status_code
            assert problem["code"] != "internal"
            assert problem["remedy"]

    ask()


@st.composite
def _generated(draw: st.DrawFn, cases: st.SearchStrategy[Any]) -> Any:
    """A case; one for which the generator cannot carry out the mutation that it chose itself counts as not drawn."""
    try:
        return draw(cases)
    except InvalidSchema:
        reject()


# --- frames ------------------------------------------------------------

ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
OPS = st.sampled_from(["subscribe", "unsubscribe", "ping", "feed", "hello"]) | st.text(max_size=5)
FIELDS = ("id", "thread_id", "after", "types", "run_id", "generation")
FRAMES = (
    st.builds(
        lambda op, rest: json.dumps(rest | {"op": op}),
        OPS,
        st.dictionaries(st.sampled_from(FIELDS), ODD | st.just("THREAD"), max_size=6),
    )
    | ODD.map(json.dumps)
    | st.text(max_size=50)
    | st.binary(max_size=50)
)


def test_no_frame_breaks_the_server_and_every_frame_is_answered(serving: ServerProcess) -> None:
    with httpx2.Client(base_url=serving.url) as client:
        thread_id = client.post("/v1/threads").json()["thread_id"]

    @settings(FEW, max_examples=60)
    @given(st.lists(FRAMES, min_size=1, max_size=6))
    def converse(frames: list[str | bytes]) -> None:
        with connect_sync(f"ws://127.0.0.1:{serving.port}/v1/ws") as socket:
            assert json.loads(socket.recv(SOON_S))["op"] == "hello"
            for frame in frames:
                sent = frame.replace('"THREAD"', json.dumps(thread_id)) if isinstance(frame, str) else frame
                if not _answered(socket, sent):
                    return
            assert _answered(socket, '{"op":"ping","id":"last"}')

    converse()


def _answered(socket: ClientConnection, frame: str | bytes) -> bool:
    """Whether the socket is still open after the answer, which is an error frame where it is not."""
    answers: list[dict[str, Any]] = []
    try:
        socket.send(frame.encode(errors="replace") if isinstance(frame, str) else frame, text=isinstance(frame, str))
        while not answers or not _is_answer(answers[-1], frame):
            answers.append(json.loads(socket.recv(SOON_S)))
        if answers[-1].get("code") in {"bad_json", "too_large", "limited"}:
            socket.recv(SOON_S)  # the close
    except ConnectionClosed as ended:
        closed = ended
    else:
        return True
    assert closed.rcvd is not None, "closed without a word"
    assert closed.rcvd.code in CLOSES
    assert closed.rcvd.code == 1007 or answers[-1]["op"] == "error"
    return False


def _is_answer(answer: dict[str, Any], frame: str | bytes) -> bool:
    if answer["op"] == "error":
        assert answer["remedy"]
        assert answer["code"] != "internal"
    return answer["op"] in {"ok", "error"} or (answer["op"] == "pong" and _is_ping(frame))


def _is_ping(frame: str | bytes) -> bool:
    value = json.loads(frame)
    return isinstance(value, dict) and value.get("op") == "ping"


RAW = st.binary(max_size=200) | st.builds(
    lambda first, second, rest: bytes([first, second]) + rest,
    st.integers(0, 255),
    st.integers(0, 255),
    st.binary(max_size=80),
)
HANDSHAKE = (
    b"GET /v1/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


@pytest.mark.parametrize(
    "before", [HANDSHAKE, b"", b"POST /v1/threads HTTP/1.1\r\nHost: 127.0.0.1\r\n"], ids=["ws", "http", "head"]
)
def test_no_bytes_break_the_server(serving: ServerProcess, before: bytes) -> None:
    @settings(FEW, max_examples=60)
    @given(RAW)
    def send(data: bytes) -> None:
        with sockets.create_connection(("127.0.0.1", serving.port), SOON_S) as one:
            one.sendall(before + data)
            one.shutdown(sockets.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while one.recv(65536):
                    pass

    send()


def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_error(serving: ServerProcess) -> None:
    head = b"POST /v1/threads HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for _ in range(5):
        with sockets.create_connection(("127.0.0.1", serving.port), SOON_S) as one:
            one.sendall(head + b"Content-Length: 100\r\n\r\n{")
    with httpx2.Client(base_url=serving.url) as client:
        assert client.get("/healthz").status_code == 200
