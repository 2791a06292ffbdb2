"""An app that is called in this process streams, waits, and is told of a disconnect, as under a server."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from runstone.client import AsgiTransport

pytestmark = pytest.mark.anyio

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def chunk(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": more}


def client(app: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url="http://127.0.0.1", transport=AsgiTransport(app, user_id="alice"))


async def test_a_chunk_is_read_while_the_app_still_runs() -> None:
    go_on = asyncio.Event()

    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"one"))
        await go_on.wait()
        await send(chunk(b"two", more=False))

    async with client(app) as http, http.stream("GET", "/") as response:
        body = response.aiter_raw()
        assert await anext(body) == b"one"
        go_on.set()
        assert await anext(body) == b"two"
        with pytest.raises(StopAsyncIteration):
            await anext(body)


async def test_the_app_waits_until_the_reader_has_taken_its_chunk() -> None:
    sent: list[int] = []

    async def app(scope, receive, send):
        await send(START)
        for number in range(100):
            await send(chunk(b"%d" % number))
            sent.append(number)
        await send(chunk(b"", more=False))

    async with client(app) as http, http.stream("GET", "/") as response:
        body = response.aiter_raw()
        for number in range(100):
            for _ in range(10):  # turns of the loop in which an app without backpressure would run away
                await asyncio.sleep(0)
            assert len(sent) <= number
            assert await anext(body) == b"%d" % number


async def test_closing_a_response_early_is_a_disconnect_for_receive_and_for_send() -> None:
    told: asyncio.Queue[object] = asyncio.Queue()

    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"one"))
        await receive()  # the request
        told.put_nowait((await receive())["type"])
        try:
            await send(chunk(b"two"))
        except OSError as error:
            told.put_nowait(type(error))
            raise

    async with client(app) as http:
        async with http.stream("GET", "/") as response:
            assert await anext(response.aiter_raw()) == b"one"
        assert await told.get() == "http.disconnect"
        assert await told.get() is ConnectionResetError


async def test_closing_a_response_lets_go_of_a_send_that_waits_for_its_reader() -> None:
    ended = asyncio.Event()

    async def app(scope, receive, send):
        await send(START)
        try:
            while True:
                await send(chunk(b"more"))
        finally:
            ended.set()

    async with client(app) as http:
        async with http.stream("GET", "/"):
            assert not ended.is_set()
        await ended.wait()


async def test_closing_the_client_cancels_a_call_that_does_not_listen() -> None:
    started, cancelled = asyncio.Event(), asyncio.Event()

    async def app(scope, receive, send):
        await send(START)
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with client(app) as http:
        async with http.stream("GET", "/"):
            await started.wait()
        assert not cancelled.is_set()
    assert cancelled.is_set()


async def test_an_error_of_the_app_is_raised_where_its_response_is_awaited() -> None:
    async def app(scope, receive, send):
        raise ZeroDivisionError("before the response")

    async with client(app) as http:
        with pytest.raises(ZeroDivisionError):
            await http.get("/")


async def test_an_error_of_the_app_in_the_middle_is_raised_where_it_is_read() -> None:
    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"one"))
        raise ZeroDivisionError("in the middle")

    async with client(app) as http, http.stream("GET", "/") as response:
        body = response.aiter_raw()
        assert await anext(body) == b"one"
        with pytest.raises(ZeroDivisionError):
            await anext(body)


async def test_an_app_that_stops_in_the_middle_is_a_broken_connection_and_not_an_end() -> None:
    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"one"))

    async with client(app) as http:
        with pytest.raises(httpx2.RemoteProtocolError):
            await http.get("/")


async def test_an_error_after_the_response_reaches_the_loop_and_does_not_vanish() -> None:
    failures: asyncio.Queue[object] = asyncio.Queue()
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.put_nowait(context["exception"]))

    async def app(scope, receive, send):
        await send(START)
        await send(chunk(b"all", more=False))
        raise ZeroDivisionError("too late")

    async with client(app) as http:
        assert (await http.get("/")).text == "all"
        assert isinstance(await failures.get(), ZeroDivisionError)


async def test_a_request_arrives_whole_and_with_the_user_of_the_caller() -> None:
    async def echo(request: Request) -> JSONResponse:
        scope = request.scope
        return JSONResponse(
            {
                "body": (await request.body()).decode(),
                "path": scope["path"],
                "query": dict(request.query_params),
                "host": request.headers["host"],
                "client": scope["client"],
                "user": scope["runstone.user_id"],
            }
        )

    app = Starlette(routes=[Route("/a b/{name}", echo, methods=["POST"])])
    async with client(app) as http:
        response = await http.post("/a%20b/ü", params={"after": 7}, content=b"{}", headers={"runstone.user_id": "eve"})
    assert response.json() == {
        "body": "{}",
        "path": "/a b/ü",
        "query": {"after": "7"},
        "host": "127.0.0.1",
        "client": ["127.0.0.1", 0],
        "user": "alice",
    }


async def test_a_framework_streams_through_it_too() -> None:
    async def numbers(request: Request) -> StreamingResponse:
        async def count():
            for number in range(1000):
                yield f"{number}\n"

        return StreamingResponse(count())

    async with client(Starlette(routes=[Route("/", numbers)])) as http:
        assert (await http.get("/")).text.split() == [str(number) for number in range(1000)]
