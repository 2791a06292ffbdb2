"""Numbers and times go up by one and never down."""

from __future__ import annotations

from msgspec import UNSET

from runstone import commands as c
from tests.stores.dump import Database
from tests.stores.making import (
    Shop,
    append,
    custom,
)
from tests.stores.promises.base import Promises
from tests.support.clocks import ManualClock


class Order(Promises):
    async def test_seq_and_pos_have_no_gap_and_follow_the_order_of_commit(self, shop: Shop, database: Database) -> None:
        one, two = await shop.thread(), await shop.thread("bob")
        a, b = await shop.running(one), await shop.running(two, "bob")
        await shop.commit(append(a, custom("1")), append(b, custom("2")), append(a, custom("3"), custom("4")))
        await shop.commit(append(b, custom("5")))
        said_by = [(row.thread_id, row.seq) for row in database.dump().events if row.type == "custom"]
        assert said_by == [
            (one.thread_id, 4),
            (two.thread_id, 4),
            (one.thread_id, 5),
            (one.thread_id, 6),
            (two.thread_id, 5),
        ]

    async def test_commit_tells_every_new_event_once_and_in_order(self, shop: Shop) -> None:
        thread = await shop.thread()
        run = await shop.running(thread)
        before = len(await shop.events(thread))
        committed = await shop.commit(append(run, *[custom(str(n)) for n in range(150)]), append(run, custom()))
        assert list(committed.events) == [thread]
        assert [event.seq for event in committed.events[thread]] == list(range(before + 1, before + 152))
        assert committed.seconds > 0

    async def test_times_never_fall_even_if_the_clock_goes_back(
        self, shop: Shop, clock: ManualClock, database: Database
    ) -> None:
        thread = await shop.thread()
        clock.time_us -= 3_600_000_000
        await shop.ask(c.update_thread("alice", thread.thread_id, title="later", metadata=UNSET))
        first, second = database.dump().events
        assert second.time == first.time
        await shop.store.close()
        reopened = database.store(clock)
        await reopened.open()
        await Shop(reopened).ask(c.update_thread("alice", thread.thread_id, title="last", metadata=UNSET))
        assert database.dump().events[-1].time == first.time
        clock.time_us = first.time + 7
        await Shop(reopened).ask(c.update_thread("alice", thread.thread_id, title="on", metadata=UNSET))
        assert database.dump().events[-1].time == first.time + 7
        await reopened.close()
