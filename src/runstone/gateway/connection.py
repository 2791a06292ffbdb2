"""What the streams need of the connection under them, beyond ASGI; under another server it is absent."""

from __future__ import annotations

import asyncio
import struct
from typing import Protocol, runtime_checkable

from starlette.types import Scope

from runstone.metrics import Metrics

EXTENSION = "runstone.connection"  # where a scope's "extensions" hold its Connection


@runtime_checkable
class Connection(Protocol):
    """The socket under a request. A lost client is an OSError, here as in ASGI's `send`."""

    @property
    def unsent_bytes(self) -> int:
        """What waits here for the client to read; whether it falls tells a slow reader from a stalled one."""
        ...

    def abort(self) -> None:
        """Cuts the connection at once, without a goodbye. Safe to repeat."""
        ...

    async def drain(self) -> None:
        """Waits, once the write buffer has passed its high mark, until it is below the low one."""
        ...


@runtime_checkable
class FrameConnection(Connection, Protocol):
    """The socket under a WebSocket."""

    def send_frame(self, frame: bytes) -> None:
        """Writes a complete server frame; never waits."""
        ...


def connection_of(scope: Scope) -> Connection | None:
    found = (scope.get("extensions") or {}).get(EXTENSION)
    return found if isinstance(found, Connection) else None


def text_frame(payload: bytes) -> bytes:
    """One whole WebSocket text frame as a server sends it: final, unmasked (RFC 6455, section 5.2).

    The same bytes can go to every viewer.
    """
    size = len(payload)
    if size < 126:
        return struct.pack("!BB", 0x81, size) + payload
    if size < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


async def drain_or_abort(connection: Connection, deadline_s: float, metrics: Metrics) -> None:
    """Waits for a slow reader as long as it reads at all; one that reads nothing for the deadline is cut off.

    A timeout alone would leave the socket open for ever. Raises OSError.
    """
    while True:
        before = connection.unsent_bytes
        try:
            async with asyncio.timeout(deadline_s):
                await connection.drain()
            return
        except TimeoutError:
            if connection.unsent_bytes >= before:
                metrics.connections_aborted.inc()
                connection.abort()
                raise ConnectionAbortedError(f"nothing was read for {deadline_s:g} s") from None
