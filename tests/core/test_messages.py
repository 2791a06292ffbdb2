"""A message is the fold of its events, however they were cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone import events as e
from runstone import values
from runstone.messages import MessageFold, text_of
from tests.stores.making import said, thought


@given(st.lists(st.tuples(st.booleans(), st.text(max_size=3)), max_size=30))
def test_the_fold_of_deltas_is_their_text_part_by_part(pieces: list[tuple[bool, str]]) -> None:
    fold = MessageFold()
    expected: list[dict[str, str]] = []
    for reasoning, text in pieces:
        kind = "reasoning" if reasoning else "text"
        if not expected or expected[-1]["type"] != kind:
            expected.append({"type": kind, "text": ""})
        make = thought if reasoning else said
        fold.feed(make("msg_1", text, part=len(expected) - 1, offset=len(expected[-1]["text"])))
        expected[-1]["text"] += text
    assert fold.parts() == expected
    assert fold.length == sum(len(part["text"]) for part in expected if part["type"] == "text")
    assert values.decode(fold.encoded()) == expected
    assert text_of(fold.parts()) == "".join(part["text"] for part in expected if part["type"] == "text")


def test_whole_parts_stand_between_texts() -> None:
    value = {"type": "data", "value": [1]}
    fold = MessageFold(
        [said("m", "a"), e.MessagePart(message_id="m", part=1, value=values.raw(value)), said("m", "b", part=2)]
    )
    assert fold.parts() == [{"type": "text", "text": "a"}, value, {"type": "text", "text": "b"}]
    assert fold.length == 2


def test_a_part_out_of_order_or_of_another_kind_is_a_contradiction() -> None:
    for wrong in (thought("m", "x"), e.MessagePart(message_id="m", part=2, value=values.raw({}))):
        fold = MessageFold([said("m", "a")])
        with pytest.raises(AssertionError):
            fold.feed(wrong)
