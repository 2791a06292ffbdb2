"""The parser gives the same frames wherever the network cuts the bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone.client.sse import FRAME_BYTES_MAX, Frame, FrameTooLarge, SseParser

texts = st.text(alphabet=st.characters(exclude_characters="\r\n\0", exclude_categories=["Cs"]))
frames = st.builds(Frame, event=texts.filter(bool), data=texts, id=texts)
line_ends = st.sampled_from([b"\n", b"\r", b"\r\n"])


def parse(chunks: list[bytes]) -> list[Frame]:
    parser = SseParser()
    return [frame for chunk in chunks for frame in parser.feed(chunk)]


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(places)]


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[Frame]]:
    """The bytes of a stream, with noise between its lines, and the frames it holds."""
    end = draw(line_ends)
    sent = draw(st.lists(frames, max_size=5))
    data = b"\xef\xbb\xbf" if draw(st.booleans()) else b""
    for frame in sent:
        noise = draw(st.sampled_from([b"", b": keep-alive" + end, b"retry: 5" + end, b"strange" + end]))
        lines = [f"event: {frame.event}", f"id: {frame.id}", f"data: {frame.data}", ""]
        data += noise + b"".join(line.encode() + end for line in lines)
    return data, sent


@given(streams(), st.lists(st.integers(min_value=0)))
def test_any_split_of_the_bytes_gives_the_frames_that_were_sent(
    stream: tuple[bytes, list[Frame]], cuts: list[int]
) -> None:
    data, sent = stream
    assert parse(pieces(data, cuts)) == sent


@given(st.binary(), st.lists(st.integers(min_value=0)))
def test_any_split_of_any_bytes_gives_the_same_frames(data: bytes, cuts: list[int]) -> None:
    assert parse(pieces(data, cuts)) == parse([data])


def test_a_character_that_is_cut_in_two_arrives_whole() -> None:
    data = "data: 🗿\n\n".encode()
    assert parse([data[:8], data[8:]]) == [Frame("message", "🗿", "")]


def test_several_lines_of_data_are_one_text() -> None:
    assert parse([b"data: a\ndata:\ndata: b\n\n"]) == [Frame("message", "a\n\nb", "")]


def test_a_frame_without_its_blank_line_is_no_frame() -> None:
    assert parse([b"data: 1\n\ndata: 2\n"]) == [Frame("message", "1", "")]


def test_a_frame_without_data_is_no_frame_and_leaves_nothing_behind() -> None:
    assert parse([b"event: a\n\ndata: 1\n\n"]) == [Frame("message", "1", "")]


def test_an_id_stands_until_the_next_one() -> None:
    assert [frame.id for frame in parse([b"id: 7\ndata: a\n\ndata: b\n\n"])] == ["7", "7"]


def test_a_line_end_of_cr_ends_the_frame_at_once() -> None:
    """And not only when the next byte shows that no LF follows: that may be 15 s later."""
    assert parse([b"data: 1\r\n\r"]) == [Frame("message", "1", "")]


def test_a_frame_that_never_ends_is_refused() -> None:
    parser = SseParser()
    assert parser.feed(b"data: " + b"x" * (FRAME_BYTES_MAX - 6)) == []
    with pytest.raises(FrameTooLarge):
        parser.feed(b"x")


def test_heartbeats_alone_never_count_as_a_frame_that_grows() -> None:
    parser = SseParser()
    for _ in range(3):
        assert parser.feed(b": " + b"x" * (FRAME_BYTES_MAX // 2) + b"\n") == []
