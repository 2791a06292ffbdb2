"""The agent `shell`: run a command that the person typed, and show its output as it comes.

Whoever may start this agent may do whatever the server's own user may do. It is meant for `runstone demo` on
loopback, where both are the same person; nothing but an explicit `register(app)` brings it in.

A command runs in a session of its own, without a terminal and with nothing to read. However it ends, its
whole process group ends with it: what it left running in the background is terminated too. Only a program
that moves into a session of its own, as a daemon does, is out of reach.
"""

import asyncio
import codecs
import contextlib
import math
import os
import pwd
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from runstone.errors import AgentError, ToolError
from runstone.limits import KIB, MIB

if TYPE_CHECKING:
    from runstone import Runstone

COMMAND_BYTES_MAX: Final = 100 * KIB  # Linux takes 128 KiB for one argument
TIMEOUT_S: Final = 600.0
TIMEOUT_S_MAX: Final = 3_500.0  # the run ends at 3,600 s; the summary is to come before
OUTPUT_BYTES_MAX: Final = 64 * MIB  # of one command; beyond it somebody is printing a disk
READ_BYTES: Final = 64 * KIB  # what a pipe holds
LINE_CHARS_MAX: Final = 8 * KIB  # held back for the end of a line; longer lines come out in pieces
TAIL_CHARS_MAX: Final = 16 * KIB  # kept for the result; the log has the whole output
IDLE_S: Final = 0.25  # a line that has no end after this is shown as far as it goes: a prompt, a row of dots
REDRAW_S: Final = 0.5  # a line that redraws itself is shown this often
LINGER_S: Final = 2.0  # for the output of what outlives the shell
SETTLE_S: Final = 0.1  # for the system to clear away a group that has ended by itself
KILL_AFTER_S: Final = 2.0  # between the request to end and the end
POLL_S: Final = 0.02  # nothing tells of the end of a process that is not our child
TITLE_CHARS_MAX: Final = 80

Write = Callable[[str], Awaitable[object]]
Ending = Literal["exit", "signal", "timeout", "output"]


class CommandError(Exception):
    """The command could not be started; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended: by itself (`exit`), by a `signal`, or killed at its time or output limit.

    `exit_code` is null when a signal ended the shell. `tail` is the end of the output, at most 16 Ki
    characters; `stopped_others` says that processes were left behind, and ended.
    """

    ending: Ending
    exit_code: int | None
    signal: str | None
    seconds: float
    output_bytes: int
    lines: int
    tail: str
    tail_cut: bool
    stopped_others: bool

    @property
    def killed(self) -> bool:
        return self.ending in ("timeout", "output")

    def summary(self) -> str:
        """What happened, in a sentence or two for people."""
        lines = f"{self.lines:,} line{'' if self.lines == 1 else 's'}"
        others = " What it had left running in the background was ended too." if self.stopped_others else ""
        return f"{self._happened()} after {duration(self.seconds)}, {lines} of output.{others}"

    def _happened(self) -> str:
        if self.ending == "timeout":
            return "Killed at its time limit"
        if self.ending == "output":
            return f"Killed for printing more than {self.output_bytes // MIB} MiB"
        if self.ending == "signal":
            return f"Ended by {self.signal}"
        return f"{'Done' if self.exit_code == 0 else 'Failed'} with exit code {self.exit_code}"


def duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s"


# --- lines: bytes in, text out ----------------------------------------------------------------------


@dataclass(slots=True)
class Lines:
    """Cuts output into whole lines; holds no clock and no process.

    What comes out, joined, is the output, but: bytes that are no UTF-8 are U+FFFD, `\\r\\n` is `\\n`, and of
    a line that redraws itself with carriage returns only some states come out, the last one always.
    """

    count: int = 0
    _held: str = ""  # of the current line, not yet out; starts with \r where it redraws what is
    _begun: bool = False  # whether something of the current line is out
    _redrawn_at: float = -math.inf
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")("replace")
    )

    def feed(self, data: bytes, now: float) -> str:
        """The lines that `data` completes, and what else is due at `now` (seconds)."""
        text = self._held + self._decoder.decode(data)
        if "\r" not in text:  # nearly always; ten times as fast
            return self._plain(text)
        *whole, rest = text.replace("\r\n", "\n").split("\n")
        out = "".join(self._end(line) for line in whole)
        drawn, carriage_return, state = rest.rstrip("\r").rpartition("\r")
        # A return at the very end may be the first half of \r\n.
        self._held = carriage_return + state + ("\r" if rest.endswith("\r") else "")
        redraws = bool(drawn or carriage_return or rest.endswith("\r"))
        if len(self._held) > LINE_CHARS_MAX or (redraws and now - self._redrawn_at >= REDRAW_S):
            self._redrawn_at = now
            out += self.flush()
        return out

    def flush(self) -> str:
        """What is there of an unfinished line."""
        text, self._held = self._held.rstrip("\r"), "\r" if self._held.endswith("\r") else ""
        if not self._begun:
            text = text.removeprefix("\r")
        self._begun = self._begun or bool(text)
        return text

    def finish(self) -> str:
        """What is left when the output has ended."""
        self._held += self._decoder.decode(b"", final=True)
        out = self.flush()
        self.count += self._begun
        return out

    def _plain(self, text: str) -> str:
        whole, newline, self._held = text.rpartition("\n")
        if newline:
            self.count += whole.count("\n") + 1
            self._begun = False
        out = whole + newline
        return out + self.flush() if len(self._held) > LINE_CHARS_MAX else out

    def _end(self, line: str) -> str:
        _, carriage_return, state = line.rstrip("\r").rpartition("\r")
        begun, self._begun = self._begun, False
        self.count += 1
        return (carriage_return if begun else "") + state + "\n"


@dataclass(slots=True)
class Tail:
    """The end of a text, as a terminal would show it."""

    text: str = ""
    cut: bool = False

    def add(self, text: str) -> None:
        self.text += text
        if "\r" in self.text:
            self.text = re.sub(r"[^\r\n]*\r+(?=[^\r\n])", "", self.text)
        if len(self.text) > TAIL_CHARS_MAX:
            self.text, self.cut = self.text[-TAIL_CHARS_MAX:], True


# --- the process ------------------------------------------------------------------------------------


class _TooMuchOutput(Exception):
    pass


async def run_command(
    command: str,
    write: Write,
    *,
    cwd: str = ".",
    timeout_s: float = TIMEOUT_S,
    output_bytes_max: int = OUTPUT_BYTES_MAX,
) -> Outcome:
    """Run `command` with the user's shell and pass its output (stdout and stderr as they mix) to `write`.

    Each write is one or more whole lines that came together. When this returns or raises, cancelled or not,
    the process group is gone and the shell is reaped. Raises `CommandError` when it could not start, and
    whatever `write` raises.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    lines, tail = Lines(), Tail()
    ending: Ending = "exit"
    seen_bytes = 0
    stopped_others = False

    async def show(text: str) -> None:
        if text:
            tail.add(text)
            await write(text)

    async with _started(command, cwd) as (process, output):
        limit = asyncio.timeout(timeout_s)
        try:
            async with limit:
                async for data in _follow(process, output):
                    seen_bytes += len(data)
                    room = len(data) - max(seen_bytes - output_bytes_max, 0)
                    await show(lines.feed(data[:room], loop.time()) if data else lines.flush())
                    if room < len(data):
                        raise _TooMuchOutput
        except _TooMuchOutput:
            ending, seen_bytes = "output", output_bytes_max
        except TimeoutError:
            if not limit.expired():
                raise  # somebody else's
            ending = "timeout"
        finally:
            stopped_others = await _end(process)
        await show(lines.finish())
    code = process.returncode
    if ending == "exit" and code is not None and code < 0:
        ending = "signal"
    return Outcome(
        ending=ending,
        exit_code=code if code is not None and code >= 0 else None,
        signal=_signal_name(-code) if code is not None and code < 0 else None,
        seconds=round(loop.time() - started, 3),
        output_bytes=seen_bytes,
        lines=lines.count,
        tail=tail.text,
        tail_cut=tail.cut,
        stopped_others=stopped_others and ending in ("exit", "signal"),
    )


@contextlib.asynccontextmanager
async def _started(command: str, cwd: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, asyncio.StreamReader]]:
    if "\0" in command + cwd:  # uvloop would run what stands before it
        raise CommandError("The command or its folder holds a NUL character. Check it, and type it again.")
    # The pipe is ours, not the process transport's: a daemon may hold its other end for ever, and neither
    # reading nor waiting for the shell may depend on that.
    reading, writing = os.pipe()
    output = asyncio.StreamReader(limit=READ_BYTES)
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        try:
            process = await asyncio.create_subprocess_exec(
                _shell(),
                "-c",
                command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                cwd=os.path.expanduser(cwd),  # noqa: PTH111, ASYNC240 - looks at the environment only
                start_new_session=True,
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise CommandError(_why_not(error, cwd)) from error
        finally:
            os.close(writing)
        try:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(output), pipe
            )
        except BaseException:
            await _end(process)
            raise
        try:
            yield process, output
        finally:
            transport.close()


def _shell() -> str:
    shells = [os.environ.get("SHELL"), "/bin/sh"]
    with contextlib.suppress(KeyError):  # a container's user may have no entry
        shells.insert(1, pwd.getpwuid(os.getuid()).pw_shell)
    return next((shell for shell in shells if shell and os.access(shell, os.X_OK)), "/bin/sh")


def _why_not(error: Exception, cwd: str) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError):
        return f"Cannot start in {cwd!r}: {error.strerror}. Give a folder that the server's user can enter."
    return f"Cannot start the command: {error}. Check its length and characters."


async def _follow(process: asyncio.subprocess.Process, output: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Pieces of output as they come, and an empty one whenever nothing came for a while.

    Ends with the output, or a little after the shell when something else holds its output open.
    """
    loop = asyncio.get_running_loop()
    last_call = math.inf
    while loop.time() < last_call:
        if process.returncode is not None and last_call == math.inf:
            last_call = loop.time() + LINGER_S
        try:
            async with asyncio.timeout(IDLE_S):
                data = await output.read(READ_BYTES)
        except TimeoutError:
            yield b""
            continue
        if not data:
            break
        yield data
    else:
        return
    # Output may be closed long before the end; the time limit is the caller's.
    await process.wait()


async def _end(process: asyncio.subprocess.Process) -> bool:
    """End the process group: ask, wait, kill, reap. Whether it was more than a shell that had exited.

    The signals are sent whenever this is cancelled, too; so a second cancel cannot save the group.
    """
    left = process.returncode is None or not await _gone(process.pid, SETTLE_S)
    if left:
        try:
            _signal_group(process.pid, signal.SIGTERM)
            gone = False
            gone = await _gone(process.pid, KILL_AFTER_S)
        finally:
            if not gone:
                _signal_group(process.pid, signal.SIGKILL)
    await process.wait()
    return left


async def _gone(group: int, wait_s: float) -> bool:
    for _ in range(round(wait_s / POLL_S)):
        if not _signal_group(group, 0):
            return True
        await asyncio.sleep(POLL_S)
    return not _signal_group(group, 0)


def _signal_group(group: int, number: int) -> bool:
    """Whether the group has a member that could be signalled. 0 only asks."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # gone; or of another user, and out of our hands
        return False
    return True


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return f"signal {number}"


# --- the agent --------------------------------------------------------------------------------------


def check(command: str, timeout_s: float) -> None:
    """Refuse, with what to do, what no shell could run."""
    if not command.strip():
        raise AgentError("There is no command. Type one, such as: ls -l")
    if len(command.encode("utf-8", "replace")) > COMMAND_BYTES_MAX:
        raise AgentError(f"The command is longer than {COMMAND_BYTES_MAX // KIB} KiB. Put it into a script.")
    if not 0 < timeout_s <= TIMEOUT_S_MAX:  # false for NaN, too
        raise AgentError(f"timeout_s is {timeout_s}. Give seconds, above 0 and at most {TIMEOUT_S_MAX:.0f}.")


def register(app: "Runstone") -> None:
    """Add the agent `shell` to an app that only its own user can reach."""
    from runstone import Action, Run

    @app.tool(timeout_s=TIMEOUT_S_MAX + 60)  # the command's own limit comes first
    async def execute(command: str, cwd: str, timeout_s: float, action: Action) -> Outcome:
        """Run a command with the user's shell; its output is the live output of this action."""
        try:
            return await run_command(command, action.write, cwd=cwd, timeout_s=timeout_s)
        except CommandError as error:
            raise AgentError(str(error)) from error

    @app.agent
    async def shell(
        run: Run, command: str, timeout_s: float = TIMEOUT_S, cwd: str = "."
    ) -> dict[str, str | int | float | None]:
        """Run a command with your shell and show its output line by line."""
        check(command, timeout_s)
        await run.set_title("$ " + " ".join(command.split())[:TITLE_CHARS_MAX])
        try:
            # The runtime gives the action.
            outcome = await execute(command=command, cwd=cwd, timeout_s=timeout_s)  # type: ignore[call-arg]
        except ToolError as error:
            raise AgentError(str(error)) from error
        await run.say(outcome.summary())
        if outcome.killed:
            raise AgentError(outcome.summary())
        return {
            "exit_code": outcome.exit_code,
            "signal": outcome.signal,
            "seconds": outcome.seconds,
            "output_bytes": outcome.output_bytes,
        }
