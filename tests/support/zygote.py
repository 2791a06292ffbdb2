"""Processes that start in milliseconds: forked from one that has imported everything already.

What a child does from there on is what a fresh interpreter would do, and it dies as one: by its own exit or by a
signal. Only the second of imports before it is saved, so that a test can kill a server several times a second.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

_ROOT = Path(__file__).parents[2]
_MESSAGE_BYTES_MAX = 65_536


class Done(NamedTuple):
    """How a child ended, and what it said."""

    returncode: int
    stdout: str
    stderr: str


class Zygote:
    """The process that children are forked from; ends, and takes them with it, when it is closed."""

    def __init__(self, *modules: str) -> None:
        self._socket, theirs = socket.socketpair()
        self._lock = threading.Lock()
        command = [sys.executable, "-m", __name__, str(theirs.fileno()), *modules]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=_ROOT)
        theirs.close()

    def fork(
        self,
        function: str,
        arguments: Sequence[str],
        *,
        stdout: int,
        stderr: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> int:
        """Calls `module:function` in a child, with its arguments as `sys.argv`; returns the child's pid.

        `stdout` and `stderr` are descriptors; the child gets its own.
        """
        request = {"function": function, "arguments": [*arguments], "environment": {**(environment or {})}}
        descriptors = [stdout] if stderr is None else [stdout, stderr]
        return int(self._ask(request, descriptors)["pid"])

    def wait(self, pid: int) -> int:
        """Until a child has ended; returns its exit code, negative where a signal ended it. Once a child."""
        return int(self._ask({"wait": pid}, [])["code"])

    def alive(self, pid: int) -> bool:
        """Whether a child that nobody has waited for still runs."""
        return bool(self._ask({"alive": pid}, [])["alive"])

    def run(self, function: str, *arguments: str, timeout_s: float = 30) -> Done:
        """A child from start to end; SIGKILL ends one that takes too long."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            pid = self.fork(function, arguments, stdout=stdout.fileno(), stderr=stderr.fileno())
            killer = threading.Timer(timeout_s, os.kill, (pid, signal.SIGKILL))
            killer.start()
            try:
                code = self.wait(pid)
            finally:
                killer.cancel()
            stdout.seek(0)
            stderr.seek(0)
            return Done(code, stdout.read(), stderr.read())

    def close(self) -> None:
        self._socket.close()
        self._process.wait(10)

    def _ask(self, request: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], descriptors)
            reply: dict[str, Any] = json.loads(self._socket.recv(_MESSAGE_BYTES_MAX))
            return reply


def _serve(requests: socket.socket, children: set[int]) -> None:
    """Answers until the other end is closed. In a child it returns by raising: with the child's own exit."""
    while True:
        body, descriptors, _, _ = socket.recv_fds(requests, _MESSAGE_BYTES_MAX, 2)
        if not body:
            return
        request = json.loads(body)
        if "alive" in request:
            ended = os.waitid(os.P_PID, request["alive"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            reply: dict[str, Any] = {"alive": ended is None}
        elif "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            children.discard(request["wait"])
            reply = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if not pid:
                children.clear()
                requests.close()
                _become(request, descriptors)
            children.add(pid)
            reply = {"pid": pid}
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(json.dumps(reply).encode())


def _become(request: dict[str, Any], descriptors: list[int]) -> None:
    """The child's life, from here to its exit."""
    for target, descriptor in enumerate(descriptors, start=1):
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.environ.update(request["environment"])
    module, _, name = request["function"].partition(":")
    sys.argv = [module, *request["arguments"]]
    getattr(importlib.import_module(module), name)()
    raise SystemExit(0)


def _main() -> None:
    children: set[int] = set()
    for module in sys.argv[2:]:
        importlib.import_module(module)
    gc.freeze()  # what is shared stays shared
    try:
        with socket.socket(fileno=int(sys.argv[1])) as requests:
            _serve(requests, children)
    finally:
        for pid in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    _main()
