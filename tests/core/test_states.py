"""The table of a run's states: closed, as the contract says it, and drawn in the docs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from hypothesis import given
from hypothesis import strategies as st

from runstone import states
from runstone.events import TYPES
from runstone.states import FINISHED, TERMINAL_EVENTS, TRANSITIONS, UNFINISHED, Member, Status, standing

ROOT = Path(__file__).parents[2]


def test_every_status_has_its_row_and_every_move_leads_to_one() -> None:
    assert set(TRANSITIONS) == {None, *get_args(Status)}
    assert {target for moves in TRANSITIONS.values() for target in moves.values()} == set(get_args(Status))
    assert set(get_args(Status)) == UNFINISHED | FINISHED
    assert not UNFINISHED & FINISHED


def test_every_move_is_made_by_an_event_that_exists() -> None:
    assert {event for moves in TRANSITIONS.values() for event in moves} <= set(TYPES)


def test_an_end_is_for_ever_and_reached_only_by_a_terminal_event() -> None:
    for status in FINISHED:
        assert TRANSITIONS[status] == {}
    for moves in TRANSITIONS.values():
        for event, target in moves.items():
            assert (target in FINISHED) == (event in TERMINAL_EVENTS)


def test_every_unfinished_run_can_fail_and_be_cancelled() -> None:
    for status in UNFINISHED:
        assert states.after(status, "agent_failed") == "failed"
        assert states.after(status, "agent_cancelled") == "cancelled"


def test_the_moves_are_those_of_the_contract() -> None:
    moves = {
        (source, target) for source, events in TRANSITIONS.items() for target in events.values() if source != target
    }
    assert moves == {
        (None, "queued"),
        ("queued", "running"),
        ("queued", "failed"),
        ("queued", "cancelled"),
        ("running", "waiting"),
        ("waiting", "running"),
        *((source, target) for source in ("running", "waiting") for target in ("completed", "failed", "cancelled")),
    }


def test_before_is_after_read_backwards() -> None:
    for event in TYPES:
        assert states.before(event) == {status for status in get_args(Status) if states.after(status, event)}


def test_the_diagram_of_the_docs_is_made_from_the_table() -> None:
    assert states.diagram() in (ROOT / "ARCHITECTURE.md").read_text()


@st.composite
def families(draw: st.DrawFn) -> dict[str, Member]:
    """A root and its descendants, in any order: each has a parent that was drawn before it."""
    found: dict[str, Member] = {}
    for number in range(draw(st.integers(1, 8))):
        parent = draw(st.sampled_from(sorted(found))) if found else None
        status: Status = draw(st.sampled_from(["queued", "running", "waiting"]))
        found[f"run{number}"] = Member(parent, status, draw(st.integers(0, 2)))
    return {run_id: found[run_id] for run_id in draw(st.permutations(sorted(found)))}


def works(family: dict[str, Member], run_id: str) -> bool:
    """The rule said the other way round: somebody at the ends of the calls, all the way free of questions, works."""
    member = family[run_id]
    if member.status == "queued":
        return True
    called = [id for id, other in family.items() if other.parent == run_id]
    return not member.open_approvals and (not called or any(works(family, child) for child in called))


@given(families())
def test_a_family_stands_as_its_open_questions_say(family: dict[str, Member]) -> None:
    found = standing(family)
    assert set(found) == set(family)
    for run_id, status in found.items():
        queued = family[run_id].status == "queued"
        assert (status == "queued") == queued
        assert (status != "waiting") == works(family, run_id)


@given(families())
def test_where_a_family_stands_does_not_depend_on_where_it_stood_or_on_its_order(family: dict[str, Member]) -> None:
    found = standing(family)
    again = {run_id: member._replace(status=found[run_id]) for run_id, member in sorted(family.items())}
    assert standing(again) == found


@given(families())
def test_nobody_waits_in_a_family_without_an_open_question(family: dict[str, Member]) -> None:
    assert "waiting" not in standing({run_id: m._replace(open_approvals=0) for run_id, m in family.items()}).values()
