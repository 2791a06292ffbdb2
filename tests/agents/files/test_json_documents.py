"""JSON is described item by item, as far as it goes."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runstone.agents.files.json_documents import Key, profile_json, profile_json_lines

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, indent=st.sampled_from([None, 2]))
@example(value=[], indent=2)
@example(value={}, indent=2)
def test_every_valid_document_is_read_to_its_end(value, indent):
    shape = profile_json(json.dumps(value, indent=indent))
    assert (shape.problem, shape.broken) == (None, 0)
    assert shape.items == (len(value) if isinstance(value, list | dict) else 1)


@given(value=VALUES, data=st.data())
def test_a_document_cut_anywhere_is_called_cut_not_broken(value, data):
    text = json.dumps(value)
    shape = profile_json(text[: data.draw(st.integers(0, len(text)))], cut=True)
    assert (shape.problem, shape.broken) == (None, 0)


@pytest.mark.parametrize("text", ["", "[1,]", "[1 2]", '{"a" 1}', "{1: 2}", "[1] x", '{"a": nope}', "[1", '{"a":1'])
def test_a_broken_document_says_where(text):
    assert "line 1" in (profile_json(text).problem or "")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_document_nested_beyond_reason_is_an_answer(opening):
    assert profile_json(opening * 200_000).problem == "nested too deeply"
    assert profile_json_lines(opening * 200_000).broken == 1


def test_json_keys_are_counted_with_their_types():
    shape = profile_json('[{"id": 1, "name": "a"}, {"id": null}, 3]')
    assert (shape.type, shape.items, shape.types) == ("array", 3, {"number": 1, "object": 2})
    assert shape.keys == [Key("id", 2, {"null": 1, "number": 1}), Key("name", 1, {"string": 1})]


def test_json_lines_count_what_is_broken():
    shape = profile_json_lines('{"a": 1}\n\nnope\n{"a": 2}\n')
    assert (shape.items, shape.broken) == (2, 1)
    assert (shape.problem or "").startswith("line 3")


def test_a_line_that_the_cut_went_through_is_left_away():
    shape = profile_json_lines('{"a": 1}\n{"a"', cut=True)
    assert (shape.items, shape.broken, shape.problem) == (1, 0, None)
