"""Approvals as people list and decide them."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from runstone import commands as c
from runstone import values
from runstone.clock import to_rfc3339
from runstone.errors import Invalid, NotFound
from runstone.limits import LIST_BYTES_MAX
from runstone.resources import Approval
from tests.stores.making import Shop, append, asking, datas, query
from tests.stores.promises.base import Promises
from tests.support.clocks import ManualClock

YES = c.Answer(decision="approved")


async def ids(shop: Shop, user_id: str = "alice", **filters: Any) -> list[str]:
    listing = await shop.store.rows.approvals(user_id, query(**filters))
    return [approval.approval_id for approval in listing.items]


async def one(shop: Shop, approval_id: str) -> Approval:
    found = await shop.store.rows.approval("alice", approval_id)
    assert found is not None
    return found


class Approvals(Promises):
    async def test_an_approval_shows_what_was_asked_and_what_became_of_it(self, shop: Shop, clock: ManualClock) -> None:
        run = await shop.running()
        schema = values.raw({"type": "integer"})
        asked_at, expires_at = clock.time_us, clock.time_us + 1_000_000
        question = asking("apr_1", to_rfc3339(expires_at), kind="question", prompt="How many? 🗿\0", schema=schema)
        await shop.commit(append(run, question, asking("apr_2", input=values.raw({"n": 1}), action_id="act_1")))
        opened = await one(shop, "apr_1")
        assert opened.model_dump(mode="json") == {
            "approval_id": "apr_1",
            "thread_id": run.thread_id,
            "run_id": run.run_id,
            "action_id": None,
            "kind": "question",
            "prompt": "How many? 🗿\0",
            "input": None,
            "input_hash": values.digest(b"null"),
            "schema": {"type": "integer"},
            "status": "open",
            "value": None,
            "by": None,
            "comment": None,
            "created_at": to_rfc3339(asked_at),
            "expires_at": to_rfc3339(expires_at),
            "resolved_at": None,
        }
        clock.time_us += 1
        answer = c.Answer(decision="answered", value=values.raw(3), comment="counted")
        assert await shop.ask(c.resolve_approval("alice", "apr_1", answer)) == c.Answered("answered", True)
        answered = await one(shop, "apr_1")
        told = {"status": "answered", "value": 3, "by": "alice", "comment": "counted"}
        assert answered.model_dump(include=set(told)) == told
        assert answered.resolved_at is not None
        other = await one(shop, "apr_2")
        assert (other.status, other.action_id, other.input, other.schema_) == ("open", "act_1", {"n": 1}, None)

    @pytest.mark.parametrize("descending", [False, True])
    async def test_a_list_of_approvals_read_page_by_page_has_everything_once(
        self, shop: Shop, clock: ManualClock, descending: bool
    ) -> None:
        run = await shop.running()
        for number in range(7):
            clock.time_us += number % 2  # some at the same time
            await shop.commit(append(run, asking(f"apr_{number}")))
        found: list[Approval] = []
        asked = query(limit=3, descending=descending)
        while True:
            page = await shop.store.rows.approvals("alice", asked)
            assert 1 <= len(page.items) <= 3
            found += page.items
            if page.next_cursor is None:
                break
            asked = msgspec.structs.replace(asked, cursor=page.next_cursor)
        assert [approval.approval_id for approval in found] == [f"apr_{number}" for number in range(7)][
            :: -1 if descending else 1
        ]

    async def test_a_list_of_large_approvals_comes_in_pages_bounded_in_bytes(self, shop: Shop) -> None:
        run = await shop.running()
        large = values.raw("x" * 400_000)
        for number in range(12):
            await shop.commit(append(run, asking(f"apr_{number:02}", input=large)))
        page = await shop.store.rows.approvals("alice", query())
        assert page.next_cursor is not None
        assert sum(len(str(approval.input)) for approval in page.items) <= LIST_BYTES_MAX + len(large)
        rest = await shop.store.rows.approvals("alice", query(cursor=page.next_cursor))
        assert [item.approval_id for item in (*page.items, *rest.items)] == [f"apr_{n:02}" for n in range(12)]

    async def test_approvals_are_listed_by_status_by_thread_and_by_run_with_its_descendants(self, shop: Shop) -> None:
        root, other = await shop.running(), await shop.running()
        new = c.NewChild(agent="child", input=values.raw(None), key=None, max_attempts=3, timeout_s=60)
        child = await shop.ask(c.call_agent(root, root.attempt, new, child=None, reason="lost"))
        grandchild = await shop.ask(c.call_agent(child, root.attempt, new, child=None, reason="lost"))
        await shop.commit(
            append(other, asking("apr_other")),
            append(root, asking("apr_root")),
            append(child, asking("apr_child")),
            append(grandchild, asking("apr_grandchild")),
            c.resolve_approval("alice", "apr_child", YES),
        )
        assert await ids(shop) == ["apr_child", "apr_grandchild", "apr_other", "apr_root"]
        assert await ids(shop, run_id=root.run_id) == ["apr_child", "apr_grandchild", "apr_root"]
        assert await ids(shop, run_id=child.run_id) == ["apr_child", "apr_grandchild"]
        assert await ids(shop, run_id=grandchild.run_id, status="open") == ["apr_grandchild"]
        assert await ids(shop, status="open") == ["apr_grandchild", "apr_other", "apr_root"]
        assert await ids(shop, status="approved") == ["apr_child"]
        assert await ids(shop, thread_id=other.thread_id) == ["apr_other"]
        assert await ids(shop, run_id="run_unknown") == []

    async def test_approvals_of_others_and_of_deleted_threads_are_not_there(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.commit(append(run, asking("apr_1")))
        for user in ("bob", "", "ALICE"):
            assert await ids(shop, user) == []
            assert await ids(shop, user, run_id=run.run_id) == []
            assert await shop.store.rows.approval(user, "apr_1") is None
            with pytest.raises(NotFound):
                await shop.ask(c.resolve_approval(user, "apr_1", YES))
        await shop.ask(c.delete_thread("alice", run.thread_id))
        assert await ids(shop) == []
        assert await shop.store.rows.approval("alice", "apr_1") is None
        with pytest.raises(NotFound):
            await shop.ask(c.resolve_approval("alice", "apr_1", YES))
        (closed,) = datas(await shop.events(run.thread), "approval_resolved")
        assert closed == {"approval_id": "apr_1", "decision": "cancelled"}

    async def test_of_two_decisions_in_one_batch_the_first_stands(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.commit(append(run, asking("apr_1")))
        no = c.Answer(decision="denied")
        outcomes = await shop.outcomes(*[c.resolve_approval("alice", "apr_1", answer) for answer in (no, YES, no)])
        assert outcomes == [c.Answered("denied", True), c.Answered("denied", False), c.Answered("denied", True)]
        assert len(datas(await shop.events(run.thread), "approval_resolved")) == 1

    async def test_an_answer_is_the_same_only_with_the_same_value(self, shop: Shop) -> None:
        run = await shop.running()
        await shop.commit(append(run, asking("apr_1", kind="question")))
        answers = [c.Answer(decision="answered", value=values.raw(value)) for value in (None, None, 0)]
        outcomes = await shop.outcomes(*[c.resolve_approval("alice", "apr_1", answer) for answer in answers])
        assert [outcome.taken for outcome in outcomes] == [True, True, False]

    async def test_a_decision_that_comes_too_late_is_not_taken_and_says_so_for_ever(
        self, shop: Shop, clock: ManualClock
    ) -> None:
        run = await shop.running()
        await shop.commit(append(run, asking("apr_1", to_rfc3339(clock.time_us + 10))))
        clock.time_us += 10
        for _ in range(2):
            assert await shop.ask(c.resolve_approval("alice", "apr_1", YES)) == c.Answered("expired", False)
        (resolved,) = datas(await shop.events(run.thread), "approval_resolved")
        assert resolved == {"approval_id": "apr_1", "decision": "expired"}

    async def test_a_cursor_of_another_list_is_refused(self, shop: Shop) -> None:
        with pytest.raises(Invalid):
            await shop.store.rows.approvals("alice", query(cursor="x"))
