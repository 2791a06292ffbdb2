"""The Python client passes the cases of `conformance/`, in each of the ways that its README names."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from runstone.client import Event, ThreadView
from runstone.client.rules import RULES
from runstone.resources import Resource
from runstone.values import Json

FOLDER = Path(__file__).parents[2] / "conformance"
START = datetime(2026, 11, 20, 8, tzinfo=UTC)
TIMES = ("_at", "expected_recovery", "since")
MEMBERS = {"type", "data", "seq", "thread_id", "run_id", "attempt", "metadata"}


def cases() -> Iterator[Any]:
    for file in sorted((FOLDER / "cases").glob("*.yaml")):
        for case in yaml.safe_load(file.read_text())["cases"]:
            yield pytest.param(case, id=f"{file.stem}: {case['name']}")


def event(given: dict[str, Any], before: int) -> Event:
    """The event, with the defaults of what the case does not speak of."""
    assert given.keys() <= MEMBERS, "a case speaks of members that nobody would read"
    seq = given.get("seq", before + 1)
    return Event(
        seq=seq,
        thread_id=given.get("thread_id", "thr_1"),
        run_id=given.get("run_id"),
        attempt=given.get("attempt"),
        user_id="alice",
        type=given["type"],
        time=START + timedelta(seconds=seq),
        data=given["data"],
        metadata=given.get("metadata"),
        raw=None,
    )


def events(case: dict[str, Any]) -> list[Event]:
    found: list[Event] = []
    for given in case["events"]:
        found.append(event(given, found[-1].seq if found else 0))
    return found


def fed(view: ThreadView, events: list[Event]) -> ThreadView:
    for one in events:
        view.feed(one)
    return view


def shown(view: ThreadView) -> dict[str, Json]:
    """All that the view shows, under the names of the cases."""
    lists: dict[str, Sequence[Resource]] = {
        "messages": view.messages(),
        "all_messages": view.messages(children=True, superseded=True),
        "actions": view.actions(),
        "all_actions": view.actions(children=True),
        "runs": view.runs(),
        "approvals": view.approvals(),
        "retrying": view.retrying(),
    }
    return {
        "thread": None if view.thread is None else view.thread.model_dump(mode="json", by_alias=True),
        "state": view.state,
        **{name: [item.model_dump(mode="json", by_alias=True) for item in items] for name, items in lists.items()},
    }


def check(view: ThreadView, expected: dict[str, Any]) -> None:
    seen = shown(view)
    for name, wanted in expected.items():
        if name == "live_output":
            assert {id: view.live_output(id) for id in wanted} == wanted
        elif name == "state":
            assert seen["state"] == wanted
        elif name != "at":
            compare(seen[name], wanted, f"{name} at {view.seq}")


def compare(seen: Any, wanted: Any, place: str) -> None:
    """Of resources the members that are wanted; of lists all items; of anything else all."""
    if isinstance(wanted, list):
        assert len(seen) == len(wanted), f"{place}: {seen}"
        for number, (one, other) in enumerate(zip(seen, wanted, strict=True)):
            compare(one, other, f"{place}[{number}]")
    elif isinstance(wanted, dict):
        assert seen is not None, place
        for name, value in wanted.items():
            found = seen.get(name)
            if name in {"error", "usage", "last_message"} and value is not None:
                compare(found, value, f"{place}.{name}")
            elif name.endswith(TIMES) and value is not None:
                assert time(found) == time(value), f"{place}.{name}"
            else:
                assert found == value, f"{place}.{name}: {found!r}"
    else:
        assert seen == wanted, place


def time(text: Json) -> datetime:
    return datetime.fromisoformat(cast(str, text))


CASES = list(cases())


@pytest.mark.parametrize("case", CASES)
def test_on_the_way_and_at_the_end_the_view_shows_what_the_case_expects(case: dict[str, Any]) -> None:
    view, fed_up_to = ThreadView(), 0
    given = events(case)
    assert [expected.get("at", given[-1].seq) for expected in case["expect"]] == sorted(
        {expected.get("at", given[-1].seq) for expected in case["expect"]}
    ), "expectations stand in the order of their events"
    for expected in case["expect"]:
        at = expected.get("at", given[-1].seq)
        fed(view, [one for one in given if fed_up_to < one.seq <= at])
        fed_up_to = at
        check(view, expected)
    assert view.seq == given[-1].seq, "the last expectation is of the end"


@pytest.mark.parametrize("case", CASES)
def test_a_view_that_was_kept_at_any_cut_goes_on_to_the_same_end(case: dict[str, Any]) -> None:
    given = events(case)
    whole = shown(fed(ThreadView(), given))
    view = ThreadView()
    for cut, one in enumerate(given):
        kept = copy.deepcopy(view)
        assert shown(fed(kept, given[cut:])) == whole, f"cut before event {one.seq}"
        view.feed(one)
        assert kept.seq == given[-1].seq, "the copy went on by itself"
    assert shown(view) == whole


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_the_next_event_is_refused_and_changes_nothing(case: dict[str, Any]) -> None:
    given = events(case)
    last = given[-1]
    refused = [event(one, last.seq) for one in case.get("refuses", ())]
    refused += [*given, event({"type": "custom", "data": {}, "thread_id": "thr_other"}, last.seq)]
    view = fed(ThreadView(), given)
    before = shown(view)
    for one in refused:
        with pytest.raises(ValueError, match=r"came after|came into the view|is missing"):
            view.feed(one)
        assert shown(view) == before


def test_every_event_type_that_changes_the_view_is_in_a_case() -> None:
    spoken_of = {given["type"] for case in CASES for given in case.values[0]["events"]}
    assert spoken_of >= RULES.keys()
