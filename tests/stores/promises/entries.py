"""Entries of a batch do not hurt each other, and fences hold."""

from __future__ import annotations

import pytest

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.errors import (
    NotFound,
    RunstoneError,
    StaleAttempt,
    ThreadBusy,
    TooLarge,
)
from runstone.events import Draft
from runstone.store import Append, Command, Decision, KeyRow, Need
from runstone.views import ThreadRef
from tests.stores.dump import Database
from tests.stores.making import (
    Shop,
    append,
    broken,
    completed,
    custom,
    datas,
    fence,
    plain,
    started,
)
from tests.stores.promises.base import Promises
from tests.support.clocks import ManualClock

MIB = 1 << 20


class Entries(Promises):
    async def test_an_entry_that_is_refused_hurts_only_itself(self, shop: Shop) -> None:
        run = await shop.running()
        before = len(await shop.events(run.thread))
        outcomes = (
            await shop.commit(
                append(run, custom("one")),
                broken(ThreadBusy("busy")),
                append(run, custom("stale"), attempt=7),
                c.cancel_run("alice", "run_unknown", None),
                append(run, custom("two")),
            )
        ).outcomes
        assert [type(outcome) for outcome in outcomes] == [
            type(None),
            ThreadBusy,
            StaleAttempt,
            NotFound,
            type(None),
        ]
        after = await shop.events(run.thread, before)
        assert [data["name"] for data in datas(after, "custom")] == ["one", "two"]

    async def test_an_entry_that_is_too_large_writes_none_of_its_events(self, shop: Shop) -> None:
        run = await shop.running()
        before = len(await shop.events(run.thread))
        outcomes = (await shop.commit(append(run, custom("small"), custom("large", "x" * MIB)))).outcomes
        assert isinstance(outcomes[0], TooLarge)
        assert await shop.events(run.thread, before) == []

    @pytest.mark.parametrize(
        "fault", ["decision", "same message", "unknown run", "unknown thread", "update of nothing"]
    )
    async def test_an_entry_that_breaks_hurts_only_itself(self, shop: Shop, fault: str) -> None:
        run = await shop.running()
        await shop.commit(append(run, started("msg_1")))
        before = len(await shop.events(run.thread))
        bad: dict[str, Append | Command] = {
            "decision": broken(ZeroDivisionError("a bug")),
            "same message": append(run, custom("lost"), started("msg_1")),
            "unknown run": Append("run_unknown", 1, 1, [Draft(data=custom(), run_id="run_unknown", attempt=1)]),
            "unknown thread": plain(ThreadRef("thr_unknown", "alice"), e.ThreadUpdated(title="x", by="alice")),
            "update of nothing": append(run, custom("lost"), completed("act_unknown")),
        }
        committed = await shop.commit(append(run, custom("one")), bad[fault], append(run, custom("two")))
        assert [isinstance(outcome, RunstoneError) for outcome in committed.outcomes] == [False, True, False]
        after = await shop.events(run.thread, before)
        assert [data["name"] for data in datas(after, "custom")] == ["one", "two"]
        assert [event.seq for event in committed.events[run.thread]] == [event.seq for event in after]
        assert [event.wire for event in committed.events[run.thread]] == [event.wire for event in after]

    async def test_a_key_whose_thread_does_not_exist_is_refused_by_the_database(self, shop: Shop) -> None:
        row = KeyRow("alice", "run", "k", "digest", "run_1", "thr_unknown")
        with pytest.raises(RunstoneError):
            await shop.ask(Command(need=Need(), decide=lambda _facts: Decision(keys=[row])))

    @pytest.mark.parametrize("attempt", [0, 2])
    async def test_another_attempt_than_the_current_one_appends_nothing(self, shop: Shop, attempt: int) -> None:
        run = await shop.running()
        before = await shop.types(run.thread)
        with pytest.raises(StaleAttempt):
            await shop.ask(append(run, custom(), attempt=attempt))
        with pytest.raises(StaleAttempt):
            await shop.ask(c.end_run(run.run_id, c.Cancelled(), fence(run, attempt)))
        assert await shop.types(run.thread) == before

    async def test_nothing_follows_the_end_of_a_run(self, shop: Shop) -> None:
        run = await shop.running()
        end = c.end_run(run.run_id, c.Completed(values.raw(1)), fence(run))
        outcomes = (await shop.commit(end, append(run, custom()), end)).outcomes
        assert outcomes[0] == "agent_completed"
        assert [type(outcome) for outcome in outcomes[1:]] == [StaleAttempt, StaleAttempt]
        with pytest.raises(StaleAttempt):
            await shop.ask(append(run, custom()))
        assert (await shop.types(run.thread))[-1] == "agent_completed"

    async def test_the_fence_holds_after_a_reopening(self, shop: Shop, database: Database, clock: ManualClock) -> None:
        ended, under_way = await shop.running(), await shop.running()
        await shop.end(ended)
        await shop.store.close()
        store = database.store(clock)
        await store.open()
        again = Shop(store)
        with pytest.raises(StaleAttempt):
            await again.ask(append(ended, custom()))
        with pytest.raises(StaleAttempt):
            await again.ask(append(under_way, custom(), attempt=2))
        await again.ask(append(under_way, custom()))
        await store.close()
