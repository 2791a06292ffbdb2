"""Commands decide on what is true in their own transaction."""

from __future__ import annotations

import pytest

from runstone import commands as c
from runstone import values
from runstone.errors import (
    KeyReused,
    ThreadBusy,
)
from tests.stores.making import (
    AGENTS,
    Shop,
    append,
    datas,
    key,
    new_run,
    query,
    said,
    started,
)
from tests.stores.promises.base import Promises


class Commands(Promises):
    async def test_start_cancel_and_end_in_one_batch_each_see_what_was_before(self, shop: Shop) -> None:
        thread = await shop.thread()
        run_id = await shop.queued(thread)
        batch = [
            c.claim_runs(AGENTS, 1, await shop.worker()),
            c.cancel_run("alice", run_id, "enough"),
            c.cancel_run("alice", run_id, "again"),
            c.end_run(run_id, c.Completed(values.raw("done")), c.Fence(1, 1)),
            c.cancel_run("alice", run_id, "late"),
        ]
        outcomes = (await shop.commit(*batch)).outcomes
        assert outcomes[1:] == [True, True, "agent_cancelled", False]
        types = await shop.types(thread)
        assert types[1:] == ["run_queued", "agent_started", "cancel_requested", "agent_cancelled"]
        (end,) = datas(await shop.events(thread), "agent_cancelled")
        assert end == {"by": "alice", "reason": "enough", "output": "done"}

    async def test_text_said_in_the_same_batch_is_kept_by_the_end_that_follows_it(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.commit(
            append(run, started("msg_1"), said("msg_1", "so ")),
            append(run, said("msg_1", "far", offset=3)),
            c.end_run(run.run_id, c.Failed("Boom", "boom"), c.Fence(1, 1)),
        )
        (message,) = (await shop.store.rows.messages("alice", query(run.thread_id))).items
        assert (message.status, message.reason, message.content) == ("partial", "error", "so far")

    async def test_two_starts_with_one_key_in_one_batch_make_one_run(self, shop: Shop) -> None:
        thread = await shop.thread()
        start = [
            c.start_run("alice", new_run(n, key=key("k", digest)), thread_id=thread.thread_id)
            for n, digest in enumerate(["same", "same", "other"])
        ]
        first, second, third = await shop.outcomes(*start)
        assert (first.new, second.new, second.id) == (True, False, first.id)
        assert isinstance(third, KeyReused)
        assert (await shop.types(thread)).count("run_queued") == 1

    async def test_reject_sees_the_run_that_was_started_in_the_same_batch(self, shop: Shop) -> None:
        thread = await shop.thread()
        starts = [c.start_run("alice", new_run(on_busy="reject"), thread_id=thread.thread_id) for _ in range(2)]
        first, second = await shop.outcomes(*starts)
        assert first.new
        assert isinstance(second, ThreadBusy)

    async def test_a_refused_entry_of_a_batch_leaves_no_key_behind(self, shop: Shop) -> None:
        one = await shop.thread()
        await shop.queued(one)
        busy = c.start_run("alice", new_run(on_busy="reject", key=key("k")), thread_id=one.thread_id)
        with pytest.raises(ThreadBusy):
            await shop.ask(busy)
        other = await shop.thread()
        assert (await shop.ask(c.start_run("alice", new_run(key=key("k", "x")), thread_id=other.thread_id))).new

    async def test_interrupt_asks_what_runs_to_stop_and_ends_what_waits(self, shop: Shop) -> None:
        thread = await shop.thread()
        running = await shop.running(thread)
        waiting = await shop.queued(thread)
        made = await shop.ask(c.start_run("alice", new_run(on_busy="interrupt"), thread_id=thread.thread_id))
        assert made.interrupted == (running.run_id, waiting)
        statuses = {run.run_id: run.status for run in (await shop.store.rows.runs("alice", query())).items}
        assert statuses == {running.run_id: "running", waiting: "cancelled", made.id: "queued"}
        assert await shop.claim() == []
        await shop.end(running)
        assert [row.run_id for row in await shop.claim()] == [made.id]

    async def test_a_key_finds_what_it_made_and_belongs_to_one_user_and_kind(self, shop: Shop) -> None:
        made = await shop.ask(c.create_thread("alice", c.NewThread(key=key("k"))))
        again = await shop.ask(c.create_thread("alice", c.NewThread(key=key("k"))))
        assert (again.id, again.new) == (made.id, False)
        with pytest.raises(KeyReused):
            await shop.ask(c.create_thread("alice", c.NewThread(key=key("k", "other body"))))
        assert (await shop.ask(c.create_thread("bob", c.NewThread(key=key("k", "bob's"))))).new
        assert (await shop.ask(c.start_run("alice", new_run(key=key("k", "a run's"))))).new

    async def test_a_thread_key_finds_the_thread_or_makes_it(self, shop: Shop) -> None:
        first = await shop.ask(c.start_run("alice", new_run(), thread_key=key("chat")))
        second = await shop.ask(c.start_run("alice", new_run(), thread_key=key("chat")))
        foreign = await shop.ask(c.start_run("bob", new_run(), thread_key=key("chat")))
        threads = {
            run.run_id: run.thread_id
            for user in ("alice", "bob")
            for run in (await shop.store.rows.runs(user, query())).items
        }
        assert threads[first.id] == threads[second.id] != threads[foreign.id]

    async def test_a_key_is_free_again_when_its_thread_is_deleted(self, shop: Shop) -> None:
        made = await shop.ask(c.create_thread("alice", c.NewThread(key=key("k"))))
        run = await shop.ask(c.start_run("alice", new_run(key=key("r")), thread_id=made.id))
        await shop.ask(c.delete_thread("alice", made.id))
        assert (await shop.ask(c.create_thread("alice", c.NewThread(key=key("k", "new"))))).id != made.id
        assert (await shop.ask(c.start_run("alice", new_run(key=key("r", "new"))))).id != run.id
