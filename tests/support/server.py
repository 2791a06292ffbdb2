"""A server in a process of its own, which tests start, kill and start again."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 20.0
STOP_S = 30.0


class ServerProcess:
    """`runstone serve` on a free port, with its store and its log in a folder of the test's."""

    def __init__(self, folder: Path, target: str = "tests.support.agents:app", journal_mode: str = "wal") -> None:
        self.database = folder / "runs.db"
        self.log = folder / "server.log"
        self.store_url = f"sqlite:///{self.database}?journal_mode={journal_mode}"
        self._target = target
        self._process: subprocess.Popen[str] | None = None
        self.url = ""
        self.port = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, *arguments: str, **environment: str) -> ServerProcess:
        """Returns when it answers; after the first time on the same port."""
        command = [sys.executable, "-m", "runstone", "serve", self._target, "--store", self.store_url]
        command += ["--port", str(self.port), *arguments]
        with self.log.open("a") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ | environment,
                cwd=Path(__file__).parents[2],
            )
        self.url = self._ready_line()
        self.port = int(self.url.rpartition(":")[2])
        return self

    def _ready_line(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if select.select([self._process.stdout], [], [], 0.1)[0]:
                line = self._process.stdout.readline()
                if found := re.search(r" at (http://\S+) ", line):
                    return found[1]
                if not line:
                    break
        self.kill()
        raise AssertionError(f"the server did not start:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        """SIGKILL; safe on a server that is gone."""
        self._end(signal.SIGKILL)

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        return self._end(signal.SIGTERM)

    def wait(self, timeout_s: float = STOP_S) -> int:
        """Until it has ended by itself."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def _end(self, number: signal.Signals) -> int:
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
        code = self._process.wait(STOP_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return code


@contextlib.contextmanager
def served(folder: Path, **environment: str) -> Iterator[ServerProcess]:
    """A server for a whole module; nothing may have gone wrong in it unseen."""
    process = ServerProcess(folder)
    process.start(**environment)
    yield process
    process.kill()
    log = process.log.read_text()
    assert "Traceback" not in log
    assert "ASGI" not in log
