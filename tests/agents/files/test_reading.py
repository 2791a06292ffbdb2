"""Any bytes are text or binary, and what cannot be read is an answer."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone.agents.files import clip, profile_file, read_file, search_files
from runstone.agents.files.reading import EXCERPT_BYTES_MAX, decode
from tests.support.folders import put


def test_reading_is_cut_between_characters(tmp_path):
    put(tmp_path, "long.txt", "é" * EXCERPT_BYTES_MAX)
    put(tmp_path, "odd.txt", "a" + "é" * EXCERPT_BYTES_MAX)
    for name in ("long.txt", "odd.txt"):
        excerpt = read_file(str(tmp_path), name)
        assert excerpt.cut
        assert "\ufffd" not in excerpt.text


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", ""),
        (b"\xef\xbb\xbfhi", "hi"),
        ("hi é".encode("utf-16"), "hi é"),
        ("hi é".encode("utf-32"), "hi é"),
        (b"caf\xe9 au lait", "caf\ufffd au lait"),
        (b"\x89PNG\r\n\x1a\n\0\0", None),
        (b"\x01\x02\x03\xff\xfe", None),
    ],
)
def test_text_is_told_from_binary(data, text):
    decoded = decode(data)
    assert (decoded and decoded[0]) == text


@given(data=st.binary(max_size=300), cut=st.booleans())
def test_any_bytes_decode_or_are_binary(data, cut):
    decoded = decode(data, cut=cut)
    if decoded is not None:
        decoded[0].encode()


def test_a_file_that_vanishes_is_an_answer_not_an_error(tmp_path):
    assert profile_file(str(tmp_path), "gone.csv").problem == "no such file or directory"
    assert read_file(str(tmp_path), "gone.csv").problem == "no such file or directory"


def test_a_file_that_may_not_be_read_is_an_answer_not_an_error(tmp_path, monkeypatch):
    put(tmp_path, "closed.py", "x = 1")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert profile_file(str(tmp_path), "closed.py").problem == "permission denied"
    assert search_files(str(tmp_path), "x").files_passed == 1


@given(text=st.text(), chars_max=st.integers(1, 50))
def test_a_clipped_text_is_one_short_printable_line(text, chars_max):
    clipped = clip(text, chars_max)
    assert len(clipped) <= chars_max
    assert clipped.isprintable()
