"""A store from before a column holds, once it is upgraded, what it would hold had the column always been there."""

from __future__ import annotations

from pathlib import Path

import pytest
from msgspec import UNSET

from runstone import commands as c
from runstone.clock import SystemClock
from runstone.stores.sqlite import maintenance
from runstone.views import FeedPage
from tests.stores.making import Shop, append, said, started
from tests.stores.sqlite_database import SqliteDatabase

pytestmark = pytest.mark.anyio


async def feed(shop: Shop) -> FeedPage:
    return await shop.store.rows.feed("alice", after=0, limit=100, deleted_after=0)


async def test_threads_from_before_the_feed_are_in_it_where_their_newest_changes_are(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path)
    store = database.store(SystemClock())
    await store.open()
    shop = Shop(store)
    threads = [await shop.thread(title=str(number)) for number in range(5)]
    await shop.ask(c.update_thread("alice", threads[1].thread_id, title="new", metadata=UNSET))
    run = await shop.running(threads[0])
    await shop.ask(c.delete_thread("alice", threads[3].thread_id))
    await shop.end(run)
    talking = await shop.running(threads[2])
    await shop.commit(append(talking, started("msg_1"), said("msg_1", "so far")))
    before = await feed(shop)
    assert [item.thread_id for item in before.items] == [threads[number].thread_id for number in (4, 1, 3, 0, 2)]
    await store.close()
    maintenance.move(database.url, 1)
    maintenance.move(database.url, None)
    store = database.store(SystemClock())
    await store.open()
    after = await feed(Shop(store))
    await store.close()
    assert after == before
