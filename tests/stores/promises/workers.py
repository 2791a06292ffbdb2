"""Two workers on one store: whoever is overtaken can write nothing more, and what it left is taken up once."""

from __future__ import annotations

import msgspec
import pytest

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.clock import to_rfc3339
from runstone.errors import StaleAttempt, StaleWorker
from runstone.states import Status
from runstone.store import Append, Need, RunRow
from tests.stores.dump import Database
from tests.stores.making import (
    AGENTS,
    Shop,
    append,
    completed,
    custom,
    datas,
    executing,
    fence,
    looking,
    new_run,
    query,
    said,
    started,
)
from tests.stores.promises.base import Promises
from tests.support.clocks import ManualClock

HOUR_US = 3_600_000_000


async def die(shop: Shop, worker: str) -> None:
    """Somebody who watched its beat stand still buries it."""
    assert await shop.ask(c.bury(worker, (await shop.store.beats())[worker]))


async def status(shop: Shop, run_id: str) -> Status:
    run = await shop.store.rows.run("alice", run_id)
    assert run is not None
    return run.status


async def called(
    shop: Shop, parent: RunRow, *, epoch: int | None = None, child: str | None = None, reason: c.LeftBy = "lost"
) -> RunRow:
    new = c.NewChild(agent="child", input=values.raw(None), key=None, max_attempts=3, timeout_s=60)
    row: RunRow = await shop.ask(
        c.call_agent(parent, parent.attempt if epoch is None else epoch, new, child=child, reason=reason)
    )
    return row


def stepped(key: str, *inner: str) -> e.StepCompleted:
    return e.StepCompleted(key=key, output=values.raw(key), inner=inner)


def asked(approval_id: str, clock: ManualClock, *, expires_in_us: int = HOUR_US) -> e.ApprovalRequested:
    return e.ApprovalRequested(
        approval_id=approval_id,
        kind="approval",
        prompt="May I?",
        input=values.raw({"n": 1}),
        input_hash=values.digest(values.encode({"n": 1})),
        expires_at=to_rfc3339(clock.time_us + expires_in_us),
    )


YES = c.Answer(decision="approved")
NO = c.Answer(decision="denied", comment="no")


class Workers(Promises):
    # --- life and death ---------------------------------------------------------------------------------------

    async def test_a_worker_lives_from_its_first_beat_until_it_is_buried(self, shop: Shop) -> None:
        assert await shop.store.beats() == {}
        await shop.ask(c.beat("wrk_1", first=True))
        await shop.ask(c.beat("wrk_1"))
        assert await shop.store.beats() == {"wrk_1": 2}
        assert await shop.ask(c.bury("wrk_1", 1)) is False, "it has beaten since it was looked at"
        assert await shop.ask(c.bury("wrk_1", 2)) is True
        assert await shop.ask(c.bury("wrk_1", 2)) is True, "it is dead, whoever says so"
        for command in (c.beat("wrk_1"), c.claim_runs(AGENTS, 1, "wrk_1")):
            with pytest.raises(StaleWorker):
                await shop.ask(command)
        assert await shop.store.beats() == {}

    async def test_what_a_living_worker_owns_is_not_claimed_by_another(self, shop: Shop) -> None:
        await shop.worker("wrk_2")
        run = await shop.running()
        assert await shop.claim(worker="wrk_2") == []
        await die(shop, "worker")
        (claimed,) = await shop.claimed(worker="wrk_2")
        assert (claimed.run.run_id, claimed.run.attempt, claimed.reason) == (run.run_id, 2, "lost")
        assert await shop.claim(worker="wrk_2") == []

    async def test_a_worker_that_was_overtaken_is_refused_in_everything_and_the_run_ends_once(self, shop: Shop) -> None:
        old = await shop.running()
        await shop.commit(append(old, started("msg_1"), said("msg_1", "hel")))
        await die(shop, "worker")
        (new,) = await shop.claim(worker="wrk_2")
        head = (await shop.store.heads([old.thread]))[0]
        outcomes = await shop.outcomes(
            append(old, said("msg_1", "lo", offset=3)),
            c.end_run(old.run_id, c.Completed(values.raw(1)), fence(old)),
            c.end_run(old.run_id, c.Failed("Boom", "boom"), fence(old), over_its_head=True),
            c.beat("worker"),
            c.claim_runs(AGENTS, 5, "worker"),
        )
        assert [type(outcome) for outcome in outcomes] == [StaleAttempt] * 3 + [StaleWorker] * 2
        with pytest.raises(StaleAttempt):
            await called(shop, old)
        assert await shop.store.heads([old.thread]) == [head], "nothing was written"
        await shop.end(new, "done")
        types = await shop.types(old.thread)
        assert types.count("agent_completed") == 1
        assert types[-1] == "agent_completed"

    async def test_clocks_that_are_an_hour_off_change_nothing(self, shop: Shop, clock: ManualClock) -> None:
        run = await shop.running()
        for hours in (1, -2, 2):
            clock.time_us += hours * HOUR_US
            await shop.worker(f"wrk_{hours}")
            assert await shop.claim(worker=f"wrk_{hours}") == []
            assert await shop.outcomes(append(run, custom())) == [None]
            await shop.ask(c.beat("worker"))
        await die(shop, "worker")
        clock.time_us -= HOUR_US
        (new,) = await shop.claim(worker="wrk_1")
        assert (await shop.outcomes(append(new, custom()), append(run, custom())))[0] is None

    async def test_a_store_that_one_process_holds_has_no_living_worker_when_it_is_opened(
        self, shop: Shop, database: Database, clock: ManualClock
    ) -> None:
        run = await shop.running()
        await shop.store.close()
        again = Shop(store := database.store(clock))
        await store.open()
        assert await store.beats() == {}
        assert [type(one) for one in await again.outcomes(c.beat("worker"))] == [StaleWorker]
        (claimed,) = await again.claimed(worker="wrk_2")
        assert (claimed.run.run_id, claimed.run.attempt, claimed.reason) == (run.run_id, 2, "lost")
        await store.close()

    # --- attempts ---------------------------------------------------------------------------------------------

    async def test_the_next_attempt_closes_actions_supersedes_messages_by_id_and_keeps_those_of_steps(
        self, shop: Shop
    ) -> None:
        run = await shop.running(message="hello")
        done = e.MessageCompleted(message_id="msg_done", status="completed", length=2)
        kept = e.MessageCompleted(message_id="msg_kept", status="completed", length=0)
        await shop.commit(
            append(run, started("msg_done"), said("msg_done", "hi"), done, content=b'[{"text":"hi","type":"text"}]'),
            append(run, started("msg_kept"), kept, content=b"[]"),
            append(run, stepped("s", "msg_kept", "act_in"), executing("act_done"), completed("act_done")),
            append(run, executing("act_open"), started("msg_open"), said("msg_open", "hal")),
        )
        await die(shop, "worker")
        head = (await shop.store.heads([run.thread]))[0]
        await shop.claim(worker="wrk_2")
        events = await shop.events(run.thread, after=head)
        assert [event.type for event in events] == ["tool_completed", "attempt_superseded", "agent_started"]
        assert datas(events, "tool_completed")[0]["status"] == "interrupted"
        assert datas(events, "attempt_superseded") == [
            {"attempt": 1, "reason": "lost", "messages": ["msg_done", "msg_open"]}
        ]
        messages = (await shop.store.rows.messages("alice", query(run.thread_id, superseded=True))).items
        assert {message.message_id: message.status for message in messages if message.role == "assistant"} == {
            "msg_done": "superseded",
            "msg_kept": "completed",
            "msg_open": "superseded",
        }
        shown = (await shop.store.rows.messages("alice", query(run.thread_id))).items
        assert [message.role for message in shown] == ["user", "assistant"], "what the user said stands"

    async def test_the_third_attempt_supersedes_what_the_second_said_and_nothing_twice(self, shop: Shop) -> None:
        run = await shop.running()
        for attempt in (1, 2):
            (run,) = [run] if attempt == 1 else await shop.claim(worker=f"wrk_{attempt}")
            await shop.commit(append(run, started(f"msg_{attempt}")))
            await die(shop, "worker" if attempt == 1 else f"wrk_{attempt}")
        await shop.claim(worker="wrk_3")
        told = datas(await shop.events(run.thread), "attempt_superseded")
        assert [(data["attempt"], data["messages"]) for data in told] == [(1, ["msg_1"]), (2, ["msg_2"])]

    async def test_only_attempts_that_were_lost_count_and_the_last_ends_the_run(self, shop: Shop) -> None:
        run = await shop.running()  # max_attempts is 3
        for worker in ("worker", "wrk_2"):
            await shop.ask(c.release_runs(worker))
            (claimed,) = await shop.claimed(worker="wrk_2" if worker == "worker" else "wrk_3")
            assert claimed.reason == "released"
        for number in (3, 4):
            await die(shop, f"wrk_{number}")
            (run,) = await shop.claim(worker=f"wrk_{number + 1}")
        assert run.attempt == 5
        await die(shop, "wrk_5")
        assert await shop.claim(worker="wrk_6") == []
        ended = await shop.store.rows.run("alice", run.run_id)
        assert ended is not None
        assert ended.error is not None
        assert (ended.status, ended.error.type, ended.attempt) == ("failed", "MaxAttempts", 5)

    async def test_a_run_that_is_not_to_be_resumed_ends_as_lost(self, shop: Shop) -> None:
        thread = await shop.thread()
        new = msgspec.structs.replace(new_run(), on_crash="fail")
        made = await shop.ask(c.start_run("alice", new, thread_id=thread.thread_id))
        (run,) = await shop.claim()
        await shop.commit(append(run, started("msg_1"), said("msg_1", "half 🗿"), executing("act_1")))
        await die(shop, "worker")
        assert await shop.claim(worker="wrk_2") == []
        ended = await shop.store.rows.run("alice", made.id)
        assert ended is not None
        assert ended.error is not None
        assert (ended.status, ended.error.type, ended.error.retryable) == ("failed", "WorkerLost", True)
        (message,) = (await shop.store.rows.messages("alice", query(thread.thread_id))).items
        assert (message.status, message.content) == ("partial", "half 🗿")

    async def test_of_a_run_whose_cancel_was_asked_for_a_claim_makes_only_the_end(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.ask(c.cancel_run("alice", run.run_id, "enough"))
        assert await status(shop, run.run_id) == "running", "its owner lives, and has a moment"
        await die(shop, "worker")
        assert await shop.claim(worker="wrk_2") == []
        assert await status(shop, run.run_id) == "cancelled"
        (end,) = datas(await shop.events(run.thread), "agent_cancelled")
        assert end == {"by": "alice", "reason": "enough"}

    async def test_a_cancel_of_a_run_without_a_living_owner_ends_it_at_once(self, shop: Shop) -> None:
        run = await shop.running()
        await die(shop, "worker")
        assert await shop.ask(c.cancel_run("alice", run.run_id, None)) is True
        assert await status(shop, run.run_id) == "cancelled"
        assert await shop.claim(worker="wrk_2") == []

    async def test_past_its_deadline_a_cancel_is_enforced_by_whoever_looks(
        self, shop: Shop, clock: ManualClock
    ) -> None:
        run, other = await shop.running(), await shop.running()
        child = await called(shop, run)
        for run_id in (run.run_id, child.run_id):
            await shop.ask(c.cancel_run("alice", run_id, None))
        assert await shop.ask(c.end_stopping(10)) == []
        clock.time_us += round(c.CANCEL_DEADLINE_S * 1_000_000) + 1
        assert set(await shop.ask(c.end_stopping(10))) == {run.run_id, child.run_id}
        assert await status(shop, run.run_id) == await status(shop, child.run_id) == "cancelled"
        assert await status(shop, other.run_id) == "running"
        assert isinstance((await shop.outcomes(append(run, custom())))[0], StaleAttempt)

    # --- release ----------------------------------------------------------------------------------------------

    async def test_what_is_released_is_fenced_at_once_and_taken_up_by_the_next(self, shop: Shop) -> None:
        run, queued = await shop.running(), await shop.queued(await shop.thread())
        child = await called(shop, run)
        other = (await shop.claim(worker="wrk_2"))[0]
        assert await shop.ask(c.release_runs("worker")) == [run.run_id]
        outcomes = await shop.outcomes(append(run, custom()), child_append(child, 1), append(other, custom()))
        assert [type(outcome) for outcome in outcomes] == [StaleAttempt, StaleAttempt, type(None)]
        assert other.run_id == queued
        (claimed,) = await shop.claimed(worker="wrk_2")
        assert (claimed.run.run_id, claimed.run.attempt, claimed.reason) == (run.run_id, 2, "released")
        assert datas(await shop.events(run.thread), "attempt_superseded")[0]["reason"] == "released"

    # --- children ---------------------------------------------------------------------------------------------

    async def test_a_claim_of_the_root_fences_its_descendants(self, shop: Shop) -> None:
        root = await shop.running()
        child = await called(shop, root)
        grandchild = await called(shop, child, epoch=1)
        await shop.commit(child_append(child, 1, started("msg_c"), executing("act_c")))
        await die(shop, "worker")
        (new,) = await shop.claim(worker="wrk_2")
        outcomes = await shop.outcomes(
            child_append(child, 1, custom()),
            child_append(grandchild, 1, custom()),
            c.end_run(child.run_id, c.Completed(values.raw(1)), c.Fence(1, 1)),
        )
        assert [type(outcome) for outcome in outcomes] == [StaleAttempt] * 3
        head = (await shop.store.heads([root.thread]))[0]
        again = await called(shop, new, child=child.run_id)
        assert (again.run_id, again.attempt) == (child.run_id, 2)
        events = await shop.events(root.thread, after=head)
        assert [event.type for event in events] == ["tool_completed", "attempt_superseded", "agent_started"]
        assert {event.run_id for event in events} == {child.run_id}
        assert await shop.outcomes(child_append(again, 2, custom())) == [None]

    async def test_the_end_of_a_run_ends_what_it_called_first(self, shop: Shop) -> None:
        root = await shop.running()
        child = await called(shop, root)
        grandchild = await called(shop, child, epoch=1)
        await shop.commit(child_append(grandchild, 1, executing("act_g")))
        head = (await shop.store.heads([root.thread]))[0]
        await shop.end(root)
        events = await shop.events(root.thread, after=head)
        assert [(event.type, event.run_id) for event in events] == [
            ("tool_completed", grandchild.run_id),
            ("agent_cancelled", grandchild.run_id),
            ("agent_cancelled", child.run_id),
            ("agent_completed", root.run_id),
        ]

    async def test_a_child_that_has_ended_is_not_started_again(self, shop: Shop) -> None:
        root = await shop.running()
        child = await called(shop, root)
        await shop.ask(c.end_run(child.run_id, c.Completed(values.raw(7)), c.Fence(1, 1)))
        head = (await shop.store.heads([root.thread]))[0]
        assert (await called(shop, root, child=child.run_id)).status == "completed"
        assert await shop.store.heads([root.thread]) == [head]

    async def test_what_a_child_says_and_does_is_listed_on_demand_only(self, shop: Shop) -> None:
        root = await shop.running()
        child = await called(shop, root)
        await shop.commit(
            append(root, started("msg_r"), executing("act_r")),
            child_append(child, 1, started("msg_c"), executing("act_c")),
        )
        rows = shop.store.rows
        for children, names in ((False, ["r"]), (True, ["r", "c"])):
            wanted = query(root.thread_id, children=children)
            messages = (await rows.messages("alice", wanted)).items
            actions = (await rows.actions("alice", wanted)).items
            assert [message.message_id for message in messages] == [f"msg_{name}" for name in names]
            assert [action.action_id for action in actions] == [f"act_{name}" for name in names]

    async def test_a_threads_preview_is_of_what_its_own_runs_say(self, shop: Shop) -> None:
        root = await shop.running()
        child = await called(shop, root)
        await shop.commit(
            append(root, started("msg_root"), said("msg_root", "mine")),
            child_append(child, 1, started("msg_child"), said("msg_child", "inner")),
        )
        thread = await shop.store.rows.thread("alice", root.thread_id)
        assert thread is not None
        assert thread.last_message is not None
        assert thread.last_message.content == "mine"

    # --- waiting for people -------------------------------------------------------------------------------------

    async def test_a_run_waits_while_an_approval_is_open_and_only_then(self, shop: Shop, clock: ManualClock) -> None:
        run = await shop.running()
        await shop.commit(append(run, asked("apr_1", clock), asked("apr_2", clock)))
        assert await status(shop, run.run_id) == "waiting"
        assert (await shop.ask(c.resolve_approval("alice", "apr_1", YES))).taken
        assert await status(shop, run.run_id) == "waiting"
        assert (await shop.ask(c.resolve_approval("alice", "apr_2", NO))).taken
        assert await status(shop, run.run_id) == "running"

    async def test_a_root_waits_while_all_that_it_called_waits(self, shop: Shop, clock: ManualClock) -> None:
        root = await shop.running()
        first, second = await called(shop, root), await called(shop, root)
        await shop.commit(child_append(first, 1, asked("apr_1", clock)))
        assert [await status(shop, run.run_id) for run in (root, first, second)] == ["running", "waiting", "running"]
        await shop.commit(child_append(second, 1, asked("apr_2", clock)))
        assert [await status(shop, run.run_id) for run in (root, first, second)] == ["waiting"] * 3
        waiting = (await shop.store.rows.runs("alice", query(status="waiting"))).items
        assert len(waiting) == 3
        await shop.ask(c.resolve_approval("alice", "apr_1", YES))
        assert await status(shop, root.run_id) == "running"
        await shop.ask(c.end_run(first.run_id, c.Completed(values.raw(1)), c.Fence(1, 1)))
        assert await status(shop, root.run_id) == "waiting", "only the one that waits is left"

    async def test_a_waiting_run_is_claimed_when_it_is_answered_and_not_before(
        self, shop: Shop, clock: ManualClock
    ) -> None:
        run = await shop.running()
        await shop.commit(append(run, asked("apr_1", clock)))
        await die(shop, "worker")
        assert await shop.claim(worker="wrk_2") == []
        await shop.ask(c.resolve_approval("alice", "apr_1", YES))
        (new,) = await shop.claim(worker="wrk_2")
        assert (new.run_id, new.attempt) == (run.run_id, 2)
        (approval,) = (await shop.store.record(run.run_id)).approvals
        assert (approval.approval_id, approval.status) == ("apr_1", "approved")

    async def test_an_answer_is_taken_once_and_the_same_again_is_no_conflict(
        self, shop: Shop, clock: ManualClock
    ) -> None:
        run = await shop.running()
        await shop.commit(append(run, asked("apr_1", clock)))
        outcomes = await shop.outcomes(
            *[c.resolve_approval("alice", "apr_1", answer) for answer in (YES, NO, YES)],
        )
        assert [(outcome.status, outcome.taken) for outcome in outcomes] == [
            ("approved", True),
            ("approved", False),
            ("approved", True),
        ]
        assert (await shop.types(run.thread)).count("approval_resolved") == 1

    async def test_time_ends_what_nobody_decides(self, shop: Shop, clock: ManualClock) -> None:
        run = await shop.running()
        await shop.commit(append(run, asked("apr_1", clock, expires_in_us=10), asked("apr_2", clock, expires_in_us=10)))
        assert await shop.ask(c.expire_approvals(10)) == []
        clock.time_us += 10
        assert (await shop.ask(c.resolve_approval("alice", "apr_1", YES))).status == "expired"
        assert await shop.ask(c.expire_approvals(10)) == ["apr_2"]
        assert await shop.ask(c.expire_approvals(10)) == []
        assert await status(shop, run.run_id) == "running"
        assert [one.status for one in await shop.store.resolved(["apr_1", "apr_2", "apr_x"])] == ["expired"] * 2

    async def test_an_end_closes_open_approvals(self, shop: Shop, clock: ManualClock) -> None:
        run = await shop.running()
        await shop.commit(append(run, asked("apr_1", clock)))
        await shop.end(run)
        assert (await shop.types(run.thread))[-2:] == ["approval_resolved", "agent_completed"]
        assert (await shop.ask(c.resolve_approval("alice", "apr_1", YES))).status == "cancelled"

    # --- what is found again --------------------------------------------------------------------------------------

    async def test_the_record_holds_what_was_done_in_order_and_for_how_long_it_ran(
        self, shop: Shop, clock: ManualClock
    ) -> None:
        run = await shop.running()
        await shop.commit(append(run, stepped("one", "msg_x"), executing("act_1", input={"n": 1})))
        clock.time_us += 2_000_000
        await shop.commit(append(run, completed("act_1", output=5), asked("apr_1", clock)))
        clock.time_us += HOUR_US // 2
        await shop.ask(c.resolve_approval("alice", "apr_1", YES))
        clock.time_us += 3_000_000
        child = await called(shop, run)
        clock.time_us += HOUR_US
        await die(shop, "worker")
        clock.time_us += HOUR_US
        await shop.claim(worker="wrk_2")
        record = await shop.store.record(run.run_id)
        assert [(step.key, values.decode(step.output)) for step in record.steps] == [("one", "one")]
        (action,) = record.actions
        assert (action.action_id, action.status, values.decode(action.input)) == ("act_1", "success", {"n": 1})
        assert [(one.run_id, one.status) for one in record.children] == [(child.run_id, "running")]
        # two seconds, and nothing of the half hour in which it waited; its last sign of life was the question
        assert record.ran_us == 2_000_000

    async def test_facts_of_a_run_say_whether_a_living_worker_owns_it(self, shop: Shop) -> None:
        run = await shop.running()
        child = await called(shop, run)
        both = [looking(Need(run_id=row.run_id), lambda facts: facts.run) for row in (run, child)]
        assert [found.owned for found in await shop.outcomes(*both)] == [True, True]
        await die(shop, "worker")
        assert [found.owned for found in await shop.outcomes(*both)] == [False, False]


def child_append(child: RunRow, epoch: int, *data: e.Data) -> Append:
    return msgspec.structs.replace(append(child, *(data or (custom(),))), epoch=epoch)
