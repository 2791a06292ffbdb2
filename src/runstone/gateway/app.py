"""The gateway as one ASGI application: the gate, then the routes and the streams."""

from __future__ import annotations

from importlib.metadata import version
from typing import Literal

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette._utils import get_route_path
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from runstone import metrics as metrics_module
from runstone.config import Config
from runstone.errors import NotFound, RunstoneError, StoreFailed
from runstone.gateway.bodies import invalid
from runstone.gateway.frames import RecentFrames
from runstone.gateway.gate import USER_KEY, Gate
from runstone.gateway.openapi import document
from runstone.gateway.problems import of_status, problem, unexpected
from runstone.gateway.rest import Routes
from runstone.gateway.sse import Streaming
from runstone.gateway.streams import ClosingReason, Streams
from runstone.gateway.ws import WebSockets, refuse
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.resources import Resource
from runstone.runtime.breakers import Breakers, tried_again
from runstone.runtime.definitions import Agents
from runstone.service import Tasks

logger = structlog.get_logger(__name__)

SOCKET_PATH = "/v1/ws"
_OPEN_TO_FAILURE = "/healthz"  # the one route that answers whatever happened to the store


class Health(Resource):
    status: Literal["ok"]


class Readiness(Resource):
    status: Literal["ready", "degraded", "stopping"]
    reasons: list[str]


NOT_READY: dict[int | str, dict[str, object]] = {503: {"model": Readiness, "description": "Not ready"}}


class Gateway:
    """What the world may ask of a log, as ASGI."""

    def __init__(self, log: Log, agents: Agents, breakers: Breakers, config: Config, metrics: Metrics) -> None:
        self._log = log
        self._breakers = breakers
        self._draining = False
        self._metrics = metrics
        self._gate = Gate(origins=config.origins, hosts=config.hosts)
        self._streams = Streams(metrics, per_user_max=config.sockets_a_user)
        self._tasks = Tasks("gateway")
        shared = Streaming(
            log,
            self._streams,
            metrics,
            self._tasks,
            config.heartbeat_s,
            config.send_deadline_s,
            RecentFrames(),
        )
        self._sockets = WebSockets(shared)
        self._app = self._routes(shared, agents)
        self._inner: ASGIApp = self._app
        if config.origins:
            self._inner = CORSMiddleware(
                self._app,
                allow_origins=list(config.origins),
                allow_methods=["GET", "POST", "PATCH", "DELETE"],
                allow_headers=["authorization", "content-type", "idempotency-key", "last-event-id"],
            )

    def drain(self) -> None:
        """From now on the server is no longer ready for new work, though it still takes it."""
        self._draining = True

    async def close(self, reason: ClosingReason = "restarting") -> None:
        """Says goodbye to every stream; safe twice."""
        await self._streams.close(reason)

    async def stop(self) -> None:
        await self._streams.close("restarting")
        await self._tasks.stop()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._admit(scope)
        except RunstoneError as refusal:
            answer = problem(refusal)
            if scope["type"] == "websocket":
                await receive()  # websocket.connect
                await refuse(scope, receive, send, answer)
            else:
                await answer(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await self._sockets(scope, receive, send)  # the routes' middlewares would cost each viewer 6 KiB
        else:
            await self._inner(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        scope[USER_KEY] = self._gate.user(scope)
        path: str = scope["path"]
        if self._log.failure is not None and not path.endswith(_OPEN_TO_FAILURE):
            raise StoreFailed(self._log.failure.detail)
        if scope["type"] == "websocket" and get_route_path(scope) != SOCKET_PATH:
            raise NotFound("There is no WebSocket at this path.", remedy=f"It is at {SOCKET_PATH}.")

    def _routes(self, shared: Streaming, agents: Agents) -> FastAPI:
        app = FastAPI(
            title="Runstone",
            version=version("runstone"),
            description="Agent runs, written in stone. The streams are described in PROTOCOL.md.",
            docs_url=None,  # its page loads scripts from elsewhere; no request leaves the server's own origin
            redoc_url=None,
            generate_unique_id_function=lambda route: route.name.removeprefix("_"),
            redirect_slashes=False,  # one path, one resource: a redirect would lose a POST's body on many clients
        )
        app.include_router(Routes(shared, agents, self._breakers).router())
        app.add_api_route("/healthz", self._healthz, methods=["GET"], response_model=Health)
        app.add_api_route("/readyz", self._readyz, methods=["GET"], response_model=Readiness, responses=NOT_READY)
        app.add_api_route("/metrics", self._exposition, methods=["GET"], response_model=None, include_in_schema=False)
        app.add_exception_handler(RunstoneError, _refused)
        app.add_exception_handler(RequestValidationError, _not_valid)
        app.add_exception_handler(HTTPException, _not_routed)
        app.add_exception_handler(ClientDisconnect, _not_sent)
        app.add_exception_handler(Exception, _not_foreseen)
        app.openapi = lambda: document(app)  # type: ignore[method-assign]
        return app

    async def _healthz(self) -> Response:
        """The process is alive."""
        return JSONResponse({"status": "ok"})

    async def _readyz(self) -> Response:
        """Whether the server can take work: ready, degraded (it can, but something that agents need fails) or not."""
        if self._draining or self._streams.closing is not None:
            return JSONResponse({"status": "stopping", "reasons": ["the server is restarting"]}, 503)
        reasons = [f"{name} is failing; {tried_again(wait_s)}" for name, wait_s in self._breakers.failing().items()]
        return JSONResponse({"status": "degraded" if reasons else "ready", "reasons": reasons})

    async def _exposition(self) -> Response:
        return Response(self._metrics.exposition(), headers={"content-type": metrics_module.CONTENT_TYPE})


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RunstoneError)
    return problem(unexpected(error) if error.code == "internal" else error)


async def _not_valid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = [item | {"loc": item["loc"][1:] or item["loc"]} for item in error.errors()]
    return problem(invalid(found))


async def _not_routed(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = _allow(request) if error.status_code == 405 else None
    return problem(of_status(error.status_code, str(error.detail)), headers)


def _allow(request: Request) -> dict[str, str]:
    """The methods of a path; the framework would name those of one route only."""
    path = get_route_path(request.scope)
    documented = request.app.openapi()["paths"]
    methods = {
        method.upper()
        for template, operations in documented.items()
        if compile_path(template)[0].match(path)
        for method in operations
    }
    return {"allow": ", ".join(sorted(methods or {"GET"}))}


async def _not_sent(_request: Request, _error: Exception) -> Response:
    return Response(status_code=400)  # nobody hears it: the client left in the middle of its request


async def _not_foreseen(_request: Request, error: Exception) -> Response:
    return problem(unexpected(error))
