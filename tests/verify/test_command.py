"""`runstone verify`: what it says, and what it exits with."""

from __future__ import annotations

import itertools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from runstone.cli import app
from runstone.clock import SystemClock
from tests.verify.conftest import Store

TIMEOUT_S = 60
TABLES = ("threads", "runs", "messages", "actions", "approvals", "steps")


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def command(*arguments: str, **environment: str) -> Done:
    """The command in this process, which saves the second that a new one needs."""
    done = CliRunner().invoke(app, ["verify", *arguments], env=environment)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return Done(done.exit_code, done.stdout, done.stderr)


def process(*arguments: str) -> Done:
    """The command as people call it."""
    command = [sys.executable, "-m", "runstone", "verify", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    return Done(done.returncode, done.stdout, done.stderr)


def test_a_healthy_store_exits_with_0_and_says_what_was_checked(store: Store) -> None:
    done = process("--store", store.url)
    assert done.returncode == 0, done.stderr
    events = store.sql("SELECT count(*) FROM events")[0][0]
    runs = store.sql("SELECT count(*) FROM runs WHERE ended_at NOTNULL")[0][0]
    assert f"order      {events} events: pos without a gap, times that never fall" in done.stdout
    assert f"runs       {runs} ended, each once and with nothing after it; 4 unfinished" in done.stdout
    assert "attempts   " in done.stdout
    assert "children   " in done.stdout
    rows = [f"{store.sql(f'SELECT count(*) FROM {table}')[0][0]} {table}" for table in TABLES]
    assert f"rows       equal to the fold of the log: {', '.join(rows)}, 2 state keys" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("All is as promised (")


def test_the_store_may_be_named_by_the_environment(store: Store) -> None:
    assert command(RUNSTONE_STORE=store.url).returncode == 0


def test_a_damaged_store_exits_with_1_and_each_finding_is_a_line(store: Store) -> None:
    thread, seq, pos, run = store.event("custom")
    store.change("DELETE FROM events WHERE pos = ?", pos)
    store.change("UPDATE state SET value = ? WHERE key = 'plan'", b'"\x1b[31m two\nlines"')
    done = command("--store", store.url)
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    assert f"seq: {thread} seq {seq + 1} pos {pos + 1} {run}: expected seq {seq} here" in lines
    assert "\x1b" not in done.stdout
    assert len([line for line in lines if line.startswith("rows: ")]) == 1
    assert lines[-1].startswith("3 findings (")


def test_json_is_one_object_a_line_with_the_findings_and_the_counts(store: Store) -> None:
    thread, seq, pos, run = store.event("agent_failed")
    store.change("UPDATE events SET payload = ? WHERE pos = ?", b"{", pos)
    done = command("--store", store.url, "--json")
    assert done.returncode == 1
    *findings, last = [json.loads(line) for line in done.stdout.splitlines()]
    first = findings[0]["finding"]
    where = {"check": "payload", "thread_id": thread, "seq": seq, "pos": pos, "run_id": run}
    assert {name: first[name] for name in where} == where
    assert last["checked"]["findings"] == len(findings)
    assert last["checked"]["events"] == store.sql("SELECT count(*) FROM events")[0][0]
    assert last["seconds"] >= 0


def test_at_most_100_findings_are_shown_and_all_are_counted(store: Store) -> None:
    store.sql("UPDATE events SET user_id = 'mallory'")
    events = store.sql("SELECT count(*) FROM events")[0][0]
    assert events > 100
    done = command("--store", store.url)
    assert done.returncode == 1
    assert len([line for line in done.stdout.splitlines() if line.startswith("owner: ")]) == 100
    assert f"… and {events - 100} more findings" in done.stdout
    assert f"{events} findings (" in done.stdout


def test_a_store_that_does_not_exist_exits_with_2_and_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "none" / "runs.db"
    done = process("--store", f"sqlite:///{path}")
    assert done.returncode == 2
    assert f"There is no store at {path}." in done.stderr
    assert not path.parent.exists()


def test_what_is_no_store_url_exits_with_2() -> None:
    done = command("--store", "postgresql://somewhere")
    assert done.returncode == 2
    assert "is not a store" in done.stderr


def test_a_newer_schema_is_refused_with_a_remedy(store: Store) -> None:
    store.change("INSERT INTO migrations (version, name, checksum) VALUES (99, 'future', 'x')")
    done = command("--store", store.url)
    assert done.returncode == 1
    assert "The store has schema 99 (future); this version knows up to 2." in done.stderr
    assert "Install that version or a newer one." in done.stderr


def test_a_file_without_a_schema_is_refused_with_a_remedy(tmp_path: Path) -> None:
    (tmp_path / "runs.db").touch()
    done = command("--store", f"sqlite:///{tmp_path}/runs.db")
    assert done.returncode == 1
    assert "runstone db upgrade" in done.stderr


def test_a_file_that_is_no_database_is_refused_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "runs.db").write_text("not a database, but long enough to have a header " * 10)
    done = command("--store", f"sqlite:///{tmp_path}/runs.db")
    assert done.returncode == 1
    assert "file is not a database" in done.stderr
    assert "Traceback" not in done.stderr


def _fill_many(store: Store) -> None:
    """A table so large that a check of it looks at the clock more than once."""
    store.sql("CREATE TABLE many (x)")
    numbers = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000)"
    store.sql(f"INSERT INTO many {numbers} SELECT i FROM n")


def test_a_check_that_would_hold_the_file_too_long_is_left_out_and_said_so(store: Store) -> None:
    done = command("--store", store.url, "--hold-s", "0.0000001", "--json")
    last = json.loads(done.stdout.splitlines()[-1])["checked"]
    # what is over before the first look at the clock is not left out
    assert len(last["structure"]) + len(last["left_out"]) == 24 + 1
    _fill_many(store)
    done = command("--store", store.url, "--hold-s", "0.0000001")
    assert "left out   quick_check of many: it would hold the file longer than 1e-07 s" in done.stdout
    assert "left out" not in command("--store", store.url, "--hold-s", "0").stdout


def test_on_a_terminal_a_bar_shows_how_far_it_is(store: Store) -> None:
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "runstone", "verify", "--store", store.url],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:  # how a terminal ends on Linux
        pass
    os.close(ours)
    out, _ = running.communicate(timeout=TIMEOUT_S)
    assert running.returncode == 0
    assert "All is as promised" in out
    events = store.sql("SELECT count(*) FROM events")[0][0]
    assert re.search(rf"events .*{events}/{events}", shown.decode(), re.DOTALL)


@pytest.mark.parametrize(("mode", "bound_s"), [("wal", "5"), ("delete", "0.5")])
def test_where_commits_wait_for_readers_a_check_holds_the_file_for_less(
    store: Store, monkeypatch: pytest.MonkeyPatch, mode: str, bound_s: str
) -> None:
    store.sql(f"PRAGMA journal_mode = {mode}")
    _fill_many(store)
    ticks = itertools.count(0.0, float(bound_s) / 2 + 0.01)  # each look at the clock finds half of the bound gone
    monkeypatch.setattr(SystemClock, "monotonic", lambda _clock: next(ticks))
    out = command("--store", f"{store.url}?journal_mode={mode}").stdout
    assert f"left out   quick_check of many: it would hold the file longer than {bound_s} s" in out
