"""What each event changes: as the table of states says, and only in tables that are derived from the log."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_type_hints

import pytest

from runstone import events as e
from runstone import projection, values
from runstone.projection import ACTIVITY, KEYS, Place, Table, changes
from runstone.states import TRANSITIONS
from tests.core.test_events import filled

PLACE = Place("thr_1", "alice", pos=9, seq=7, time_us=1_000)


def draft(name: str) -> e.Draft:
    return e.Draft(data=filled(e.TYPES[name], all_fields=True), run_id="run_1", attempt=1, content=b"[]")


@pytest.mark.parametrize("name", e.TYPES)
def test_every_event_changes_known_tables_by_their_keys(name: str) -> None:
    for change in changes(draft(name), PLACE):
        assert change.table in KEYS
        assert len(change.key) == len(KEYS[change.table])
        assert not set(change.columns) & set(KEYS[change.table])
        assert (change.op == "delete") <= (not change.columns)


@pytest.mark.parametrize("name", e.TYPES)
def test_a_run_gets_the_status_that_the_table_of_states_says(name: str) -> None:
    reached = {moves[name] for moves in TRANSITIONS.values() if name in moves}
    said = {
        change.columns["status"]
        for change in changes(draft(name), PLACE)
        if change.table == "runs" and "status" in change.columns
    }
    if name.startswith("approval_"):
        assert said == set()  # where a run stands then is a matter of its whole family: states.standing
    else:
        assert said == reached


@pytest.mark.parametrize("name", e.TYPES)
def test_activity_moves_the_thread_and_its_run_to_the_front(name: str) -> None:
    moved = {
        change.table
        for change in changes(draft(name), PLACE)
        if change.op == "update" and change.columns.get("updated_at") == PLACE.time_us
    }
    if name == "user_message":
        assert moved == {"threads"}
    else:
        assert moved == ({"threads", "runs"} if name in ACTIVITY else set())


def test_deltas_change_no_row() -> None:
    for name in ("message_delta", "agent_thinking", "message_part", "tool_output", "tool_input", "custom"):
        assert changes(draft(name), PLACE) == []


def test_every_table_has_its_keys() -> None:
    assert set(KEYS) == set(get_args(Table))


def test_text_in_rows_is_mended_as_it_is_in_events() -> None:
    data = e.StateChanged(key="\ud800", value=values.raw("\udc00"))
    _, insert = changes(e.Draft(data=data, run_id="run_1", attempt=1), PLACE)
    assert insert.key == ("thr_1", "\ufffd")
    assert insert.columns["value"] == '"\ufffd"'.encode()


def test_a_null_deletes_a_state_key() -> None:
    data = e.StateChanged(key="k", value=values.raw(None))
    assert [change.op for change in changes(e.Draft(data=data, run_id="r", attempt=1), PLACE)] == ["delete"]


def test_an_event_of_a_run_has_one() -> None:
    with pytest.raises(AssertionError, match="event of a run"):
        projection.changes(e.Draft(data=filled(e.AgentStarted, all_fields=True)), PLACE)


@pytest.mark.parametrize("name", e.TYPES)
def test_what_moves_a_thread_in_lists_moves_it_in_the_feed(name: str) -> None:
    moved = [change for change in changes(draft(name), PLACE) if change.columns.get("activity_pos") == PLACE.pos]
    assert bool(moved) == (name in ACTIVITY or name == "thread_deleted")
    assert {change.table for change in moved} <= {"threads"}


@pytest.mark.parametrize(("reason", "lost"), [("lost", 1), ("released", 0)])
def test_only_a_lost_attempt_is_counted_as_lost(reason: Literal["lost", "released"], lost: int) -> None:
    data = e.AttemptSuperseded(attempt=1, reason=reason, messages=("msg_1",))
    *messages, run = changes(e.Draft(data=data, run_id="run_1"), PLACE)
    assert [(change.key, change.columns) for change in messages] == [(("msg_1",), {"status": "superseded"})]
    assert run.table == "runs"
    assert run.add == {"lost": lost}


def test_a_step_is_a_row_of_its_run_and_key() -> None:
    data = e.StepCompleted(key="k", output=values.raw(1))
    (change,) = changes(e.Draft(data=data, run_id="run_1", attempt=1), PLACE)
    assert (change.op, change.table, change.key) == ("insert", "steps", ("run_1", "k"))
    assert (change.columns["output"], change.columns["inner"], change.columns["seq"]) == (b"1", b"[]", 7)


@pytest.mark.parametrize("decision", get_args(get_type_hints(e.ApprovalResolved)["decision"]))
def test_an_approval_is_open_until_it_is_resolved(decision: Any) -> None:
    (requested, *_) = changes(draft("approval_requested"), PLACE)
    assert (requested.op, requested.table, requested.columns["status"]) == ("insert", "approvals", "open")
    data = e.ApprovalResolved(approval_id="apr_1", decision=decision)
    (resolved, *_) = changes(e.Draft(data=data, run_id="run_1"), PLACE)
    assert (resolved.op, resolved.table, resolved.key) == ("update", "approvals", ("apr_1",))
    assert (resolved.columns["status"], resolved.columns["resolved_at"]) == (decision, PLACE.time_us)
