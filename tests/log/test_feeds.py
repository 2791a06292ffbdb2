"""Following a user's threads: nothing falls between subscribing and reading, and a busy moment is read once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec import UNSET

from runstone import commands as c
from runstone.brokers.local import LocalBroker
from runstone.clock import SystemClock
from runstone.errors import CursorAhead, StoreFailed
from runstone.limits import FEED_ROWS_MAX
from runstone.log import FeedTail, Log
from runstone.log import feed as feed_module
from runstone.log import log as log_module
from runstone.log.feed import Feeds
from runstone.metrics import Metrics
from runstone.stores.sqlite import SqliteStore
from runstone.views import FeedPage
from tests.log.support import Doubling, Lossy, draft, opened, soon
from tests.stores.making import custom

pytestmark = pytest.mark.anyio


async def created(log: Log, user: str = "alice") -> str:
    made: c.Made = await log.append(c.create_thread(user, c.NewThread()))
    return made.id


async def renamed(log: Log, thread_id: str, title: str) -> None:
    await log.append(c.update_thread("alice", thread_id, title=title, metadata=UNSET))


async def read_all(tail: FeedTail) -> list[str]:
    found = []
    while tail.behind:
        found += [item.thread_id for item in (await tail.read()).items]
    return found


class Racing(SqliteStore):
    """A store in which a thread is made right after the head was read, before the reader hears of it."""

    log: Log | None = None
    made = ""

    async def feed_heads(self, user_ids: Sequence[str]) -> list[int]:
        heads = await super().feed_heads(user_ids)
        if self.log is not None and not self.made:
            self.made = await created(self.log)
        return heads


async def test_what_is_committed_while_the_head_is_read_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "POLL_S", 3600)  # which would find it, a second late
    store = Racing(f"sqlite:///{tmp_path}/runs.db", SystemClock())
    log = Log(store, LocalBroker(), SystemClock(), Metrics())
    await log.start()
    try:
        store.log = log
        async with log.feed("alice", after=None, wake=lambda: None) as tail:
            assert store.made
            assert await read_all(tail) == [store.made]
    finally:
        await log.stop()


async def test_without_hints_the_poll_wakes_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_module, "POLL_S", 0.05)
    async with opened(tmp_path, Lossy()) as place:
        woken = asyncio.Event()
        async with place.log.feed("alice", after=None, wake=woken.set) as tail:
            thread_id = await created(place.log)
            async with asyncio.timeout(10):
                await woken.wait()
            assert await read_all(tail) == [thread_id]


async def test_a_reader_is_woken_by_its_users_threads_only_and_not_by_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_module, "POLL_S", 3600)
    monkeypatch.setattr(feed_module, "FEED_PAUSE_S", 0)
    async with opened(tmp_path) as place:
        row, box = await place.run()
        woken = asyncio.Event()
        async with place.log.feed("alice", after=None, wake=woken.set) as tail:
            await read_all(tail)
            await asyncio.sleep(0)  # the pause, which is none
            woken.clear()
            await created(place.log, "bob")
            await box.append(draft(row, custom()), draft(row, custom()))
            assert not woken.is_set()
            assert not tail.behind
            thread_id = await created(place.log)
            for change in (
                None,
                c.update_thread("alice", thread_id, title="new", metadata=UNSET),
                c.delete_thread("alice", thread_id),
            ):
                if change is not None:
                    await place.log.append(change)
                assert woken.is_set(), change
                assert await read_all(tail) == [thread_id]
                await asyncio.sleep(0)
                woken.clear()


async def test_changes_of_a_busy_moment_are_read_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path, Doubling()) as place:
        thread_id = await created(place.log)
        wakes = 0

        def wake() -> None:
            nonlocal wakes
            wakes += 1

        monkeypatch.setattr(feed_module, "FEED_PAUSE_S", 1.0)
        async with place.log.feed("alice", after=None, wake=wake) as tail:
            await read_all(tail)
            wakes = 0
            for number in range(10):
                await renamed(place.log, thread_id, str(number))
            assert wakes == 0, "in the pause nobody is woken"
            await soon(lambda: tail.behind, turns=1_000_000)
            assert wakes == 1
            (item,) = (await tail.read()).items
            assert item.thread is not None
            assert item.thread.title == "9"
            assert not tail.behind


async def test_a_reader_that_is_far_behind_reads_page_after_page_without_a_pause(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        made = [await created(place.log) for _ in range(2 * FEED_ROWS_MAX + 1)]
        async with place.log.feed("alice", after=None, wake=lambda: None) as tail:
            pages = []
            while tail.behind:
                pages.append([item.thread_id for item in (await tail.read()).items])
        assert [thread_id for page in pages for thread_id in page] == made
        assert [len(page) for page in pages] == [FEED_ROWS_MAX, FEED_ROWS_MAX, 1]


async def test_a_hint_during_a_read_is_not_lost_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        first = await created(place.log)
        made: list[str] = []

        async def read(user_id: str, after: int, deleted_after: int) -> FeedPage:
            page = await place.log.rows.feed(user_id, after=after, limit=FEED_ROWS_MAX, deleted_after=deleted_after)
            if not made:
                made.append(await created(place.log))
                feeds.hinted(user_id)
            return page

        feeds = Feeds(read, place.store.feed_heads)
        tail = await feeds.follow("alice", after=None, wake=lambda: None)
        assert [item.thread_id for item in (await tail.read()).items] == [first]
        await soon(lambda: tail.behind, turns=1_000_000)
        assert await read_all(tail) == made
        feeds.leave(tail)


async def test_a_cursor_beyond_the_head_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        await created(place.log, "bob")
        with pytest.raises(CursorAhead):
            await place.log.follow_feed("alice", after=1, wake=lambda: pytest.fail("it is not followed"))
        await created(place.log)


async def test_readers_are_woken_to_be_told_that_the_store_failed(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        woken = asyncio.Event()
        async with place.log.feed("alice", after=None, wake=woken.set) as tail:
            place.store.faults.append(StoreFailed("the disk is full"))
            with pytest.raises(StoreFailed):
                await created(place.log)
            assert woken.is_set()
            with pytest.raises(StoreFailed):
                await tail.read()
            with pytest.raises(StoreFailed):
                await place.log.follow_feed("alice", after=None, wake=woken.set)
