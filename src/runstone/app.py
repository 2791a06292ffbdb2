"""`Runstone`: where people register their agents and tools, and from where they run them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar, overload

from runstone.errors import BadConfig, Unavailable
from runstone.events import OnCrash
from runstone.runtime.definitions import MAX_ATTEMPTS, TIMEOUT_S, AgentFunction, Agents, define_agent
from runstone.runtime.tools import Approval, Tool

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from runstone.client import Client
    from runstone.server import System

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=AgentFunction)


class ToolMaker(Protocol):
    """What `app.tool(…)` gives: it makes a function a tool."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Tool[P, R]: ...


class Runstone:
    """An application: its agents, its tools, its settings.

    Settings given here are defaults that flags and RUNSTONE_* override; docs/settings.md lists them.
    """

    def __init__(self, **settings: Any) -> None:
        self.agents = Agents()
        self.settings = settings
        self._system: System | None = None

    # --- registering ----------------------------------------------------------------------------------------

    @overload
    def agent(self, function: F, /) -> F: ...
    @overload
    def agent(
        self,
        /,
        *,
        name: str | None = None,
        on_crash: OnCrash = "resume",
        max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TIMEOUT_S,
        provider: str | None = None,
    ) -> Callable[[F], F]: ...
    def agent(
        self,
        function: F | None = None,
        /,
        *,
        name: str | None = None,
        on_crash: OnCrash = "resume",
        max_attempts: int = MAX_ATTEMPTS,
        timeout_s: float = TIMEOUT_S,
        provider: str | None = None,
    ) -> F | Callable[[F], F]:
        """Registers an async function, or an async generator of text, under its name.

        `timeout_s` is running time. `provider` names the circuit breaker of whom the agent depends on: while it is
        open, a start is answered with 503. Raises BadConfig on what cannot be an agent.
        """

        def register(function: F) -> F:
            self.agents.add(
                define_agent(
                    function,
                    name=name,
                    on_crash=on_crash,
                    max_attempts=max_attempts,
                    timeout_s=timeout_s,
                    provider=provider,
                )
            )
            return function

        return register if function is None else register(function)

    @overload
    def tool(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> Tool[P, R]: ...
    @overload
    def tool(self, function: Callable[P, R], /) -> Tool[P, R]: ...
    @overload
    def tool(
        self,
        /,
        *,
        name: str | None = None,
        timeout_s: float | None = None,
        private: bool = False,
        idempotent: bool = False,
        retries: int = 0,
        provider: str | None = None,
        approval: Approval = "never",
    ) -> ToolMaker: ...
    def tool(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        timeout_s: float | None = None,
        private: bool = False,
        idempotent: bool = False,
        retries: int = 0,
        provider: str | None = None,
        approval: Approval = "never",
    ) -> Any:
        """Makes a function a tool: inside a run a call is an action, and is awaited; outside it is a plain function.

        Sync functions run in a thread. Clients see of a private tool that it ran, and nothing else. A call that was
        under way in a crash is made again only if the tool is `idempotent`. With `approval="always"` a person has to
        approve each call first. `timeout_s` is that of one try; a call that failed is made again up to `retries`
        times, for which the tool has to be `idempotent`. `provider` names its circuit breaker, else its name does.
        """

        def register(function: Callable[..., Any]) -> Tool[..., Any]:
            return Tool(
                function,
                name=name,
                timeout_s=timeout_s,
                private=private,
                idempotent=idempotent,
                retries=retries,
                provider=provider,
                approval=approval,
            )

        return register if function is None else register(function)

    # --- running --------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Runs the system while the context is open: `FastAPI(lifespan=app.lifespan)`."""
        async with self._started({}):
            yield

    @asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Client]:
        """The whole system in this process, without a socket, for tests: yields a client of user `local`."""
        async with self._started(settings), self.client() as client:
            yield client

    def client(self, user_id: str = "local") -> Client:
        """A client in this process; the system must be running."""
        from runstone.client import Client

        return Client.in_process(self.asgi, user_id=user_id)

    async def asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application, to mount or to serve. Until the system runs it answers 503, and says why."""
        if scope["type"] == "lifespan":
            await self._lifespan_protocol(receive, send)
        elif self._system is not None:
            await self._system.gateway(scope, receive, send)
        else:
            await _not_started(scope, receive, send)

    @asynccontextmanager
    async def _started(self, settings: dict[str, Any]) -> AsyncIterator[System]:
        import structlog

        from runstone import logs
        from runstone.config import load
        from runstone.server import System

        if not structlog.is_configured():
            logs.configure(debug=False)  # its own default prints the values of local variables with an error

        if self._system is not None:
            raise BadConfig("This Runstone app is running already.", remedy="Run it once; it may have many clients.")
        system = System(load(settings, self.settings), self.agents)
        await system.start()
        self._system = system
        try:
            yield system
        finally:
            await system.stop()
            self._system = None

    async def _lifespan_protocol(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            async with self._started({}):
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.shutdown.complete"})


async def _not_started(scope: Scope, receive: Receive, send: Send) -> None:
    from runstone.gateway.problems import problem
    from runstone.gateway.ws import refuse

    error = Unavailable(
        "The Runstone app is mounted, but not running: a mounted app's lifespan is not run for it.",
        remedy="Write FastAPI(lifespan=app.lifespan), or enter app.lifespan() in your own lifespan.",
    )
    answer: ASGIApp = problem(error)
    if scope["type"] == "websocket":
        await receive()
        await refuse(scope, receive, send, problem(error))
    else:
        await answer(scope, receive, send)
