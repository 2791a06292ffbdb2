"""The feed: a user's threads in the order of their newest changes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
import pytest
from msgspec import UNSET

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.limits import MIB
from runstone.store import RunRow
from runstone.views import Changed, FeedPage, ThreadRef
from tests.stores.making import Shop, append, asking, query, said, started, usage
from tests.stores.promises.base import Promises


async def read(shop: Shop, after: int = 0, limit: int = 100, deleted_after: int = 0, user: str = "alice") -> FeedPage:
    return await shop.store.rows.feed(user, after=after, limit=limit, deleted_after=deleted_after)


async def renamed(shop: Shop, thread: ThreadRef, title: str = "new") -> None:
    await shop.ask(c.update_thread(thread.user_id, thread.thread_id, title=title, metadata=UNSET))


CHILD = c.NewChild(agent="child", input=values.raw(None), key=None, max_attempts=3, timeout_s=60)

Change = Callable[[Shop, RunRow], Awaitable[object]]

MOVES: dict[str, Change] = {
    "renamed": lambda shop, run: renamed(shop, run.thread),
    "run queued": lambda shop, run: shop.queued(run.thread),
    "message completed": lambda shop, run: shop.commit(
        append(
            run,
            started("msg_2"),
            e.MessageCompleted(message_id="msg_2", status="completed", length=0),
            content=b"[]",
        )
    ),
    "approval requested": lambda shop, run: shop.commit(append(run, asking("apr_1"))),
    "cancel requested": lambda shop, run: shop.ask(c.cancel_run("alice", run.run_id, None)),
    "run ended": lambda shop, run: shop.end(run),
    "child started": lambda shop, run: shop.ask(c.call_agent(run, run.attempt, CHILD, child=None, reason="lost")),
    "deleted": lambda shop, run: shop.ask(c.delete_thread("alice", run.thread_id)),
}
STAYS: dict[str, Change] = {
    "token": lambda shop, run: shop.commit(append(run, said("msg_1", "x"))),
    "usage": lambda shop, run: shop.commit(append(run, usage())),
    "beat": lambda shop, run: shop.ask(c.beat("worker")),
}


class Feeds(Promises):
    async def test_a_feed_read_page_by_page_has_each_thread_once_where_its_newest_change_is(self, shop: Shop) -> None:
        threads = [await shop.thread() for _ in range(7)]
        for number in (3, 0, 3, 5):
            await renamed(shop, threads[number])
        expected = [threads[number].thread_id for number in (1, 2, 4, 6, 0, 3, 5)]
        found: list[Changed] = []
        after = 0
        while items := (page := await read(shop, after, limit=2)).items:
            assert len(items) <= 2
            assert page.head == 11
            found += items
            after = page.last
        assert [item.thread_id for item in found] == expected
        assert [item.pos for item in found] == [2, 3, 5, 7, 9, 10, 11]
        assert after == page.head

    async def test_it_goes_on_right_after_the_cursor(self, shop: Shop) -> None:
        threads = [await shop.thread() for _ in range(4)]
        positions = [item.pos for item in (await read(shop)).items]
        for number, pos in enumerate(positions):
            after = [item.thread_id for item in (await read(shop, pos)).items]
            assert after == [thread.thread_id for thread in threads[number + 1 :]]
        assert (await read(shop, positions[-1])).last == positions[-1]

    async def test_what_changes_while_it_is_read_comes_again_and_nothing_is_missed(self, shop: Shop) -> None:
        threads = [await shop.thread() for _ in range(10)]
        seen: dict[str, str | None] = {}
        after = 0
        for round_ in range(40):
            page = await read(shop, after, limit=3)
            for item in page.items:
                assert item.thread is not None
                seen[item.thread_id] = item.thread.title
            after = page.last
            if round_ < 20:
                await renamed(shop, threads[round_ * 7 % 10], f"title {round_}")
        listed = (await shop.store.rows.threads("alice", query())).items
        assert seen == {thread.thread_id: thread.title for thread in listed}

    async def test_a_thread_in_it_is_the_one_that_a_look_at_it_gives(self, shop: Shop) -> None:
        run = await shop.running(message="hello", metadata=None)
        await shop.thread(title="two", metadata=values.raw({"a": [1]}))
        await shop.commit(append(run, started("msg_1"), said("msg_1", "so far")))
        for item in (await read(shop)).items:
            assert item.thread is not None
            assert item.thread == await shop.store.rows.thread("alice", item.thread_id)
        busy = (await read(shop)).items[0].thread
        assert busy is not None
        assert busy.status == "running"
        assert busy.last_message is not None
        assert busy.last_message.content == "so far"

    @pytest.mark.parametrize("name", MOVES)
    async def test_every_change_that_a_list_shows_moves_its_thread(self, shop: Shop, name: str) -> None:
        run = await shop.running()
        await shop.thread()
        before = await read(shop)
        await MOVES[name](shop, run)
        page = await read(shop, before.head)
        assert [item.thread_id for item in page.items] == [run.thread_id]
        assert (page.items[0].thread is None) == (name == "deleted")
        assert page.head == page.last > before.head

    @pytest.mark.parametrize("name", STAYS)
    async def test_what_no_list_shows_moves_nothing(self, shop: Shop, name: str) -> None:
        run = await shop.running()
        await shop.commit(append(run, started("msg_1")))
        before = await read(shop)
        await STAYS[name](shop, run)
        after = await read(shop, before.head)
        assert (after.items, after.head) == ([], before.head)

    async def test_a_deleted_thread_is_said_to_who_may_have_it_and_not_to_who_begins_anew(self, shop: Shop) -> None:
        kept, gone = await shop.thread(), await shop.thread()
        had = await read(shop)
        await shop.ask(c.delete_thread("alice", gone.thread_id))
        assert (await read(shop, had.head)).items == [Changed(3, gone.thread_id, None)]
        head = (await read(shop)).head
        anew = await read(shop, 0, deleted_after=head)
        assert [item.thread_id for item in anew.items] == [kept.thread_id]
        assert anew.last == anew.head == head, "what is not worth a word is read past all the same"
        await shop.ask(c.delete_thread("alice", kept.thread_id))
        assert (await read(shop, 0, deleted_after=head)).items == [Changed(4, kept.thread_id, None)]

    async def test_a_user_is_shown_no_change_of_anybody_elses(self, shop: Shop) -> None:
        mine, theirs = await shop.thread(), await shop.thread("bob")
        await renamed(shop, theirs)
        assert [item.thread_id for item in (await read(shop)).items] == [mine.thread_id]
        assert (await read(shop)).head == 1
        assert [item.thread_id for item in (await read(shop, user="bob")).items] == [theirs.thread_id]
        await shop.ask(c.delete_thread("bob", theirs.thread_id))
        assert await shop.store.feed_heads(["alice", "bob", "carol"]) == [1, 4, 0]
        for nobody in ("carol", "", "ALICE"):
            assert await read(shop, user=nobody) == FeedPage([], 0, 0)

    async def test_the_first_page_of_the_list_says_where_the_feed_goes_on_and_later_ones_do_not(
        self, shop: Shop
    ) -> None:
        assert (await shop.store.rows.threads("alice", query())).feed_head == 0
        for _ in range(3):
            await shop.thread()
        await shop.thread("bob")
        first = await shop.store.rows.threads("alice", query(limit=2, descending=True))
        assert first.feed_head == 3
        later = msgspec.structs.replace(query(limit=2, descending=True), cursor=first.next_cursor)
        assert (await shop.store.rows.threads("alice", later)).feed_head is None

    async def test_a_page_is_bounded_in_bytes_too(self, shop: Shop) -> None:
        metadata = values.raw({"filler": "x" * 100_000})
        for _ in range(30):
            await shop.thread(metadata=metadata)
        sizes = []
        after = 0
        while items := (page := await read(shop, after)).items:
            sizes.append(len(items))
            after = page.last
        assert sum(sizes) == 30
        assert max(sizes) <= MIB // 100_000 + 1
