"""A real server in this process, whose users are whoever a header names, with any broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.types import Receive, Scope, Send

from runstone import Runstone
from runstone.broker import Broker
from runstone.config import load
from runstone.gateway.gate import USER_KEY
from runstone.gateway.listener import Server
from runstone.server import System

USER_HEADER = "x-test-user"


def user(name: str) -> dict[str, str]:
    return {USER_HEADER: name}


@asynccontextmanager
async def household(app: Runstone, store_url: str, broker: Broker | None = None, **settings: Any) -> AsyncIterator[str]:
    """Its URL, while it serves."""
    system = System(load({"store": store_url, **settings}, {}), app.agents, broker=broker)
    await system.start()
    ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for answer in ("lifespan.startup.complete", "lifespan.shutdown.complete"):
                await receive()
                await send({"type": answer})
            return
        scope[USER_KEY] = dict(scope["headers"]).get(USER_HEADER.encode(), b"local").decode()
        await system.gateway(scope, receive, send)

    def opened(host: str, port: int) -> None:
        ready.set_result(f"http://{host}:{port}")

    server = Server(asgi, "127.0.0.1", 0, ready=opened, before_shutdown=system.gateway.close, signals=False)
    serving = asyncio.create_task(server.serve())
    try:
        yield await ready
    finally:
        server.stop()
        await serving
        await system.stop()
