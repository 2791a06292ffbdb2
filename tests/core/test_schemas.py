"""Anybody's answer is held against a schema: with the path of what is wrong, and at a cost that is bounded."""

from __future__ import annotations

import socket
import time
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from runstone import schemas
from runstone.errors import Invalid
from runstone.limits import INPUT_BYTES_MAX
from runstone.schemas import FAULTS_MAX, Fault
from runstone.values import Json


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Order(BaseModel):
    name: str
    counts: list[int] = []
    colour: Colour | None = None
    size: Literal["s", "m"] = "s"


def of(kind: Any) -> Json:
    schema: Json = TypeAdapter(kind).json_schema()
    return schema


def paths(kind: Any, value: Json) -> list[tuple[str | int, ...]]:
    return [fault.path for fault in schemas.faults(of(kind), value)]


def test_every_fault_is_told_with_its_path() -> None:
    assert paths(Order, {"name": "a", "counts": [1, 2], "colour": "red", "size": "m"}) == []
    assert set(paths(Order, {"counts": [1, "x", 2.5], "size": "l"})) == {(), ("counts", 1), ("counts", 2), ("size",)}
    assert schemas.faults(of(int), "secret") == [Fault((), 'this is not of type "integer"')], "without the value"
    assert len(schemas.faults(of(list[int]), ["x"] * 1000)) == FAULTS_MAX
    assert paths(list[int], ["x"] * 10_000) == [()], "of a large one only that it is wrong"


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (date, "2026-11-20", "tomorrow"),
        (datetime, "2026-11-20T08:15:00", "soon"),
        (clock_time, "10:00", "noon"),
        (timedelta, "PT5M", "a while"),
    ],
)
def test_a_format_takes_what_the_agent_can_read(kind: Any, good: str, bad: str) -> None:
    TypeAdapter(kind).validate_json(f'"{good}"')
    assert paths(kind, good) == []
    assert paths(kind, bad) == [()]


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["red", "blue", "s", "m", "x"]),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(list(Order.model_fields)), inner),
        max_leaves=8,
    )
)
def test_what_has_no_fault_is_what_the_agent_can_read(value: Json) -> None:
    if not schemas.faults(of(Order), value):
        try:
            TypeAdapter(Order).validate_python(value)
        except ValidationError as error:
            raise AssertionError(f"{value} was let through") from error


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"$ref": "#/$defs/absent"}, {"pattern": "("}, [1], 5, {"$ref": "file:///etc/hostname"}],
)
def test_what_is_no_schema_is_refused(schema: Json) -> None:
    with pytest.raises(Invalid) as caught:
        schemas.check(schema)
    assert caught.value.errors[0]["path"] == "schema"


def test_nothing_that_a_schema_refers_to_is_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema"
        with pytest.raises(Invalid):
            schemas.check({"$ref": url})
        with pytest.raises(Invalid):
            schemas.check({"type": "string", "$defs": {"unused": {"$ref": url}}})
        with pytest.raises(BlockingIOError):
            server.accept()


def nested(depth: int) -> Json:
    value: Json = "wrong"
    for _ in range(depth):
        value = [value]
    return value


ROWS = INPUT_BYTES_MAX // 2
DEPTH = 16  # half a minute without a bound; deeper, and the test would not end to say so
TREE: Json = {
    "anyOf": [
        {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
        {"type": "array", "items": {"$ref": "#/$defs/Tree"}, "maxItems": 5},
        {"type": "integer"},
    ]
}
PATHOLOGICAL: dict[str, tuple[Json, Json]] = {
    "a tree in which every level may be read in two ways": (
        {"$defs": {"Tree": TREE}, "$ref": "#/$defs/Tree"},
        nested(DEPTH),
    ),
    "the same without a name": (
        {
            "anyOf": [
                {"type": "array", "items": {"$ref": "#"}},
                {"type": "array", "items": {"$ref": "#"}, "maxItems": 9},
            ]
        },
        nested(DEPTH),
    ),
    "a pattern that backtracks": ({"pattern": "^(a+)+$"}, "a" * ROWS + "b"),
    "a pattern that has to backtrack": ({"pattern": r"^(a|a)*(?=b)\1c$"}, "a" * ROWS + "d"),
    "many items that must differ": ({"uniqueItems": True}, [*range(ROWS // 3), 0]),
    "many items that are all wrong": ({"items": {"type": "integer"}}, ["" for _ in range(ROWS // 2)]),
    "many items that are wrong in two ways": (
        {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        ["" for _ in range(ROWS // 2)],
    ),
}


@pytest.mark.parametrize(("schema", "value"), PATHOLOGICAL.values(), ids=PATHOLOGICAL.keys())
def test_no_answer_costs_more_than_a_moment(schema: Json, value: Json) -> None:
    schemas.check(schema)
    started = time.monotonic()
    assert schemas.faults(schema, value)
    assert time.monotonic() - started < 5  # without bounds it is hours; with them, milliseconds on a quiet machine
