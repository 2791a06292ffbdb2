"""Who may run what, what a dead process left, and what is open."""

from __future__ import annotations

import msgspec

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.store import Need
from tests.stores.making import (
    AGENTS,
    Shop,
    append,
    completed,
    executing,
    looking,
    said,
    started,
    thought,
)
from tests.stores.promises.base import Promises


class Claims(Promises):
    async def test_claims_go_in_the_order_of_the_queue_and_stop_at_the_limit(self, shop: Shop) -> None:
        ids = [await shop.queued(await shop.thread()) for _ in range(5)]
        claimed = [[row.run_id for row in await shop.claim(limit=2)] for _ in range(4)]
        assert claimed == [ids[:2], ids[2:4], ids[4:], []]

    async def test_one_root_run_of_a_thread_is_under_way_at_a_time(self, shop: Shop) -> None:
        thread = await shop.thread()
        ids = [await shop.queued(thread) for _ in range(3)]
        for run_id in ids:
            (row,) = await shop.claim()
            assert (row.run_id, row.attempt, row.status) == (run_id, 1, "running")
            assert await shop.claim() == []
            await shop.end(row)

    async def test_only_runs_of_named_agents_are_claimed(self, shop: Shop) -> None:
        other = await shop.queued(await shop.thread(), agent="other")
        mine = await shop.queued(await shop.thread())
        assert [row.run_id for row in await shop.claim()] == [mine]
        assert [row.run_id for row in await shop.claim(agents=frozenset({"other", "third"}))] == [other]

    async def test_a_run_of_an_agent_that_is_not_here_holds_its_thread(self, shop: Shop) -> None:
        thread = await shop.thread()
        await shop.queued(thread, agent="elsewhere")
        await shop.queued(thread)
        assert await shop.claim() == []

    async def test_two_claims_in_one_batch_never_take_the_same_run(self, shop: Shop) -> None:
        ids = [await shop.queued(await shop.thread()) for _ in range(3)]
        claim = c.claim_runs(AGENTS, 2, await shop.worker())
        (first, _), (second, _) = await shop.outcomes(claim, claim)
        assert [claimed.run.run_id for claimed in (*first, *second)] == ids

    async def test_open_items_come_folded_with_their_text(self, shop: Shop) -> None:
        run = await shop.running()
        empty = e.MessageCompleted(message_id="msg_3", status="completed", length=0)
        part = e.MessagePart(message_id="msg_1", part=2, value=values.raw({"type": "data", "value": 1}))
        await shop.commit(
            append(run, started("msg_1"), started("msg_2"), started("msg_3"), executing("act_1"), executing("act_2")),
            append(run, thought("msg_1", "h\0m"), said("msg_2", "two"), said("msg_1", "🗿x", part=1), part),
            append(run, completed("act_1"), empty, content=b"[]"),
        )
        found = await shop.ask(
            looking(Need(user_id="alice", run_id=run.run_id, open_items=True), lambda facts: facts.run)
        )
        assert [(message.message_id, message.length) for message in found.messages] == [("msg_1", 2), ("msg_2", 3)]
        assert values.decode(found.messages[0].parts) == [
            {"type": "reasoning", "text": "h\0m"},
            {"type": "text", "text": "🗿x"},
            {"type": "data", "value": 1},
        ]
        assert [action.action_id for action in found.actions] == ["act_2"]

    async def test_runs_that_must_not_go_on_are_named_with_the_reason(self, shop: Shop) -> None:
        run, other = await shop.running(), await shop.running()
        await shop.ask(c.cancel_run("alice", run.run_id, None))
        both = [run.run_id, other.run_id, "run_unknown"]
        assert await shop.store.to_stop(both) == {run.run_id: "cancel"}
        assert await shop.store.to_stop([]) == {}
        await shop.end(run)
        assert await shop.store.to_stop(both) == {run.run_id: "ended"}
        row = await shop.store.run_row(other.run_id)
        assert row == msgspec.structs.replace(other, status="running")
        assert await shop.store.run_row("run_unknown") is None
