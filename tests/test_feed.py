"""The feed's cursors: they come back as they went out, and nothing else passes for one."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone.errors import GenerationChanged, Invalid
from runstone.feed import Feed, cursor_at, pos_of
from runstone.resources import Thread
from runstone.views import Changed, FeedPage

NOW = datetime(2026, 11, 20, 8, 15, 30, tzinfo=UTC)


def page(*positions: int, head: int, last: int | None = None) -> FeedPage:
    """Changes at these positions; odd ones are deleted."""
    items = [Changed(pos, f"thr_{pos}", None if pos % 2 else thread(f"thr_{pos}")) for pos in positions]
    return FeedPage(items, last if last is not None else positions[-1], head)


def thread(thread_id: str) -> Thread:
    return Thread(
        thread_id=thread_id,
        key=None,
        title="é\n\u2028",
        metadata={},
        status="idle",
        last_message=None,
        head=1,
        created_at=NOW,
        updated_at=NOW,
    )


@given(st.text(max_size=50), st.integers(0, 2**63 - 1))
def test_a_cursor_comes_back_as_it_went_out(generation: str, pos: int) -> None:
    generation = generation.encode("utf-8", "replace").decode()
    cursor = cursor_at(generation, pos)
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert pos_of(cursor, generation) == pos
    with pytest.raises(GenerationChanged):
        pos_of(cursor, generation + "x")


@given(st.text(max_size=80) | st.binary(max_size=60).map(lambda data: base64.urlsafe_b64encode(data).decode()))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises((Invalid, GenerationChanged)):
        pos_of(text, "gen")


@pytest.mark.parametrize("value", [17, None, True, ["x"], {"a": 1}, 1.5])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(Invalid) as caught:
        pos_of(value, "gen", "somewhere")
    assert caught.value.errors[0]["path"] == "somewhere"


def test_caught_up_is_said_once_where_the_head_of_the_beginning_is_reached() -> None:
    feed = Feed("gen", head=5)
    said = [feed.take(one)[1] for one in (page(head=5, last=0), page(2, 4, head=5), page(6, head=9), page(9, head=9))]
    assert said == [None, None, cursor_at("gen", 6), None]
    assert Feed("gen", head=3).take(page(head=3, last=3))[1] == cursor_at("gen", 3), "nothing to catch up with"


def test_a_change_is_the_resource_or_the_word_that_it_is_gone() -> None:
    kept, gone = Feed("gen", head=3).take(page(2, 3, head=3))[0]
    encoded = thread("thr_2").model_dump_json().encode()
    assert kept.event() == b"id: %b\ndata: %b\n\n" % (cursor_at("gen", 2).encode(), encoded)
    assert kept.event().count(b"\n") == 3, "whatever is in its text"
    assert gone.event() == b'id: %b\ndata: {"thread_id":"thr_3","deleted":true}\n\n' % cursor_at("gen", 3).encode()
    frame = msgspec.json.decode(kept.frame())
    assert frame == {"op": "thread", "cursor": cursor_at("gen", 2), "thread": msgspec.json.decode(encoded)}
    assert msgspec.json.decode(gone.frame()) == {
        "op": "thread",
        "cursor": cursor_at("gen", 3),
        "thread_id": "thr_3",
        "deleted": True,
    }
