"""A command is shown as it runs, ends when it should, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runstone.agents import shell
from runstone.agents.shell import CommandError, Lines, Outcome, Tail, check, run_command
from runstone.errors import AgentError


class Shown:
    """Collects what was written, and tells when a text has come."""

    def __init__(self) -> None:
        self.writes: list[str] = []
        self.changed = asyncio.Event()

    @property
    def text(self) -> str:
        return "".join(self.writes)

    async def write(self, text: str) -> None:
        self.writes.append(text)
        self.changed.set()

    async def until(self, pattern: str) -> re.Match[str]:
        while not (match := re.search(pattern, self.text)):
            self.changed.clear()
            await self.changed.wait()
        return match


@pytest.fixture(autouse=True)
def plain_shell(monkeypatch):
    monkeypatch.setenv("SHELL", "/bin/sh")


def run(command: str, **settings) -> tuple[Outcome, Shown]:
    shown = Shown()
    return asyncio.run(run_command(command, shown.write, **settings)), shown


def ended(pid: int | str) -> bool:
    """Whether a process has ended, or does within 5 seconds."""
    try:
        descriptor = os.pidfd_open(int(pid))
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], 5)[0])
    finally:
        os.close(descriptor)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# --- how it ends ----------------------------------------------------------------------------------


def test_output_and_errors_come_as_they_mix_with_the_exit_code():
    outcome, shown = run("echo one; echo two >&2; echo three; exit 3")
    assert shown.text == "one\ntwo\nthree\n"
    assert (outcome.ending, outcome.exit_code, outcome.signal, outcome.lines) == ("exit", 3, None, 3)
    assert outcome.tail == shown.text
    assert outcome.summary().startswith("Failed with exit code 3 after ")


def test_a_line_is_shown_while_the_command_runs():
    async def main():
        shown = Shown()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_command("echo ready; read x < pipe; echo $x", shown.write, cwd=os.curdir))
            await shown.until("ready\n")
            Path("pipe").write_text("done\n", encoding="utf-8")
        return shown.text

    os.mkfifo("pipe")
    assert asyncio.run(main()) == "ready\ndone\n"


def test_an_unfinished_line_is_shown_before_its_end():
    async def main():
        shown = Shown()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_command("printf ...; read x < pipe; echo $x", shown.write))
            await shown.until(r"\.\.\.")
            Path("pipe").write_text("done\n", encoding="utf-8")
        return shown.text

    os.mkfifo("pipe")
    assert asyncio.run(main()) == "...done\n"


def test_the_last_line_is_kept_without_its_newline():
    outcome, shown = run("printf 'a\\nb'")
    assert (shown.text, outcome.lines) == ("a\nb", 2)


def test_a_signal_is_named():
    outcome, _ = run("kill -SEGV $$")
    assert (outcome.ending, outcome.exit_code, outcome.signal) == ("signal", None, "SIGSEGV")


def test_there_is_nothing_to_read_and_no_terminal():
    outcome, shown = run("cat; tty; exec 3< /dev/tty")
    assert "not a tty" in shown.text
    assert outcome.exit_code != 0


def test_a_timeout_ends_the_whole_group():
    outcome, shown = run("sleep 100 & echo $! $$; wait", timeout_s=0.3)
    assert (outcome.ending, outcome.signal) == ("timeout", "SIGTERM")
    assert outcome.killed
    assert all(map(ended, shown.text.split()))


def test_who_ignores_the_request_to_end_is_killed(monkeypatch):
    monkeypatch.setattr(shell, "KILL_AFTER_S", 0.1)
    outcome, shown = run("trap '' TERM; echo $$; while :; do sleep 100; done", timeout_s=0.3)
    assert (outcome.ending, outcome.signal) == ("timeout", "SIGKILL")
    assert ended(shown.text)


def test_a_cancel_ends_the_whole_group_and_passes_through():
    async def main():
        shown = Shown()
        task = asyncio.create_task(run_command("sleep 100 & echo $! $$.; wait", shown.write))
        pids = (await shown.until(r"(\d+) (\d+)\.")).groups()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return pids

    assert all(map(ended, asyncio.run(main())))


def test_a_second_cancel_kills_at_once(monkeypatch):
    monkeypatch.setattr(shell, "KILL_AFTER_S", 1_000.0)
    spawn, spawned = asyncio.create_subprocess_exec, []

    async def kept(*arguments, **settings):
        spawned.append(await spawn(*arguments, **settings))
        return spawned[0]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", kept)

    async def main():
        shown = Shown()
        task = asyncio.create_task(run_command("trap '' TERM; echo $$.; sleep 100 & wait; wait", shown.write))
        await shown.until(r"\d+\.")
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task], timeout=0.2)
        assert task.cancelled()
        return await spawned[0].wait()

    assert asyncio.run(main()) == -signal.SIGKILL


def test_what_is_left_in_the_background_is_ended_and_said(monkeypatch):
    monkeypatch.setattr(shell, "LINGER_S", 0.1)
    outcome, shown = run("sleep 100 & echo $!")
    assert (outcome.ending, outcome.exit_code, outcome.stopped_others) == ("exit", 0, True)
    assert "background" in outcome.summary()
    assert ended(shown.text)


def test_a_quiet_background_process_is_ended_as_well():
    outcome, shown = run("sleep 100 > /dev/null 2>&1 & echo $!")
    assert outcome.stopped_others
    assert ended(shown.text)


def test_a_daemon_that_holds_the_output_open_does_not_hold_the_run(monkeypatch):
    monkeypatch.setattr(shell, "LINGER_S", 0.1)
    outcome, shown = run("setsid sleep 100 & echo $!")
    try:
        assert (outcome.ending, outcome.exit_code) == ("exit", 0)
        assert outcome.seconds < 10
    finally:
        os.kill(int(shown.text), signal.SIGKILL)


def test_a_command_that_closes_its_output_is_waited_for():
    outcome, _ = run("exec >&- 2>&-; sleep 0.2; exit 7")
    assert outcome.exit_code == 7


def test_too_much_output_ends_the_command():
    outcome, shown = run("yes", output_bytes_max=1_000_000)
    assert (outcome.ending, outcome.output_bytes) == ("output", 1_000_000)
    assert len(shown.text) == 1_000_000
    assert (len(outcome.tail), outcome.tail_cut) == (shell.TAIL_CHARS_MAX, True)


def test_a_write_that_fails_ends_the_command_and_is_raised():
    pids = []

    async def write(text: str) -> None:
        pids.append(int(text))
        raise TimeoutError("the log is closed")

    with pytest.raises(TimeoutError, match="the log is closed"):
        asyncio.run(run_command("echo $$; sleep 100", write))
    assert ended(pids[0])


def test_no_child_is_left_unreaped():
    run("true")
    run("sleep 100", timeout_s=0.1)
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_no_descriptor_is_left_open():
    run("true")
    before = len(list(Path("/proc/self/fd").iterdir()))
    run("echo x")
    with pytest.raises(CommandError):
        run("true", cwd="missing")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("cwd", ["missing", "file", "a\0b", "~nobody-of-this-name"])
def test_a_folder_that_cannot_be_entered_says_what_to_give(tmp_path, cwd):
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match=r"Give a folder|Check it"):
        run("true", cwd=cwd)


def test_a_command_that_no_system_takes_says_so():
    for command in ("true\0", "x" * 10_000_000):
        with pytest.raises(CommandError, match="Check it"):
            run(command)


@pytest.mark.parametrize(
    ("command", "timeout_s"),
    [
        ("", 1),
        (" \n", 1),
        ("x" * 200_000, 1),
        ("ls", 0),
        ("ls", -1),
        ("ls", float("nan")),
        ("ls", float("inf")),
    ],
)
def test_what_no_shell_could_run_is_refused_with_a_remedy(command, timeout_s):
    with pytest.raises(AgentError, match=r"Type one|script|Give seconds"):
        check(command, timeout_s)


def test_the_shell_is_the_users_own_or_the_systems(monkeypatch):
    monkeypatch.setenv("SHELL", "/nowhere/sh")
    outcome, _ = run("true")
    assert outcome.exit_code == 0


# --- lines ----------------------------------------------------------------------------------------


def cut(data: bytes, sizes: list[int], now: list[float]) -> tuple[str, Lines]:
    lines, out, at = Lines(), "", 0
    for size, time in zip(sizes, now, strict=False):
        out += lines.feed(data[at : at + size], time)
        at += size
    return out + lines.feed(data[at:], 0) + lines.finish(), lines


def terminal(text: str) -> str:
    """What is seen in the end, where each return starts the line over."""
    return "\n".join(line.rstrip("\r").rpartition("\r")[2] for line in text.replace("\r\n", "\n").split("\n"))


SIZES = st.lists(st.integers(0, 5), max_size=40)
TIMES = st.lists(st.floats(0, 100), min_size=40, max_size=40)


@given(text=st.text(alphabet="ab é😀\n", max_size=60), sizes=SIZES, now=TIMES)
def test_lines_come_out_as_they_went_in_wherever_the_pipe_cuts(text, sizes, now):
    out, lines = cut(text.encode(), sizes, now)
    assert out == text
    assert lines.count == len(text.splitlines())


@given(text=st.text(alphabet="ab\r\n", max_size=60), sizes=SIZES, now=TIMES)
@example(text="10%\r20%\r\n", sizes=[4, 4], now=[0.0, 1.0] * 20)
def test_lines_that_redraw_themselves_end_as_a_terminal_would_show_them(text, sizes, now):
    out, _ = cut(text.encode(), sizes, now)
    tail = Tail()
    tail.add(out)
    assert terminal(tail.text) == terminal(out) == terminal(text)


@given(data=st.binary(max_size=80), sizes=SIZES, now=TIMES)
def test_any_bytes_come_out_as_text(data, sizes, now):
    out, _ = cut(data, sizes, now)
    assert terminal(out) == terminal(data.decode("utf-8", "replace"))


def test_a_progress_bar_is_shown_now_and_then_and_kept_at_its_end():
    lines = Lines()
    shown = [lines.feed(b"\r%d%%" % state, state / 100) for state in range(100)] + [lines.feed(b"\r\n", 1)]
    assert 2 <= len([text for text in shown if text]) <= 5
    tail = Tail()
    tail.add("".join(shown))
    assert tail.text == "99%\n"


def test_a_huge_line_comes_in_pieces():
    lines = Lines()
    out = [lines.feed(b"x" * 1_000, 0) for _ in range(100)]
    assert max(map(len, out)) <= shell.LINE_CHARS_MAX + 1_000
    assert len("".join(out)) > 90_000


@given(parts=st.lists(st.text(alphabet="ab\r\n", max_size=20)))
def test_the_tail_is_the_same_however_the_text_came(parts):
    whole, pieces = Tail(), Tail()
    whole.add("".join(parts))
    for part in parts:
        pieces.add(part)
    assert whole == pieces


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.1234, "123 ms"), (1.234, "1.23 s"), (59.6, "60 s"), (125.0, "2 min 5 s")]
)
def test_times_read_well(seconds, text):
    assert shell.duration(seconds) == text
