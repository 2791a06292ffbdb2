"""Opening and closing."""

from __future__ import annotations

import asyncio

from tests.stores.dump import Database
from tests.stores.making import (
    Shop,
    append,
    custom,
    said,
    started,
)
from tests.stores.promises.base import Promises
from tests.support.clocks import ManualClock

MIB = 1 << 20


class Life(Promises):
    async def test_what_was_committed_is_there_after_a_reopening(
        self, shop: Shop, database: Database, clock: ManualClock
    ) -> None:
        run = await shop.running(message="hello")
        await shop.commit(append(run, started("msg_1"), said("msg_1", "x")))
        before = [event.wire for event in await shop.events(run.thread)]
        generation = shop.store.generation
        await shop.store.close()
        await shop.store.close()
        store = database.store(clock)
        await store.open()
        assert store.generation == generation != ""
        assert [event.wire for event in await Shop(store).events(run.thread)] == before
        await store.close()

    async def test_closing_waits_for_reads_that_are_under_way(
        self, shop: Shop, database: Database, clock: ManualClock
    ) -> None:
        run = await shop.running()
        await shop.commit(append(run, *[custom("big", "x" * 20_000) for _ in range(300)]))
        reads = [
            asyncio.create_task(shop.store.events(run.thread, after=0, limit=1000, bytes_max=64 * MIB))
            for _ in range(8)
        ]
        await asyncio.sleep(0)
        for read in reads[::2]:
            read.cancel()  # whoever asked has gone, the read goes on
        await shop.store.close()
        await asyncio.gather(*reads, return_exceptions=True)
        store = database.store(clock)
        await store.open()  # the lock was let go of
        await store.close()

    async def test_closing_before_opening_is_safe(self, database: Database, clock: ManualClock) -> None:
        await database.store(clock).close()
