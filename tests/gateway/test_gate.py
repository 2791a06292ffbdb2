"""The gate: without auth only this machine may ask, and no web page may do it in a browser's name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from runstone import Runstone
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio

LOOPBACK = ("127.0.0.1", 50_000)
OWN = "127.0.0.1:8700"
Header = tuple[bytes, bytes]


@asynccontextmanager
async def running(store_url: str, **settings: str) -> AsyncIterator[Runstone]:
    app = Runstone()
    async with app.running(store=store_url, **settings):
        yield app


async def ask(
    app: Runstone,
    method: str = "GET",
    path: str = "/v1/threads",
    *,
    host: str | None = OWN,
    client: tuple[str, int] | None = LOOPBACK,
    headers: Sequence[Header] = (),
    scheme: str = "http",
    kind: str = "http",
) -> tuple[int, dict[str, str], Any]:
    """The status, headers and body that a server would be told to send; 101 for an accepted WebSocket."""
    given = [*([] if host is None else [(b"host", host.encode("latin-1"))]), *headers]
    scope: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": given,
        "client": client,
        "server": ("127.0.0.1", 8700),
    }
    if kind == "http":
        scope["method"] = method
        inbox: list[dict[str, Any]] = [
            {"type": "http.request", "body": b"", "more_body": False},
            {"type": "http.disconnect"},
        ]
    else:
        scope |= {"subprotocols": [], "extensions": {"websocket.http.response": {}}}
        inbox = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1005}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return inbox.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    await app.asgi(scope, receive, send)
    start = sent[0]
    if start["type"] == "websocket.accept":
        return 101, {}, None
    body = b"".join(message.get("body", b"") for message in sent[1:])
    answered = {name.decode(): value.decode() for name, value in start["headers"]}
    return start["status"], answered, msgspec.json.decode(body) if body.startswith(b"{") else body


async def refused(app: Runstone, **how: Any) -> None:
    """403 with a problem, for reading, for changing, and for a WebSocket before it is accepted."""
    for rest in ({"method": "GET"}, {"method": "POST"}, {"kind": "websocket", "path": "/v1/ws", "scheme": "ws"}):
        status, headers, body = await ask(app, **(rest | how))
        assert (status, headers["content-type"]) == (403, "application/problem+json"), rest
        assert body["code"] == "forbidden"
        assert body["remedy"]


async def admitted(app: Runstone, **how: Any) -> None:
    assert (await ask(app, **how))[0] == 200
    assert (await ask(app, method="POST", **how))[0] == 201
    assert (await ask(app, kind="websocket", path="/v1/ws", **how))[0] == 101


@pytest.mark.parametrize(
    "client",
    [("192.168.1.7", 5), ("10.0.0.1", 5), ("0.0.0.0", 5), ("8.8.8.8", 5), ("fe80::1", 5), ("::ffff:10.0.0.1", 5), None],
)
async def test_a_peer_that_is_not_this_machine_is_refused(store_url: str, client: tuple[str, int] | None) -> None:
    async with running(store_url) as app:
        await refused(app, client=client)
        assert (await ask(app, client=client, path="/healthz"))[0] == 403


@pytest.mark.parametrize("client", [("127.0.0.1", 5), ("127.8.8.8", 5), ("::1", 5), ("::ffff:127.0.0.1", 5)])
async def test_a_loopback_peer_is_the_local_user(store_url: str, client: tuple[str, int]) -> None:
    async with running(store_url) as app:
        await admitted(app, client=client)
        threads = (await ask(app, client=client))[2]["threads"]
        assert len(threads) == 1
        events = (await ask(app, client=client, path=f"/v1/threads/{threads[0]['thread_id']}/events"))[2]["events"]
        assert {event["user_id"] for event in events} == {"local"}


@pytest.mark.parametrize(
    "host",
    [
        *(
            "evil.example",
            "evil.example:8700",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "localhost.",
            "",
            None,
        ),
        *(
            "evil.example\t127.0.0.1",
            "0.0.0.0:8700",
            "[::]:8700",
            "2130706433",
            "127.1",
            "xn--localhost",
            "\xff",
        ),
    ],
)
async def test_a_host_that_somebody_elses_name_server_could_point_here_is_refused(
    store_url: str, host: str | None
) -> None:
    async with running(store_url) as app:
        await refused(app, host=host)


@pytest.mark.parametrize("host", [OWN, "127.0.0.1", "localhost", "LOCALHOST:1", "[::1]:8700", "[::1]", "127.0.0.2:80"])
async def test_a_loopback_host_is_taken_whatever_its_port(store_url: str, host: str) -> None:
    async with running(store_url) as app:
        await admitted(app, host=host)


async def test_two_hosts_are_refused_in_either_order(store_url: str) -> None:
    async with running(store_url) as app:
        await refused(app, host=OWN, headers=[(b"host", b"evil.example")])
        await refused(app, host="evil.example", headers=[(b"host", OWN.encode())])


async def test_hosts_that_are_configured_are_taken_and_no_others(store_url: str) -> None:
    async with running(store_url, hosts="Runs.Example, other.example") as app:
        await admitted(app, host="runs.example:80")
        await admitted(app, host="OTHER.example")
        await admitted(app)
        await refused(app, host="x.runs.example")


@pytest.mark.parametrize(
    "name",
    ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "cf-connecting-ip"],
)
async def test_a_request_that_came_through_a_proxy_is_refused(store_url: str, name: str) -> None:
    async with running(store_url) as app:
        await refused(app, headers=[(name.encode(), b"127.0.0.1")])
        await refused(app, headers=[(name.encode(), b"")])


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        f"http://{OWN}.evil.example",
        "http://127.0.0.1:8701",
        f"https://{OWN}",
        "file://",
    ],
)
async def test_a_foreign_page_may_not_change_anything_nor_open_a_socket(store_url: str, origin: str) -> None:
    headers = [(b"origin", origin.encode())]
    async with running(store_url) as app:
        for method in ("POST", "PATCH", "DELETE", "PUT"):
            assert (await ask(app, method=method, headers=headers))[0] == 403
        assert (await ask(app, kind="websocket", path="/v1/ws", scheme="ws", headers=headers))[0] == 403
        status, answered, _ = await ask(app, headers=headers)
        assert status == 200
        assert "access-control-allow-origin" not in answered, "so that no browser lets the page read it"
        assert (await ask(app))[2]["threads"] == []


async def test_the_servers_own_page_may(store_url: str) -> None:
    async with running(store_url) as app:
        await admitted(app, headers=[(b"origin", f"http://{OWN}".encode())])
        await admitted(app, host="localhost:8700", headers=[(b"origin", b"http://localhost:8700")])
        secure = [(b"origin", f"https://{OWN}".encode())]
        assert (await ask(app, "POST", scheme="https", headers=secure))[0] == 201
        assert (await ask(app, kind="websocket", path="/v1/ws", scheme="wss", headers=secure))[0] == 101


async def test_a_page_of_a_configured_origin_may_with_cors(store_url: str) -> None:
    origin = "https://app.example"
    headers = [(b"origin", origin.encode())]
    async with running(store_url, origins=f"{origin},https://second.example") as app:
        status, answered, _ = await ask(app, method="POST", headers=headers)
        assert (status, answered["access-control-allow-origin"]) == (201, origin)
        assert (await ask(app, headers=headers))[1]["access-control-allow-origin"] == origin
        assert (await ask(app, kind="websocket", path="/v1/ws", headers=headers))[0] == 101
        preflight = [
            *headers,
            (b"access-control-request-method", b"POST"),
            (b"access-control-request-headers", b"content-type, idempotency-key, last-event-id"),
        ]
        status, answered, _ = await ask(app, method="OPTIONS", headers=preflight)
        assert (status, answered["access-control-allow-origin"]) == (200, origin)
        foreign = [(b"origin", b"https://app.example.evil"), *preflight[1:]]
        status, answered, _ = await ask(app, method="OPTIONS", headers=foreign)
        assert status == 400
        assert "access-control-allow-origin" not in answered
        assert (await ask(app, method="POST", headers=foreign[:1]))[0] == 403
        assert (await ask(app, kind="websocket", path="/v1/ws", headers=foreign[:1]))[0] == 403


async def test_no_header_makes_anyone_another_user(store_url: str) -> None:
    async with running(store_url) as app:
        for name in (b"runstone-user", b"runstone.user_id", b"x-user", b"authorization"):
            await ask(app, "POST", headers=[(name, b"alice")])
        assert len((await ask(app))[2]["threads"]) == 4


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "example.org", "[::]"])
def test_serving_other_machines_without_auth_is_refused_at_start(tmp_path: Path, host: str) -> None:
    command = [sys.executable, "-m", "runstone", "serve", "tests.support.agents:app", "--host", host, "--port", "0"]
    ended = subprocess.run(
        [*command, "--store", f"sqlite:///{tmp_path}/runs.db"],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=Path(__file__).parents[2],
        env=os.environ,
    )
    assert ended.returncode == 2
    said = " ".join(ended.stderr.split())
    assert host in said
    assert "no auth is configured" in said
    assert "127.0.0.1" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs.db").exists(), "nothing was opened"


async def test_a_real_server_refuses_a_rebound_name_and_a_foreign_page(server: ServerProcess) -> None:
    server.start()
    async with httpx2.AsyncClient(base_url=server.url) as client:
        assert (await client.get("/v1/threads")).status_code == 200
        rebound = await client.get("/v1/threads", headers={"host": f"evil.example:{server.port}"})
        assert (rebound.status_code, rebound.json()["code"]) == (403, "forbidden")
        foreign = await client.post("/v1/threads", headers={"origin": "https://evil.example"})
        assert (foreign.status_code, foreign.json()["code"]) == (403, "forbidden")
        assert (await client.post("/v1/threads", headers={"origin": server.url})).status_code == 201
    address = f"ws://127.0.0.1:{server.port}/v1/ws"
    with pytest.raises(InvalidStatus) as refusal:
        await connect(address, origin="https://evil.example")  # type: ignore[arg-type]
    assert refusal.value.response.status_code == 403
    assert msgspec.json.decode(refusal.value.response.body or b"")["code"] == "forbidden"
    async with connect(address, origin=server.url) as socket:  # type: ignore[arg-type]
        assert msgspec.json.decode(await socket.recv())["op"] == "hello"
    assert "Traceback" not in server.log.read_text()
