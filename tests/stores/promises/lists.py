"""Lists of resources, page by page."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.errors import (
    Invalid,
)
from runstone.limits import LIST_BYTES_MAX
from tests.stores.making import (
    Shop,
    append,
    completed,
    executing,
    query,
    said,
    started,
)
from tests.stores.promises.base import Promises
from tests.support.clocks import ManualClock


class Lists(Promises):
    @pytest.mark.parametrize("descending", [False, True])
    @pytest.mark.parametrize("what", ["threads", "runs", "messages", "actions"])
    async def test_a_list_read_page_by_page_has_everything_once(
        self, shop: Shop, clock: ManualClock, what: str, descending: bool
    ) -> None:
        thread = await shop.thread()
        run = await shop.running(thread)
        for number in range(7):
            clock.time_us += number % 2  # some at the same time
            await shop.queued(await shop.thread())
            await shop.commit(append(run, started(f"msg_{number}"), executing(f"act_{number}")))
        found: list[Any] = []
        asked = query(thread.thread_id if what in {"messages", "actions"} else None, 3, descending=descending)
        while True:
            page = await getattr(shop.store.rows, what)("alice", asked)
            assert 1 <= len(page.items) <= 3
            found += page.items
            if page.next_cursor is None:
                break
            asked = msgspec.structs.replace(asked, cursor=page.next_cursor)
        ids = [getattr(item, what[:-1] + "_id") for item in found]
        assert len(set(ids)) == len(ids) == (8 if what in {"threads", "runs"} else 7)
        order = {"threads": "updated_at", "runs": "created_at", "messages": "first_seq", "actions": "seq"}[what]
        moments = [getattr(item, order) for item in found]
        assert moments == sorted(moments, reverse=descending)

    async def test_what_did_not_change_while_a_list_was_read_is_in_it_once(
        self, shop: Shop, clock: ManualClock
    ) -> None:
        threads = []
        for _ in range(12):
            clock.time_us += 1
            threads.append(await shop.thread())
        seen: list[str] = []
        asked = query(limit=2, descending=True)
        moved: set[str] = set()
        while True:
            page = await shop.store.rows.threads("alice", asked)
            seen += [item.thread_id for item in page.items]
            if page.next_cursor is None:
                break
            asked = msgspec.structs.replace(asked, cursor=page.next_cursor)
            clock.time_us += 1
            await shop.thread()  # a new one
            mover = threads[len(moved)]
            moved.add(mover.thread_id)
            await shop.ask(c.update_thread("alice", mover.thread_id, title="moved", metadata=UNSET))
        still = [thread.thread_id for thread in threads if thread.thread_id not in moved]
        assert [item for item in seen if item in still] == still[::-1]
        assert len(seen) == len(set(seen))

    async def test_a_list_of_large_messages_comes_in_pages_bounded_in_bytes(self, shop: Shop) -> None:
        run = await shop.running()
        text = "x" * 400_000
        for number in range(12):
            name = f"msg_{number}"
            content = values.encode([{"type": "text", "text": text}])
            end = e.MessageCompleted(message_id=name, status="completed", length=len(text))
            await shop.commit(append(run, started(name), said(name, text), end, content=content))
        page = await shop.store.rows.messages("alice", query(run.thread_id))
        assert page.next_cursor is not None
        assert sum(len(message.content) for message in page.items) <= LIST_BYTES_MAX + len(text) + 1000
        rest = await shop.store.rows.messages("alice", query(run.thread_id, cursor=page.next_cursor))
        names = [message.message_id for message in (*page.items, *rest.items)]
        assert names == [f"msg_{number}" for number in range(12)]

    async def test_a_list_of_large_messages_that_still_stream_is_bounded_too(self, shop: Shop) -> None:
        run = await shop.running()
        text = "x" * 400_000
        for number in range(12):
            await shop.commit(append(run, started(f"msg_{number}"), said(f"msg_{number}", text)))
        page = await shop.store.rows.messages("alice", query(run.thread_id))
        assert page.next_cursor is not None
        assert sum(len(message.content) for message in page.items) <= LIST_BYTES_MAX + len(text) + 1000

    @pytest.mark.parametrize(
        "cursor", ["", "x", "bm90IGpzb24", "WzFd", "W3RydWUsMV0", "WyJhIiwiYiJd", "WzEsIlx1ZDgwMCJd", "ÿ"]
    )
    async def test_what_is_not_a_cursor_is_refused(self, shop: Shop, cursor: str) -> None:
        with pytest.raises(Invalid):
            await shop.store.rows.threads("alice", query(cursor=cursor))

    async def test_lists_filter(self, shop: Shop) -> None:
        rows = shop.store.rows
        thread = await shop.thread()
        done = await shop.running(thread, message="hello")
        await shop.commit(append(done, started("msg_a"), executing("act_1"), executing("act_2"), completed("act_2")))
        await shop.end(done)
        waiting = await shop.queued(await shop.thread(), agent="other")

        async def ids(listing: Awaitable[Any], name: str) -> list[str]:
            return [getattr(item, name) for item in (await listing).items]

        assert await ids(rows.runs("alice", query(status="completed")), "run_id") == [done.run_id]
        assert await ids(rows.runs("alice", query(agent="other")), "run_id") == [waiting]
        assert await ids(rows.runs("alice", query(thread.thread_id)), "run_id") == [done.run_id]
        assert await ids(rows.messages("alice", query(thread.thread_id, role="assistant")), "message_id") == ["msg_a"]
        assert len(await ids(rows.messages("alice", query(thread.thread_id, run_id=done.run_id)), "message_id")) == 2
        assert await ids(rows.messages("alice", query(thread.thread_id, status="streaming")), "message_id") == []
        actions = rows.actions("alice", query(thread.thread_id, status="success"))
        assert await ids(actions, "action_id") == ["act_2"]
        assert await ids(rows.actions("alice", query(thread.thread_id, before_seq=1)), "action_id") == []

    async def test_a_list_under_a_thread_says_the_head_it_was_read_at(self, shop: Shop) -> None:
        run = await shop.running()
        head = (await shop.store.heads([run.thread]))[0]
        assert (await shop.store.rows.messages("alice", query(run.thread_id))).head == head
        assert (await shop.store.rows.actions("alice", query(run.thread_id))).head == head
        assert (await shop.store.rows.state("alice", run.thread_id, private=False))[1] == head
        assert (await shop.store.rows.threads("alice", query())).head is None

    async def test_a_threads_status_is_that_of_its_unfinished_runs(self, shop: Shop) -> None:
        thread = await shop.thread()

        async def status() -> str:
            found = await shop.store.rows.thread("alice", thread.thread_id)
            assert found is not None
            return found.status

        assert await status() == "idle"
        run_id = await shop.queued(thread, message="hello " * 100)
        assert await status() == "queued"
        (run,) = await shop.claim()
        assert run.run_id == run_id
        await shop.queued(thread)
        assert await status() == "running"
        await shop.end(run)
        assert await status() == "queued"
        found = await shop.store.rows.thread("alice", thread.thread_id)
        assert found is not None
        assert found.last_message is not None
        assert found.last_message.content == ("hello " * 100)[:200]
        assert await shop.store.rows.statuses() == {"queued": 1}
