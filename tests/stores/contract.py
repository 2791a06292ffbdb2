"""What every store keeps to: the docstring of `runstone.store.Store`, as tests.

An implementation joins with a subclass that says how its database is made:

    class TestSqlite(StoreContract):
        @pytest.fixture
        def database(self, tmp_path): return SqliteDatabase(tmp_path)
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
from msgspec import UNSET

from runstone import commands as c
from runstone import events as e
from runstone import failpoints, values
from runstone.errors import (
    Invalid,
    KeyReused,
    NotFound,
    RunstoneError,
    StaleAttempt,
    ThreadBusy,
    TooLarge,
)
from runstone.events import Draft
from runstone.limits import LIST_BYTES_MAX
from runstone.store import Append, Command, Decision, KeyRow, Need, RunRow
from runstone.views import ThreadRef
from tests.stores.dump import Database, check
from tests.stores.making import (
    AGENTS,
    Shop,
    append,
    broken,
    completed,
    custom,
    datas,
    executing,
    key,
    looking,
    new_run,
    plain,
    query,
    said,
    shown,
    started,
    thought,
    usage,
)
from tests.support.clocks import ManualClock

MIB = 1 << 20
ODD_TEXTS = {
    "nul": "a\0b",
    "a lone high surrogate": "a\ud800b",
    "a lone low surrogate": "\udc00",
    "a split pair": "\ud83d\ude00",
    "an emoji of four bytes": "🗿" * 3,
    "quotes and controls": '"\\\x01\x1f\x7f\u2028\r\n',
    "one MiB": "x" * MIB,
}


class StoreContract:
    """The tests; `database` is the implementation's place for one store."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def shop(self, database: Database, clock: ManualClock) -> AsyncIterator[Shop]:
        """An open store. At the end of every test what it holds keeps the promises."""
        store = database.store(clock)
        await store.open()
        yield Shop(store)
        await store.close()
        check(database.dump())

    # --- order ------------------------------------------------------------------------------------------

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

    # --- entries do not hurt each other -----------------------------------------------------------------

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
            "unknown run": Append("run_unknown", 1, [Draft(data=custom(), run_id="run_unknown", attempt=1)]),
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

    # --- fences -----------------------------------------------------------------------------------------

    @pytest.mark.parametrize("attempt", [0, 2])
    async def test_another_attempt_than_the_current_one_appends_nothing(self, shop: Shop, attempt: int) -> None:
        run = await shop.running()
        before = await shop.types(run.thread)
        with pytest.raises(StaleAttempt):
            await shop.ask(append(run, custom(), attempt=attempt))
        with pytest.raises(StaleAttempt):
            await shop.ask(c.end_run(run.run_id, c.Cancelled(), attempt=attempt))
        assert await shop.types(run.thread) == before

    async def test_nothing_follows_the_end_of_a_run(self, shop: Shop) -> None:
        run = await shop.running()
        end = c.end_run(run.run_id, c.Completed(values.raw(1)), attempt=1)
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

    # --- commands decide on what is true in their own transaction ---------------------------------------

    async def test_start_cancel_and_end_in_one_batch_each_see_what_was_before(self, shop: Shop) -> None:
        thread = await shop.thread()
        run_id = await shop.queued(thread)
        batch = [
            c.claim_runs(AGENTS, 1, "worker"),
            c.cancel_run("alice", run_id, "enough"),
            c.cancel_run("alice", run_id, "again"),
            c.end_run(run_id, c.Completed(values.raw("done")), attempt=1),
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
            c.end_run(run.run_id, c.Failed("Boom", "boom"), attempt=1),
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

    # --- keys -------------------------------------------------------------------------------------------

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

    # --- claims and orphans -----------------------------------------------------------------------------

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
        claim = c.claim_runs(AGENTS, 2, "worker")
        first, second = await shop.outcomes(claim, claim)
        assert [row.run_id for row in (*first, *second)] == ids

    async def test_orphans_are_ended_with_their_text_and_the_queue_stays(self, shop: Shop) -> None:
        orphans = [await shop.running() for _ in range(3)]
        waiting = await shop.queued(await shop.thread())
        await shop.commit(
            append(orphans[0], started("msg_1"), thought("msg_1", "hm"), said("msg_1", "half 🗿", part=1)),
            append(orphans[1], executing("act_1")),
            c.cancel_run("alice", orphans[2].run_id, "stop"),
        )
        assert await shop.ask(c.end_orphans(2)) == [orphan.run_id for orphan in orphans[:2]]
        assert await shop.ask(c.end_orphans(2)) == [orphans[2].run_id]
        assert await shop.ask(c.end_orphans(2)) == []
        rows = shop.store.rows
        lost = await rows.run("alice", orphans[0].run_id)
        assert lost is not None
        assert lost.error is not None
        assert (lost.status, lost.error.type, lost.error.retryable) == ("failed", "WorkerLost", True)
        (message,) = (await rows.messages("alice", query(orphans[0].thread_id))).items
        assert (message.status, message.content) == ("partial", "half 🗿")
        assert [part["type"] for part in message.parts] == ["reasoning", "text"]
        (action,) = (await rows.actions("alice", query(orphans[1].thread_id))).items
        assert action.status == "interrupted"
        cancelled = await rows.run("alice", orphans[2].run_id)
        assert cancelled is not None
        assert cancelled.status == "cancelled"
        assert [row.run_id for row in await shop.claim()] == [waiting]

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

    async def test_runs_that_a_cancel_was_asked_for_are_named_until_they_end(self, shop: Shop) -> None:
        run, other = await shop.running(), await shop.running()
        await shop.ask(c.cancel_run("alice", run.run_id, None))
        assert await shop.store.cancelling() == [run.run_id]
        await shop.end(run)
        assert await shop.store.cancelling() == []
        row = await shop.store.run_row(other.run_id)
        assert row == msgspec.structs.replace(other, status="running")
        assert await shop.store.run_row("run_unknown") is None

    # --- pages ------------------------------------------------------------------------------------------

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
            assert await shop.store.cancelling() == []
        finally:
            go_on.set()
            failpoints.disarm_all()
        await writing
        assert await shop.store.heads([run.thread]) == [before[0] + 2]

    # --- lists ------------------------------------------------------------------------------------------

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

    # --- users see only their own -----------------------------------------------------------------------

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
            ("agent_cancelled", waiting),
            ("message_completed", run.run_id),
            ("tool_completed", run.run_id),
            ("agent_cancelled", run.run_id),
            ("thread_deleted", None),
        ]
        assert all(data == {"reason": "deleted"} for data in datas(events, "agent_cancelled"))
        for entry in (append(run, custom()), c.end_run(run.run_id, c.Cancelled(), attempt=1)):
            with pytest.raises(StaleAttempt):
                await shop.ask(entry)

    # --- bytes ------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
    async def test_any_text_comes_back_as_it_went_in(self, shop: Shop, text: str) -> None:
        kept = values.mend(text)
        thread = await shop.thread(title=text[:500], metadata=values.raw({"text": text[:500]}))
        run = await shop.running(thread, input={"text": text[: 600 << 10]}, message=text[: 600 << 10])
        pieces = [kept[start : start + 8000] for start in range(0, len(kept), 8000)]
        offsets = range(0, len(kept), 8000)
        committed = await shop.commit(
            append(run, started("msg_1")),
            append(run, *[said("msg_1", piece, offset=offset) for piece, offset in zip(pieces, offsets, strict=True)]),
            append(run, executing("act_1", tool=text[:100], input=text[:1000])),
            append(run, e.StateChanged(key=text[:100], value=values.raw(text[:1000]))),
        )
        assert committed.outcomes == [None] * 4
        rows = shop.store.rows
        found = await rows.thread("alice", thread.thread_id)
        assert found is not None
        assert found.title == values.mend(text[:500])
        messages = (await rows.messages("alice", query(thread.thread_id))).items
        assert [message.content for message in messages] == [values.mend(text[: 600 << 10]), kept]
        assert (await rows.run("alice", run.run_id)).input == {"text": values.mend(text[: 600 << 10])}  # type: ignore[union-attr]
        await shop.commit(c.cancel_run("alice", run.run_id, text[:1000]))
        await shop.end(run)
        (_, answer) = (await rows.messages("alice", query(thread.thread_id))).items
        assert (answer.content, answer.status) == (kept, "partial")
        assert "".join(data["delta"] for data in datas(await shop.events(thread), "message_delta")) == kept

    @pytest.mark.parametrize("text", ["a\0b", "🗿", "' OR 1=1 --", '"', "\x7f\u2028"])
    async def test_any_text_may_be_a_key(self, shop: Shop, text: str) -> None:
        made = await shop.ask(c.start_run("alice", new_run(key=key(text)), thread_key=key(text)))
        again = await shop.ask(c.start_run("alice", new_run(key=key(text)), thread_key=key(text)))
        assert again.id == made.id

    async def test_bytes_that_a_commit_shows_are_those_that_are_read_later(
        self, shop: Shop, database: Database
    ) -> None:
        thread = await shop.thread(title="näme\0")
        run = await shop.running(thread, message="🗿", metadata={"b": 1, "a": [1.5, None]})
        drafts = [
            Draft(data=started("msg_1"), run_id=run.run_id, attempt=1, metadata=values.raw({"z": 1, "a": "é"})),
            Draft(data=usage(cost=0.1), run_id=run.run_id, attempt=1, raw=values.raw({"any": ["thing", 1e300]})),
            Draft(data=executing("act_1", input={"secret": 1}), run_id=run.run_id, attempt=1, private=True),
            Draft(data=e.StateChanged(key="s", value=values.raw("secret")), run_id=run.run_id, attempt=1, private=True),
        ]
        committed = await shop.commit(
            Append(run.run_id, 1, drafts), c.end_run(run.run_id, c.Cancelled("x"), attempt=None)
        )
        later = await shop.events(thread)
        shown_now = committed.events[thread]
        assert [event.wire for event in later][-len(shown_now) :] == [event.wire for event in shown_now]
        assert [event.type for event in later][-len(shown_now) :] == [event.type for event in shown_now]
        for event, row in zip(later, database.dump().events, strict=True):
            if not row.private:
                assert event.wire.endswith(row.payload[1:]), "stored payload bytes are spliced in as they are"

    async def test_of_what_is_private_only_ids_are_shown(self, shop: Shop) -> None:
        run = await shop.running()
        draft = Draft(
            data=executing("act_1", tool="vault", input={"secret": 1}),
            run_id=run.run_id,
            attempt=1,
            private=True,
            metadata=values.raw({"secret": 1}),
        )
        committed = await shop.commit(Append(run.run_id, 1, [draft]))
        for event in (committed.events[run.thread][0], (await shop.events(run.thread))[-1]):
            assert shown(event)["data"] == {"action_id": "act_1", "private": True}
            assert b"secret" not in event.wire
            assert b"vault" not in event.wire
        (action,) = (await shop.store.rows.actions("alice", query(run.thread_id))).items
        assert (action.input, action.output) == (None, None)

    # --- life -------------------------------------------------------------------------------------------

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
