"""A store that only Runstone has written has no findings, whatever stands in it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from runstone import commands as c
from runstone import events as e
from runstone.clock import SystemClock
from runstone.errors import RunstoneError
from runstone.events import Draft
from runstone.messages import MessageFold
from runstone.store import Append, Command, Decision, Entry, Need
from runstone.stores.sqlite import SqliteStore
from runstone.values import raw
from runstone.verify import checks
from tests.verify.conftest import Store

pytestmark = pytest.mark.anyio


def test_a_store_that_real_runs_have_made_is_as_promised(store: Store) -> None:
    assert store.lines() == []
    checked = store.checked
    assert checked is not None
    counts = store.sql(
        "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM threads), "
        "(SELECT count(*) FROM runs WHERE ended_at NOTNULL), (SELECT count(*) FROM runs WHERE ended_at ISNULL), "
        "(SELECT count(*) FROM messages), (SELECT count(*) FROM actions), (SELECT count(*) FROM state)"
    )[0]
    seen = (checked.events, checked.threads, checked.runs_ended, checked.runs_unfinished)
    assert (*seen, checked.messages, checked.actions, checked.state) == counts
    assert checked.runs_unfinished == 2
    assert checked.left_out == []


def test_what_is_read_in_small_pages_is_checked_just_the_same(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "EVENTS_A_READ", 3)
    monkeypatch.setattr(checks, "PLACES_A_READ", 3)
    assert store.lines() == []
    thread, seq, pos, _ = store.event("custom")
    store.change("DELETE FROM events WHERE pos = ?", pos)
    lines = store.lines()
    assert len(lines) == 2
    assert all(f"{thread} seq {seq + 1} pos {pos + 1}" in line for line in lines)


def test_checking_changes_no_byte_of_the_file(healthy: Path, store: Store) -> None:
    before = store.path.read_bytes()
    store.findings()
    assert store.path.read_bytes() == before == healthy.read_bytes()
    assert not store.path.with_name("runs.db.lock").exists()


def test_a_log_that_is_not_in_the_file_yet_is_read_and_left_where_it_is(store: Store, tmp_path: Path) -> None:
    """After a kill the last commits stand beside the file, in the write-ahead log."""
    import apsw

    writing = apsw.Connection(str(store.path))
    writing.execute("PRAGMA wal_autocheckpoint = 0")
    writing.execute("UPDATE threads SET title = 'not what the events say' WHERE key = 'thread-1'")
    killed = Store(tmp_path / "killed" / "runs.db")
    killed.path.parent.mkdir()
    for end in ("", "-wal"):
        shutil.copy(f"{store.path}{end}", f"{killed.path}{end}")
    writing.close()
    log = Path(f"{killed.path}-wal").read_bytes()
    assert log
    assert len(killed.lines()) == 1
    assert Path(f"{killed.path}-wal").read_bytes() == log


async def test_an_empty_store_is_as_promised(store_url: str) -> None:
    opened = SqliteStore(store_url, SystemClock())
    await opened.open()
    await opened.close()
    store = Store(Path(store_url.removeprefix("sqlite:///")))
    assert store.lines() == []
    assert store.checked is not None
    assert store.checked.events == 0
    assert store.checked.generation


async def test_a_store_in_delete_mode_is_as_promised(store: Store) -> None:
    store.sql("PRAGMA journal_mode = delete")
    store.url += "?journal_mode=delete"
    assert store.lines() == []


async def _commit(store: SqliteStore, *entries: Entry) -> Sequence[object]:
    outcomes = (await store.commit(entries)).outcomes
    for outcome in outcomes:
        assert not isinstance(outcome, RunstoneError), outcome
    return outcomes


async def test_attempts_that_were_superseded_are_as_promised(store_url: str) -> None:
    """The words of a lost attempt, whole and half, its action, and the run that another attempt ends."""
    opened = SqliteStore(store_url, SystemClock())
    await opened.open()
    new = c.NewRun(agent="a", input=raw(1), message=None, on_crash="resume", max_attempts=3, timeout_s=9)
    (made,) = await _commit(opened, c.start_run("alice", new))
    assert isinstance(made, c.Made)
    await _commit(opened, c.claim_runs(frozenset({"a"}), 1, "wrk_1"))
    run = await opened.run_row(made.id)
    assert run is not None

    def said(message_id: str, attempt: int, *, whole: bool) -> list[Draft]:
        delta = e.MessageDelta(message_id=message_id, part=0, offset=0, delta="hi")
        drafts = [Draft(data=e.MessageStarted(message_id=message_id, role="assistant")), Draft(data=delta)]
        if whole:
            content = MessageFold([delta]).encoded()
            done = e.MessageCompleted(message_id=message_id, status="completed", length=2)
            drafts.append(Draft(data=done, content=content))
        for draft in drafts:
            draft.run_id, draft.attempt = made.id, attempt
        return drafts

    await _commit(opened, Append(made.id, 1, said("msg_whole", 1, whole=True) + said("msg_half", 1, whole=False)))
    superseded = e.AttemptSuperseded(attempt=1, reason="lost", messages=("msg_whole", "msg_half"))
    again = [
        Draft(data=superseded, run_id=made.id),
        Draft(data=e.AgentStarted(agent="a", worker="wrk_2"), run_id=made.id, attempt=2),
    ]
    decided = Decision(appends=[(run.thread, again)])
    await _commit(opened, Command(need=Need(), decide=lambda _facts: decided))
    await _commit(opened, Append(made.id, 2, said("msg_new", 2, whole=True)))

    def copy() -> Store:
        return Store(Path(store_url.removeprefix("sqlite:///")))

    assert copy().lines() == []  # beside the store that is open, in the middle of the attempt
    await _commit(opened, c.end_run(made.id, c.Completed(raw("hi")), attempt=2))
    await opened.close()
    store = copy()
    assert store.lines() == []
    store.change("UPDATE messages SET status = 'completed' WHERE message_id = 'msg_whole'")
    assert "messages msg_whole: status is 'completed', expected 'superseded'" in store.lines()[0]
    store.change("UPDATE messages SET status = 'superseded' WHERE message_id = 'msg_new'")
    assert len(store.lines()) == 2
    store.change("UPDATE messages SET status = 'streaming' WHERE message_id = 'msg_half'")
    assert len(store.lines()) == 3
