"""Canonical JSON: one encoding per value, the same in every store, and a path for what is not JSON."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone import values
from runstone.errors import BadJson, Invalid
from runstone.events import MessageStarted
from runstone.limits import JSON_DEPTH_MAX

texts = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too
numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
jsons = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def mended(value: Any) -> Any:
    if isinstance(value, str):
        return values.mend(value)
    if isinstance(value, list):
        return [mended(item) for item in value]
    if isinstance(value, dict):
        return {mended(key): mended(item) for key, item in value.items()}
    return value


@given(jsons)
def test_a_value_comes_back_as_it_went_in_with_its_texts_mended(value: Any) -> None:
    assert values.decode(values.encode(value)) == mended(value)


@given(jsons)
def test_encoding_is_canonical_whatever_the_order_of_keys(value: Any) -> None:
    encoded = values.encode(value)
    assert values.encode(values.decode(encoded)) == encoded

    def turned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: turned(value[key]) for key in reversed(value)}
        return [turned(item) for item in value] if isinstance(value, list) else value

    assert values.encode(turned(mended(value))) == encoded


@given(jsons)
def test_others_read_what_we_write_and_we_read_what_they_write(value: Any) -> None:
    encoded = values.encode(value)
    assert json.loads(encoded) == mended(value)
    assert values.encode(values.parse(json.dumps(mended(value)))) == encoded


def test_the_form_of_the_encoding() -> None:
    assert (
        values.encode({"b": [1, 1.5, None, True], "a": "é🗿\0\n"})
        == '{"a":"é🗿\\u0000\\n","b":[1,1.5,null,true]}'.encode()
    )
    assert values.encode((1, (2,))) == b"[1,[2]]"
    assert values.encode(2**64 - 1) == b"18446744073709551615"
    assert values.encode({"raw": msgspec.Raw(b'{"z":1}')}) == b'{"raw":{"z":1}}'
    assert values.digest(b"{}") == hashlib.sha256(b"{}").hexdigest()


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (math.nan, "."),
        ([1, math.inf], "[1]"),
        ({"a": {"b": [-math.inf]}}, "a.b[0]"),
        (2**64, "."),
        ({"n": -(2**63) - 1}, "n"),
        ({1: 2}, "."),
        ({"a": {None: 1}}, "a"),
        ({"a": [object()]}, "a[0]"),
        (b"bytes", "."),
        ({"s": {1, 2}}, "s"),
    ],
)
def test_what_is_not_json_is_refused_with_its_path(value: object, path: str) -> None:
    with pytest.raises(Invalid) as caught:
        values.encode(value)
    assert caught.value.errors[0]["path"] == path


def test_depth_is_bounded() -> None:
    value: Any = 1
    for _ in range(JSON_DEPTH_MAX):
        value = [value]
    values.encode(value)
    with pytest.raises(Invalid, match="deeper"):
        values.encode([value])


@pytest.mark.parametrize(
    "text", ["", "{", "NaN", "[Infinity]", '{"a":-Infinity}', "'a'", "[" * 100_000, "1" * 5000, b"\xff"]
)
def test_what_is_not_json_from_outside_is_refused(text: str | bytes) -> None:
    with pytest.raises(BadJson):
        values.parse(text)


@given(st.lists(texts))
def test_mending_joins_pairs_and_replaces_lone_halves(pieces: list[str]) -> None:
    text = "".join(pieces)
    whole = values.mend(text)
    whole.encode()  # it is UTF-8 now
    assert values.mend(whole) == whole
    assert whole == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def test_a_record_is_mended_too() -> None:
    record = MessageStarted(message_id="msg_\ud800", role="assistant")
    assert values.encode_record(record) == '{"message_id":"msg_\ufffd","role":"assistant"}'.encode()
