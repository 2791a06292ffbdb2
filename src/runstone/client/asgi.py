"""Calls an ASGI app in this process as a server would: its response streams while the app still runs.

httpx2's own transport gathers the whole response first, so a live stream would never begin.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import httpx2

_Message: TypeAlias = MutableMapping[str, Any]  # ASGI's own untyped messages
_Head: TypeAlias = tuple[int, list[tuple[bytes, bytes]]]  # status and headers
AsgiApp: TypeAlias = Callable[
    [_Message, Callable[[], Awaitable[_Message]], Callable[[_Message], Awaitable[None]]], Awaitable[None]
]

USER_ID = "runstone.user_id"  # in the scope, where no request from a network can put anything


class AsgiTransport(httpx2.AsyncBaseTransport):
    """An httpx2 transport to an app in this process.

    The app's `send` returns when the reader has taken the chunk, so nothing piles up between them. When the
    reader closes a response early, the app's `receive` says `http.disconnect` and its `send` raises OSError,
    as under a server. What the app raises is raised where its response is awaited or read. `aclose` cancels
    the calls that still run.

    In-process callers are trusted: `user_id` goes into `scope["runstone.user_id"]`.
    """

    def __init__(self, app: AsgiApp, *, user_id: str) -> None:
        self._app = app
        self._user_id = user_id
        self._calls: set[asyncio.Task[None]] = set()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        call = _Call(await request.aread())
        # service.Tasks runs a server's tasks; the client is imported where there is none.
        task = asyncio.create_task(self._run(request, call), name=f"asgi:{request.url.path}")  # noqa: TID251
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        task.add_done_callback(call.ended)
        try:
            status, headers = await call.head
        except BaseException:
            await call.aclose()
            raise
        return httpx2.Response(status, headers=headers, stream=call)

    async def aclose(self) -> None:
        calls = list(self._calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)

    async def _run(self, request: httpx2.Request, call: _Call) -> None:
        url = request.url
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},  # 2.4: send raises OSError after a disconnect
            "http_version": "1.1",
            "method": request.method,
            "scheme": url.scheme,
            "path": url.path,
            "raw_path": url.raw_path.split(b"?")[0],
            "query_string": url.query,
            "root_path": "",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "server": (url.host, url.port),
            "client": ("127.0.0.1", 0),
            USER_ID: self._user_id,
        }
        await self._app(scope, call.receive, call.send)


class _Call(httpx2.AsyncByteStream):
    """One request and its response, between the app that sends and the client that reads."""

    def __init__(self, body: bytes) -> None:
        self.head: asyncio.Future[_Head] = asyncio.get_running_loop().create_future()
        self._body: bytes | None = body  # None once the app has received it
        self._chunks: asyncio.Queue[bytes | BaseException | None] = asyncio.Queue()  # None: the end
        self._complete = False
        self._disconnected = asyncio.Event()

    # --- the app's side

    async def receive(self) -> _Message:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self._disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: _Message) -> None:
        if message["type"] == "http.response.start":
            if not self.head.done():
                self.head.set_result((message["status"], list(message.get("headers", ()))))
            return
        if self._disconnected.is_set():
            raise ConnectionResetError("The client closed the response.")
        if chunk := message.get("body"):
            self._chunks.put_nowait(chunk)
            await self._chunks.join()
        if not message.get("more_body", False):
            self._complete = True
            self._chunks.put_nowait(None)

    def ended(self, task: asyncio.Task[None]) -> None:
        """The app has returned, whether or not it said all it had to."""
        failure: BaseException | None = None
        if task.cancelled():
            failure = httpx2.RemoteProtocolError("The app's call was cancelled.")
        elif (failure := task.exception()) is None and not self._complete:
            failure = httpx2.RemoteProtocolError("The app returned before its response was complete.")
        if failure is None:
            return
        if not self.head.done():
            self.head.set_exception(failure)
        elif not self._complete and not self._disconnected.is_set():
            self._chunks.put_nowait(failure)
        elif isinstance(failure, Exception) and not isinstance(failure, OSError | httpx2.RemoteProtocolError):
            # Nobody reads any more, but a bug in the app must not vanish; those two are how calls end then.
            task.get_loop().call_exception_handler(
                {"message": "An app failed after its response", "exception": failure, "task": task}
            )

    # --- the client's side

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (chunk := await self._chunks.get()) is not None:
            self._chunks.task_done()
            if isinstance(chunk, BaseException):
                raise chunk
            yield chunk
        self._disconnected.set()

    async def aclose(self) -> None:
        self._disconnected.set()
        while not self._chunks.empty():  # lets go of a `send` that waits for its chunk to be taken
            self._chunks.get_nowait()
            self._chunks.task_done()
