"""The table of a run's states: closed, as the contract says it, and drawn in the docs as it is."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from runstone import states
from runstone.events import TYPES
from runstone.states import FINISHED, TERMINAL_EVENTS, TRANSITIONS, UNFINISHED, Status

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
