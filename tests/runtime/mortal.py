"""A server whose agents kill it, and which is started again each time until their runs have ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from runstone import server
from runstone.client import Client
from runstone.verify import Finding, verify
from tests.runtime.support import Place
from tests.support.forked import DiedAtStart, ForkedServer
from tests.support.zygote import Zygote

_LEDGER = "TEST_LEDGER"


def die() -> None:
    """SIGKILL, here and now."""
    os.kill(os.getpid(), signal.SIGKILL)


def note(line: object) -> int:
    """An effect outside, there whatever becomes of the process; how many there are with it."""
    path = Path(os.environ[_LEDGER])
    with path.open("a") as ledger:
        ledger.write(f"{line}\n")
    return len(path.read_text().splitlines())


class Mortal(Place):
    """A server in a process of its own, and what its agents have done outside."""

    def __init__(self, client: Client, process: ForkedServer, ledger: Path, deaths: int) -> None:
        self.client = client
        self.deaths = deaths
        self._server = process
        self._ledger = ledger

    @property
    def ledger(self) -> list[str]:
        return self._ledger.read_text().splitlines()

    def findings(self) -> list[str]:
        """What `verify` finds wrong with the store."""
        found: list[Finding] = []
        with server.audit(self._server.store_url) as audit:
            verify(audit, found.append, lambda _what, _done, _all: None, hold_s=None)
        return [finding.line() for finding in found]

    def kill(self) -> None:
        """From outside; it starts again like after every other death."""
        self._server.signal(signal.SIGKILL)

    async def revive(self) -> None:
        """Starts the server again whenever it has died; runs until it is cancelled."""
        while True:
            await self._death()
            self._server.kill()
            self.deaths += 1
            with suppress(DiedAtStart):
                self._server.start(**{_LEDGER: str(self._ledger)})

    async def _death(self) -> None:
        """Returns when nobody listens any more: a dead process's connections break."""
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
            except ConnectionError:
                return
            try:
                with suppress(ConnectionError):
                    await reader.read()
            finally:
                writer.transport.abort()


@asynccontextmanager
async def mortal(zygote: Zygote, folder: Path, target: str, **environment: str) -> AsyncIterator[Mortal]:
    """`environment` is that of the first life."""
    ledger = folder / "ledger"
    ledger.touch()
    process = ForkedServer(zygote, folder, target)
    deaths = 0
    try:
        process.start(**{_LEDGER: str(ledger)}, **environment)
    except DiedAtStart:
        deaths = 1
        process.start(**{_LEDGER: str(ledger)})
    try:
        async with Client(process.url) as client:
            place = Mortal(client, process, ledger, deaths)
            reviving = asyncio.create_task(place.revive())
            try:
                yield place
            finally:
                if reviving.done():
                    reviving.result()  # why it could not be started again
                reviving.cancel()
                await asyncio.wait({reviving})
    finally:
        process.kill()
