"""A store that only Runstone has written has no findings, whatever stands in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from runstone import commands as c
from runstone import events as e
from runstone.clock import SystemClock
from runstone.events import Draft
from runstone.store import Append, Entry, RunRow
from runstone.stores.sqlite import SqliteStore
from runstone.values import raw
from runstone.verify import checks
from tests.stores.making import Shop, append, asking, executing, fence, said, started
from tests.verify.conftest import Store

pytestmark = pytest.mark.anyio


def test_a_store_that_real_runs_have_made_is_as_promised(store: Store) -> None:
    assert store.lines() == []
    checked = store.checked
    assert checked is not None
    counts = store.sql(
        "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM threads), "
        "(SELECT count(*) FROM runs WHERE ended_at NOTNULL), (SELECT count(*) FROM runs WHERE ended_at ISNULL), "
        "(SELECT count(*) FROM messages), (SELECT count(*) FROM actions), (SELECT count(*) FROM state), "
        "(SELECT count(*) FROM approvals), (SELECT count(*) FROM steps), (SELECT sum(attempt) FROM runs), "
        "(SELECT count(*) FROM runs WHERE parent_run_id NOTNULL)"
    )[0]
    runs = (checked.events, checked.threads, checked.runs_ended, checked.runs_unfinished)
    rows = (checked.messages, checked.actions, checked.state, checked.approvals, checked.steps)
    assert (*runs, *rows, checked.attempts, checked.children) == counts
    assert checked.runs_unfinished == 4
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


WHOLE = b'[{"text":"whole","type":"text"}]'


def completed_message(message_id: str, length: int) -> e.MessageCompleted:
    return e.MessageCompleted(message_id=message_id, status="completed", length=length)


def drafts(run: RunRow, *data: e.Data) -> list[Draft]:
    return [Draft(data=one, run_id=run.run_id, attempt=run.attempt) for one in data]


async def test_at_every_moment_of_three_attempts_the_store_is_as_promised(store_url: str) -> None:
    """Lost and let go of, with a child, an open approval and a step; looked at between any two commits."""
    opened = SqliteStore(store_url, SystemClock())
    await opened.open()
    store = Store(Path(store_url.removeprefix("sqlite:///")))
    try:
        await _three_attempts(Shop(opened), store)
    finally:
        await opened.close()
    assert store.lines() == []
    assert store.checked is not None
    assert (store.checked.runs_ended, store.checked.attempts, store.checked.steps) == (2, 5, 1)


async def _three_attempts(shop: Shop, store: Store) -> None:
    async def commit(entry: Entry) -> Any:
        outcome = await shop.ask(entry)
        assert store.lines() == []
        return outcome

    root = await shop.running(await shop.thread())
    await commit(append(root, started("msg_1"), said("msg_1", "whole"), completed_message("msg_1", 5), content=WHOLE))
    await commit(append(root, started("msg_2"), said("msg_2", "half"), executing("act_1")))
    step = e.StepCompleted(key="a \0 b", output=raw(1), inner=("msg_1",))
    await commit(append(root, step))
    new = c.NewChild(agent="agent", input=raw(None), key=None, max_attempts=3, timeout_s=60)
    child = await commit(c.call_agent(root, 1, new, child=None, reason="lost"))
    await commit(Append(child.run_id, 1, 1, drafts(child, executing("act_2"))))
    await commit(c.bury("worker", 1))
    first = root
    (root,) = await shop.claim(worker="second")
    assert root.attempt == 2
    assert store.lines() == []
    # whoever was overtaken tries to go on; what verify would find of it, were it let
    await shop.outcomes(append(first, started("msg_late")), c.end_run(first.run_id, c.Cancelled(), fence(first)))
    await shop.outcomes(Append(child.run_id, 1, 1, drafts(child, started("msg_later"))))
    assert store.lines() == []
    child = await commit(c.call_agent(root, 2, new, child=child.run_id, reason="lost"))
    retried = e.ToolExecuting(action_id="act_3", tool="tool", input=raw(None), executor="server", retry_of="act_2")
    await commit(Append(child.run_id, 2, 2, drafts(child, retried, asking("apr_1"))))
    await commit(c.release_runs("second"))
    assert await shop.claim(worker="third") == []  # its child waits for a person, and so does it
    await commit(c.resolve_approval("alice", "apr_1", c.Answer(decision="approved")))
    await shop.outcomes(c.resolve_approval("alice", "apr_1", c.Answer(decision="denied")))
    (root,) = await shop.claim(worker="third")
    assert (root.attempt, root.lost) == (3, 1)
    await commit(c.cancel_run("alice", root.run_id, None))
    await commit(c.end_run(root.run_id, c.Completed(raw("done")), fence(root)))
    await shop.outcomes(append(root, started("msg_last")), c.end_run(root.run_id, c.Cancelled(), fence(root)))


async def test_a_run_may_be_let_go_of_more_often_than_it_may_be_lost(store_url: str) -> None:
    opened = SqliteStore(store_url, SystemClock())
    await opened.open()
    store = Store(Path(store_url.removeprefix("sqlite:///")))
    shop = Shop(opened)
    run = await shop.running()
    try:
        for number in range(run.max_attempts + 1):
            await shop.ask(c.release_runs("worker" if number == 0 else f"wrk_{number}"))
            found = await shop.claim(worker=f"wrk_{number + 1}")
            assert store.lines() == []
            assert [row.attempt for row in found] == [number + 2]
    finally:
        await opened.close()
