"""Pages of events are bounded and see only what is committed."""

from __future__ import annotations

import asyncio
import threading

from runstone import commands as c
from runstone import failpoints
from runstone.views import ThreadRef
from tests.stores.making import (
    Shop,
    append,
    custom,
)
from tests.stores.promises.base import Promises

MIB = 1 << 20


class Pages(Promises):
    async def test_pages_are_bounded_in_rows_and_go_both_ways(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.commit(append(run, *[custom(str(n)) for n in range(20)]))
        head = (await shop.store.heads([run.thread]))[0]
        assert head == 23
        read = shop.store.events
        page = await read(run.thread, after=3, limit=5, bytes_max=MIB)
        assert ([event.seq for event in page.events], page.last) == ([4, 5, 6, 7, 8], 8)
        page = await read(run.thread, after=head - 1, limit=5, bytes_max=MIB)
        assert ([event.seq for event in page.events], page.last) == ([head], head)
        page = await read(run.thread, after=head, limit=5, bytes_max=MIB)
        assert (list(page.events), page.last) == ([], head)
        page = await shop.store.events_before(run.thread, before=9, limit=4, bytes_max=MIB)
        assert ([event.seq for event in page.events], page.last) == ([5, 6, 7, 8], 8)
        page = await shop.store.events_before(run.thread, before=3, limit=4, bytes_max=MIB)
        assert [event.seq for event in page.events] == [1, 2]
        page = await shop.store.events_before(run.thread, before=1, limit=4, bytes_max=MIB)
        assert list(page.events) == []

    async def test_pages_are_bounded_in_bytes_but_always_move_on(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.commit(append(run, *[custom("big", "x" * 50_000) for _ in range(6)]))
        read = shop.store.events
        page = await read(run.thread, after=3, limit=100, bytes_max=120_000)
        assert [event.seq for event in page.events] == [4, 5, 6]
        page = await read(run.thread, after=3, limit=100, bytes_max=1)
        assert [event.seq for event in page.events] == [4]
        page = await shop.store.events_before(run.thread, before=10, limit=100, bytes_max=120_000)
        assert [event.seq for event in page.events] == [7, 8, 9]
        page = await shop.store.events_before(run.thread, before=10, limit=100, bytes_max=1)
        assert [event.seq for event in page.events] == [9]

    async def test_heads_are_zero_where_there_is_no_thread_of_that_user(self, shop: Shop) -> None:
        thread = await shop.thread()
        foreign, unknown = ThreadRef(thread.thread_id, "bob"), ThreadRef("thr_unknown", "alice")
        assert await shop.store.heads([foreign, thread, unknown]) == [0, 1, 0]
        assert await shop.store.heads([]) == []

    async def test_readers_see_nothing_of_a_commit_that_is_under_way(self, shop: Shop) -> None:
        run = await shop.running()
        before = await shop.store.heads([run.thread])
        reached, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            reached.set()
            go_on.wait(10)

        failpoints.arm("before_commit", hold)
        writing = asyncio.create_task(shop.commit(append(run, custom()), c.cancel_run("alice", run.run_id, None)))
        try:
            await asyncio.to_thread(reached.wait, 10)
            assert await shop.store.heads([run.thread]) == before
            assert await shop.store.to_stop([run.run_id]) == {}
        finally:
            go_on.set()
            failpoints.disarm_all()
        await writing
        assert await shop.store.heads([run.thread]) == [before[0] + 2]
