"""A search finds lines within its bounds, and no pattern breaks it."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from runstone.agents.files import FileError, search, search_files
from runstone.agents.files.search import PATTERN_CHARS_MAX
from runstone.limits import KIB, MIB
from tests.support.folders import json_bytes, put


def test_search_finds_lines_by_pattern_and_by_literal(tmp_path):
    put(tmp_path, "a.py", "one\n# TODO(x): two\n")
    put(tmp_path, "b.bin", b"TODO\0")
    put(tmp_path, "c.csv", "TODO\n")
    assert [match.path for match in search_files(str(tmp_path), r"TODO\(\w\)").matches] == ["a.py"]
    assert search_files(str(tmp_path), "TODO(x)", literal=True).matches[0].line == 2
    found = search_files(str(tmp_path), "TODO", kinds=["table"])
    assert ([match.path for match in found.matches], found.files_passed) == (["c.csv"], 2)


def test_search_stops_at_its_bounds_and_says_so(tmp_path, monkeypatch):
    put(tmp_path, "a.txt", "x" * 10_000_000 + "\n" + "hit\n" * 300)
    put(tmp_path, "b.txt", "hit\n" * 300)
    found = search_files(str(tmp_path), "hit")
    assert (len(found.matches), found.cut) == (200, "stopped at 200 matches")
    assert json_bytes(found) < 512 * KIB
    monkeypatch.setattr(search, "SEARCH_BYTES_MAX", MIB)
    assert search_files(str(tmp_path), "never").cut == "stopped after 1 MiB"


@given(pattern=st.text(max_size=20) | st.from_regex(r"[\[\](){}*+?|\\a-c0-9<>=!:]{0,15}", fullmatch=True))
@example(pattern="(")
@example(pattern="a{99999999999999999999}")
@example(pattern="x" * 501)
def test_no_pattern_makes_a_search_raise_anything_but_its_own_error(tmp_path_factory, pattern):
    root = tmp_path_factory.getbasetemp()
    put(root, "short.txt", "abc")
    try:
        search_files(str(root), pattern)
    except FileError as error:
        assert "pattern" in str(error)  # noqa: PT017 - either answer is right
    if len(pattern) <= PATTERN_CHARS_MAX:
        search_files(str(root), pattern, literal=True)
