"""`runstone serve`, forked instead of started: for tests that kill a server hundreds of times."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from pathlib import Path

from tests.support.zygote import Zygote

START_S = 30.0
MODULES = (  # what `runstone serve` imports, also what it imports late
    "encodings.idna",
    "pydantic.v1",
    "runstone.cli",
    "runstone.server",
    "uvicorn.lifespan.on",
    "uvloop",
)


class DiedAtStart(Exception):
    """The server ended before it was ready: a failpoint was reached while it started."""


class ForkedServer:
    """The server of `ServerProcess`, in a child of a zygote that has imported MODULES."""

    def __init__(self, zygote: Zygote, folder: Path, target: str, journal_mode: str = "wal") -> None:
        self.database = folder / "runs.db"
        self.log = folder / "server.log"
        self.store_url = f"sqlite:///{self.database}?journal_mode={journal_mode}"
        self.url = ""
        self.port = 0
        self._zygote = zygote
        self._target = target
        self._pid: int | None = None

    def start(self, **environment: str) -> ForkedServer:
        """Returns when it answers, after the first time on the same port; raises DiedAtStart."""
        reading, writing = os.pipe()
        try:
            with self.log.open("a") as log:
                self._pid = self._zygote.fork(
                    "runstone.cli:main",
                    ["serve", self._target, "--store", self.store_url, "--port", str(self.port)],
                    stdout=writing,
                    stderr=log.fileno(),
                    environment=environment,
                )
            os.close(writing)
            self.url = self._ready_line(reading)
        finally:
            os.close(reading)
        self.port = int(self.url.rpartition(":")[2])
        return self

    def _ready_line(self, reading: int) -> str:
        deadline, said = time.monotonic() + START_S, b""
        while time.monotonic() < deadline:
            if select.select([reading], [], [], 0.5)[0]:
                piece = os.read(reading, 4096)
                said += piece
                if found := re.search(rb" at (http://\S+) ", said):
                    return found[1].decode()
                if not piece:
                    break
        code = self.kill()
        if code == -signal.SIGKILL:
            raise DiedAtStart
        raise AssertionError(f"the server did not start ({code}):\n{self.log.read_text()[-4000:]}")

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        assert self._pid is not None, "not started"
        pid, self._pid = self._pid, None
        os.kill(pid, signal.SIGTERM)
        return self._zygote.wait(pid)

    def drain(self, seconds: float) -> int:
        """SIGTERM, and after so long SIGKILL; returns the exit code. Safe on a server that is gone."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
            deadline = time.monotonic() + seconds
            while not self.gone and time.monotonic() < deadline:
                time.sleep(0.005)
        return self.kill()

    @property
    def gone(self) -> bool:
        """Whether it has ended by itself."""
        return self._pid is not None and not self._zygote.alive(self._pid)

    def signal(self, number: signal.Signals) -> None:
        """Sends it a signal, and does not wait for what comes of it."""
        assert self._pid is not None, "not started"
        os.kill(self._pid, number)

    def kill(self) -> int:
        """SIGKILL, wherever it is; returns the exit code. Safe on a server that is gone."""
        if self._pid is None:
            return 0
        pid, self._pid = self._pid, None
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self._zygote.wait(pid)
