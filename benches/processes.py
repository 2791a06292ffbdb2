"""Processes that are measured: a Runstone server, a bare one; their processor time and memory."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

START_S = 60.0
STOP_S = 30.0
ROOT = Path(__file__).parents[1]
_TICKS = os.sysconf("SC_CLK_TCK")


class Process:
    """A child that listens on a port of its own choice and says so in one line."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        self.log = log
        self._arguments = arguments
        started = time.monotonic()
        with log.open("a") as output:
            self._child = subprocess.Popen(
                [sys.executable, *arguments],
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=os.environ | environment,
                cwd=ROOT,
            )
        self.port = self._ready()
        self.start_s = time.monotonic() - started  # until it listened

    @property
    def pid(self) -> int:
        return self._child.pid

    def _ready(self) -> int:
        assert self._child.stdout is not None
        deadline = time.monotonic() + START_S
        ready = select.poll()  # select() knows only the first 1,024 files
        ready.register(self._child.stdout, select.POLLIN | select.POLLHUP)
        while time.monotonic() < deadline:
            if ready.poll(100):
                line = self._child.stdout.readline()
                if found := re.search(r" at http://[^ ]+:(\d+)", line):
                    return int(found[1])
                if not line:
                    break
        self.kill()
        raise RuntimeError(f"{self._arguments} did not start:\n{self.log.read_text()[-4000:]}")

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._child.send_signal(number)
        self._child.wait(STOP_S)
        if self._child.stdout is not None:
            self._child.stdout.close()

    def cpu_s(self) -> dict[str, float]:
        """Processor time so far: the `loop`'s thread, and `all` of them. Zeros where there is no /proc."""
        found = {"loop": 0.0, "all": 0.0}
        for task in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            fields = task.read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / _TICKS
            found["all"] += seconds
            if task.parent.name == str(self.pid):
                found["loop"] += seconds
        return found

    def rss_kib(self) -> int | None:
        """Resident memory; null where there is no /proc."""
        try:
            status = Path(f"/proc/{self.pid}/status").read_text()
        except FileNotFoundError:
            return None
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return None if found is None else int(found[1])


@contextlib.contextmanager
def runstone(folder: Path, *, journal_mode: str = "wal", name: str = "runs") -> Iterator[Process]:
    """`runstone serve` with the agents of this package, on a store in the folder; killed at the end."""
    store = f"sqlite:///{folder / name}.db?journal_mode={journal_mode}"
    arguments = ["-m", "runstone", "serve", "benches.agents:app", "--store", store, "--port", "0"]
    environment = {"RUNSTONE_SLOTS": "20000", "RUNSTONE_SOCKETS_A_USER": "20000"}
    process = Process(arguments, folder / "server.log", **environment)
    try:
        yield process
    finally:
        process.kill()


@contextlib.contextmanager
def bare(folder: Path, mode: str, **settings: object) -> Iterator[Process]:
    """The baseline's server, see `benches.bare`."""
    arguments = ["-m", "benches.bare", mode, json.dumps({"folder": str(folder), **settings})]
    process = Process(arguments, folder / "bare.log")
    try:
        yield process
    finally:
        process.kill()
