"""Users see only their own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec import UNSET

from runstone import commands as c
from runstone.errors import (
    NotFound,
    StaleAttempt,
)
from runstone.store import Command, RunRow
from runstone.views import ThreadRef
from tests.stores.making import (
    Shop,
    append,
    custom,
    datas,
    executing,
    key,
    new_run,
    query,
    said,
    started,
)
from tests.stores.promises.base import Promises

MIB = 1 << 20


class Owners(Promises):
    async def test_what_is_not_yours_does_not_exist(self, shop: Shop) -> None:
        rows = shop.store.rows
        run = await shop.running(message="secret")
        await shop.commit(append(run, started("msg_1"), said("msg_1", "secret"), executing("act_1"), custom()))
        thread_id, run_id = run.thread_id, run.run_id
        for user in ("bob", "", "ALICE", "alice "):
            assert await rows.thread(user, thread_id) is None
            assert await rows.run(user, run_id) is None
            assert await rows.message(user, "msg_1") is None
            assert await rows.family(user, run_id) == frozenset()
            assert (await rows.threads(user, query())).items == []
            assert (await rows.runs(user, query())).items == []
            assert (await rows.runs(user, query(thread_id))).items == []
            foreign = ThreadRef(thread_id, user)
            assert await shop.store.heads([foreign]) == [0]
            assert list((await shop.store.events(foreign, after=0, limit=9, bytes_max=MIB)).events) == []
            assert list((await shop.store.events_before(foreign, before=9, limit=9, bytes_max=MIB)).events) == []
            for read in (rows.messages, rows.actions):
                with pytest.raises(NotFound):
                    await read(user, query(thread_id))
            with pytest.raises(NotFound):
                await rows.state(user, thread_id, private=True)

    async def test_nobody_can_touch_what_is_not_theirs(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.ask(c.create_thread("alice", c.NewThread(key=key("k"))))
        before = await shop.types(run.thread)
        for command in (
            c.cancel_run("bob", run.run_id, None),
            c.delete_thread("bob", run.thread_id),
            c.update_thread("bob", run.thread_id, title="mine", metadata=UNSET),
            c.start_run("bob", new_run(), thread_id=run.thread_id),
        ):
            with pytest.raises(NotFound):
                await shop.ask(command)
        made = await shop.ask(c.start_run("bob", new_run(), thread_key=key("k")))
        assert (await shop.store.rows.run("bob", made.id)) is not None
        assert await shop.types(run.thread) == before

    async def test_unknown_deleted_and_foreign_are_told_apart_by_nothing(self, shop: Shop) -> None:
        mine, foreign = await shop.running(), await shop.running(user_id="bob")
        gone = await shop.running()
        await shop.ask(c.delete_thread("alice", gone.thread_id))

        async def refusal(make: Callable[[RunRow | None], Command], run: RunRow | None) -> str:
            with pytest.raises(NotFound) as caught:
                await shop.ask(make(run))
            problem = str(caught.value.problem())
            for known in (run.run_id, run.thread_id) if run else ():
                problem = problem.replace(known, "X")
            return problem.replace("unknown", "X")

        cancel = lambda run: c.cancel_run("alice", run.run_id if run else "unknown", None)  # noqa: E731
        delete = lambda run: c.delete_thread("alice", run.thread_id if run else "unknown")  # noqa: E731
        for make in (cancel, delete):
            assert len({await refusal(make, run) for run in (None, foreign, gone)}) == 1
        assert await shop.store.rows.run("alice", gone.run_id) is None
        assert await shop.store.rows.thread("alice", gone.thread_id) is None
        assert [run.run_id for run in (await shop.store.rows.runs("alice", query())).items] == [mine.run_id]

    async def test_deleting_ends_what_is_unfinished_and_then_the_thread_in_one_commit(self, shop: Shop) -> None:
        thread = await shop.thread()
        run = await shop.running(thread)
        await shop.commit(append(run, started("msg_1"), executing("act_1")))
        waiting = await shop.queued(thread)
        before = len(await shop.events(thread))
        assert await shop.ask(c.delete_thread("alice", thread.thread_id)) == [run.run_id, waiting]
        events = await shop.events(thread, before)
        assert [(event.type, event.run_id) for event in events] == [
            ("message_completed", run.run_id),
            ("tool_completed", run.run_id),
            ("agent_cancelled", run.run_id),
            ("agent_cancelled", waiting),
            ("thread_deleted", None),
        ]
        assert all(data == {"reason": "deleted"} for data in datas(events, "agent_cancelled"))
        for entry in (append(run, custom()), c.end_run(run.run_id, c.Cancelled(), c.Fence(1, 1))):
            with pytest.raises(StaleAttempt):
                await shop.ask(entry)
