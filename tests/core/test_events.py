"""Events: every type there and back, envelopes, bounds, and what is private."""

from __future__ import annotations

import json
from typing import Any, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw, UnsetType

from runstone import events as e
from runstone import values
from runstone.errors import TooLarge
from runstone.limits import EVENT_BYTES_MAX


def sample(hint: Any, number: int) -> Any:
    """Some value of a field's type."""
    arguments = [argument for argument in get_args(hint) if argument not in {UnsetType, type(None)}]
    if hint is Raw or Raw in arguments:
        return values.raw({"n": number, "a": [None, "é"]})
    if str(get_origin(hint)) == "typing.Literal":
        return get_args(hint)[number % len(get_args(hint))]
    if get_origin(hint) is tuple:
        return ("msg_1", "msg_2")
    if arguments:
        return sample(arguments[0], number)
    return {str: f"text {number} 🗿", int: number, float: number + 0.5, bool: True}[hint]


def filled(kind: type[e.Data], *, all_fields: bool) -> e.Data:
    hints = get_type_hints(kind)
    fields = msgspec.structs.fields(kind)
    given = [field.name for field in fields if all_fields or field.required]
    values_ = {name: sample(hints[name], number) for number, name in enumerate(given)}
    if "parts" in values_:
        values_["parts"] = values.raw([{"type": "text", "text": "é"}])
    if "expires_at" in values_:
        values_["expires_at"] = "2026-11-20T08:15:30.123456Z"
    return kind(**values_)


@pytest.mark.parametrize("all_fields", [True, False])
@pytest.mark.parametrize("name", e.TYPES)
@pytest.mark.parametrize("extra", [{}, {"metadata": {"m": 1}}, {"raw": ["r"]}, {"metadata": {}, "raw": None}])
def test_every_type_comes_back_as_it_was_stored(name: str, all_fields: bool, extra: dict[str, Any]) -> None:
    data = filled(e.TYPES[name], all_fields=all_fields)
    draft = e.Draft(data=data)
    for key, value in extra.items():
        setattr(draft, key, values.raw(value))
    payload = draft.payload()
    assert draft.type == name
    found = e.data_of(name, payload)
    assert type(found) is type(data)
    assert values.encode_record(found) == values.encode_record(data)
    assert values.encode(json.loads(payload)["data"]) == values.encode_record(data), "the bytes are canonical"
    stored = msgspec.json.decode(payload, type=e.Payload)
    for key in ("metadata", "raw"):
        kept = getattr(stored, key)
        assert (kept is not None) == (key in extra)
        if kept is not None:
            assert values.decode(kept) == extra[key]


@pytest.mark.parametrize("name", e.TYPES)
def test_fields_of_a_newer_version_are_ignored(name: str) -> None:
    data = filled(e.TYPES[name], all_fields=True)
    members = json.loads(values.encode_record(data)) | {"from_the_future": {"x": 1}}
    payload = values.encode({"data": members, "also_new": 7})
    assert values.encode_record(e.data_of(name, payload)) == values.encode_record(data)


def test_every_record_has_one_name_and_every_name_one_record() -> None:
    assert len(e.TYPE_OF) == len(e.TYPES)
    assert {e.TYPE_OF[kind] for kind in e.TYPES.values()} == set(e.TYPES)


def test_what_is_absent_is_omitted_from_the_envelope() -> None:
    payload = e.Draft(data=e.ThreadDeleted(by="alice")).payload()
    wire = e.envelope(1, e.envelope_head("thr_1", None, None, "alice"), "thread_deleted", b"T", payload)
    found = json.loads(wire)
    assert found == {
        "seq": 1,
        "thread_id": "thr_1",
        "user_id": "alice",
        "type": "thread_deleted",
        "time": "T",
        "data": {"by": "alice"},
    }


@given(user=st.text(), metadata=st.dictionaries(st.text(), st.text(), max_size=2))
def test_an_envelope_is_json_whoever_the_user_is(user: str, metadata: dict[str, str]) -> None:
    draft = e.Draft(data=e.Custom(name="n", value=Raw(b"1")), metadata=values.raw(metadata), raw=values.raw([user]))
    head = e.envelope_head("thr_1", "run_1", 2, user)
    found = json.loads(e.envelope(7, head, "custom", b"T", draft.payload()))
    assert (found["user_id"], found["attempt"], found["metadata"], found["raw"]) == (user, 2, metadata, [user])


def test_an_event_that_would_not_fit_a_frame_is_refused() -> None:
    room = EVENT_BYTES_MAX - e._ENVELOPE_BYTES - 100
    assert e.Draft(data=e.Custom(name="n", value=values.raw("x" * room))).payload()
    with pytest.raises(TooLarge):
        e.Draft(data=e.Custom(name="n", value=values.raw("x" * (room + 200)))).payload()
    with pytest.raises(TooLarge):
        e.Draft(data=e.Custom(name="n", value=Raw(b"1")), raw=values.raw("x" * EVENT_BYTES_MAX)).payload()


@pytest.mark.parametrize("name", e.TYPES)
def test_of_a_private_event_only_ids_are_shown(name: str) -> None:
    draft = e.Draft(
        data=filled(e.TYPES[name], all_fields=True), metadata=values.raw({"secret": 1}), raw=values.raw("s")
    )
    shown = json.loads(e.redacted(draft.payload()))
    assert list(shown) == ["data"]
    assert shown["data"].pop("private") is True
    assert all(key.endswith("_id") for key in shown["data"])


def test_unset_is_omitted_and_null_is_kept() -> None:
    assert json.loads(values.encode_record(e.ThreadUpdated(title=None, by="a"))) == {"title": None, "by": "a"}
    assert json.loads(values.encode_record(e.ThreadUpdated(title=UNSET, by="a"))) == {"by": "a"}
