"""The tools of `report` answer on any folder and any file, within their bounds."""

from __future__ import annotations

import csv
import io
import json
import os
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runstone.agents import files
from runstone.agents.files import FileError, list_files, profile_file, read_file, search_files

LINES = st.text(alphabet=st.sampled_from(list("ab,;\t|\"'\n\r 019.-eE\x00é😀{}[]:#\\")), max_size=200)


def put(root: Path, name: str, content: str | bytes = "") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def json_bytes(record) -> int:
    return len(json.dumps(asdict(record), allow_nan=False).encode())


def names(root: Path) -> list[str]:
    return [entry.path for entry in list_files(str(root)).files]


# --- listing --------------------------------------------------------------------------------------


def test_files_are_listed_nearest_first_and_the_same_every_time(tmp_path):
    for name in ("b/deep/z.txt", "b/a.txt", "z.txt", "a.txt", "c/a.txt"):
        put(tmp_path, name)
    assert names(tmp_path) == ["a.txt", "z.txt", "b/a.txt", "c/a.txt", "b/deep/z.txt"]
    assert list_files(str(tmp_path)) == list_files(str(tmp_path))


def test_hidden_made_and_cached_folders_are_passed_over_and_counted(tmp_path):
    for name in (
        ".git/config",
        ".venv/x.py",
        "node_modules/x.js",
        "__pycache__/x.pyc",
        "env/pyvenv.cfg",
        "cache/CACHEDIR.TAG",
        "kept/x.py",
    ):
        put(tmp_path, name)
    listing = list_files(str(tmp_path))
    assert names(tmp_path) == ["kept/x.py"]
    assert listing.hidden_count == 2
    assert sorted(listing.skipped) == ["__pycache__", "cache", "env", "node_modules"]


def test_links_are_counted_and_never_followed_even_in_a_loop(tmp_path):
    outside = put(tmp_path, "outside/secret.txt", "secret").parent
    root = tmp_path / "root"
    root.mkdir()
    (root / "loop").symlink_to(root)
    (root / "out").symlink_to(outside)
    (root / "file.txt").symlink_to(outside / "secret.txt")
    listing = list_files(str(root))
    assert (listing.file_count, listing.link_count) == (0, 3)
    for path in ("out/secret.txt", "file.txt", "../outside/secret.txt", str(outside / "secret.txt")):
        with pytest.raises(FileError, match="no path inside"):
            read_file(str(root), path)


def test_a_link_that_stays_inside_the_folder_can_be_read(tmp_path):
    put(tmp_path, "a.txt", "here")
    (tmp_path / "b.txt").symlink_to("a.txt")
    assert read_file(str(tmp_path), "b.txt").text == "here"


def test_pipes_and_sockets_are_counted_and_never_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.csv")
    monkeypatch.chdir(tmp_path)  # a socket's path has to be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.txt")
        assert list_files(str(tmp_path)).special_count == 2
        monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
        assert profile_file(str(tmp_path), "pipe.csv").problem == "not a regular file"
        assert read_file(str(tmp_path), "socket.txt").problem == "not a regular file"
        assert search_files(str(tmp_path), "x").files_searched == 0


def test_names_that_are_not_utf8_are_shown_and_found_again(tmp_path):
    raw = os.fsencode(tmp_path) + b"/caf\xe9\\x41.txt"
    Path(os.fsdecode(raw)).write_text("here", encoding="utf-8")
    (name,) = names(tmp_path)
    assert name == "caf\\xe9\\x41.txt"
    assert read_file(str(tmp_path), name).text == "here"
    assert search_files(str(tmp_path), "here").matches[0].path == name


@pytest.mark.parametrize("root", ["missing", "file.txt", "a\0b", "\ud800", "~nobody-of-this-name/x"])
def test_a_root_that_is_no_readable_folder_says_what_to_give(tmp_path, monkeypatch, root):
    put(tmp_path, "file.txt")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileError, match="Give the path of a folder"):
        list_files(root)


@given(path=st.text(max_size=30))
@example(path="\0")
@example(path="\ud800")
@example(path="a" * 5_000)
@example(path="~")
def test_no_path_makes_a_tool_raise_anything_but_its_own_error(tmp_path_factory, path):
    root = str(tmp_path_factory.getbasetemp())
    for tool in (read_file, profile_file):
        try:
            assert tool(root, path).problem
        except FileError as error:
            assert "list_files" in str(error)  # noqa: PT017 - either answer is right


def test_a_listing_of_thousands_of_long_names_stays_under_the_logs_bound(tmp_path):
    for number in range(2_500):
        put(tmp_path, f"{number:04}" + "é" * 120)
    listing = list_files(str(tmp_path))
    assert listing.file_count == 2_500
    assert len(listing.files) < 2_000
    assert "of 2,500 files" in (listing.cut or "")
    assert json_bytes(listing) < 512 * files.KIB


def test_a_walk_that_is_too_long_stops_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "ENTRIES_MAX", 5)
    for number in range(10):
        put(tmp_path, f"{number}.txt")
    listing = list_files(str(tmp_path))
    assert (listing.file_count, listing.cut) == (5, "stopped after 5 names")


def test_folders_that_may_not_be_read_are_named(tmp_path, monkeypatch):
    put(tmp_path, "closed/x.txt")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert list_files(str(tmp_path)).unreadable == ["closed"]


def test_kinds_and_sizes_are_added_up(tmp_path):
    put(tmp_path, "a.csv", "12345")
    put(tmp_path, "b.CSV", "123")
    put(tmp_path, "Makefile", "")
    listing = list_files(str(tmp_path))
    assert listing.kinds == {"code": files.Tally(1, 0), "table": files.Tally(2, 8)}
    assert (listing.byte_count, listing.empty_count) == (8, 1)
    assert listing.largest[0] == files.Entry("a.csv", 5, "table")


# --- reading --------------------------------------------------------------------------------------


def test_reading_is_cut_between_characters(tmp_path):
    put(tmp_path, "long.txt", "é" * files.EXCERPT_BYTES_MAX)
    put(tmp_path, "odd.txt", "a" + "é" * files.EXCERPT_BYTES_MAX)
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
    decoded = files.decode(data)
    assert (decoded and decoded[0]) == text


@given(data=st.binary(max_size=300), cut=st.booleans())
def test_any_bytes_decode_or_are_binary(data, cut):
    decoded = files.decode(data, cut=cut)
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


# --- profiles -------------------------------------------------------------------------------------


@given(
    name=st.sampled_from(["a.csv", "a.tsv", "a.json", "a.jsonl", "a.py", "a.md", "a.c", "a", "a.png"]),
    content=st.one_of(st.binary(max_size=300), LINES.map(str.encode), st.text(max_size=100).map(str.encode)),
)
def test_no_content_makes_a_profile_fail_or_be_no_json(tmp_path_factory, name, content):
    root = tmp_path_factory.getbasetemp()
    put(root, name, content)
    profile = profile_file(str(root), name)
    assert profile.bytes_seen == len(content)
    assert json_bytes(profile) < 512 * files.KIB


def test_an_empty_file_of_any_kind_has_a_profile(tmp_path):
    for name in ("a.csv", "a.json", "a.jsonl", "a.py", "a.md", "a.bin"):
        put(tmp_path, name)
        profile = profile_file(str(tmp_path), name)
        assert (profile.bytes, profile.problem) == (0, None)


def test_the_widest_and_wildest_table_stays_under_the_logs_bound():
    rows = [[f"\x01😀{column}" + "😀\x02" * 100 for column in range(400)] for _ in range(4)]
    out = io.StringIO()
    csv.writer(out).writerows(rows)
    table = files.profile_table(out.getvalue())
    assert (len(table.columns), table.columns_left_out) == (200, 200)
    assert json_bytes(table) < 512 * files.KIB


def test_a_huge_table_is_read_up_to_the_bound_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "PROFILE_BYTES_MAX", 10_000)
    put(tmp_path, "big.csv", "id,name\n" + "".join(f"{number},someone\n" for number in range(10_000)))
    profile = profile_file(str(tmp_path), "big.csv")
    assert (profile.cut, profile.bytes_seen) == (True, 10_000)
    assert profile.table
    assert profile.table.ragged == 0
    assert 8_000 < (profile.table.rows_estimated or 0) < 12_000


def test_a_table_with_too_many_rows_is_estimated(monkeypatch):
    monkeypatch.setattr(files, "ROWS_MAX", 3_000)
    table = files.profile_table("n\n" + "1\n" * 10_000)
    assert table.rows == 3_000
    assert table.rows_estimated is not None
    assert 9_000 < table.rows_estimated < 11_000


def test_columns_are_described_with_type_gaps_range_and_outliers():
    body = "".join(f"{number},{number / 2},name {number},2026-01-{number % 28 + 1:02},yes\n" for number in range(40))
    table = files.profile_table("id,price,name,day,ok\n" + body + "n/a,99999.5,,,no\n")
    types = {column.name: column.type for column in table.columns}
    assert types == {"id": "integer", "price": "number", "name": "text", "day": "date", "ok": "boolean"}
    by_name = {column.name: column for column in table.columns}
    assert (table.rows, table.header, table.delimiter) == (41, True, ",")
    assert [by_name[name].empty for name in types] == [1, 0, 1, 1, 0]
    assert (by_name["price"].low, by_name["price"].high, by_name["price"].outliers) == (0.0, 99999.5, 1)
    assert by_name["id"].mean == 19.5
    assert (by_name["ok"].distinct, by_name["id"].distinct) == (2, 40)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        ("12", "integer"),
        ("-0", "integer"),
        ("007", "text"),
        ("1.5e3", "number"),
        ("1e999", "text"),
        ("1" * 29, "number"),
        ("1" * 5_000, "text"),
        (" NULL ", "empty"),
        ("٣", "text"),
        ("inf", "text"),
        ("2026-11-20T08:15:30Z", "date"),
        ("31.12.2026", "date"),
    ],
)
def test_a_cell_is_judged_by_its_text(cell, kind):
    assert files.kind_of_cell(cell) == kind


def test_a_column_of_two_types_says_how_many_of_each():
    (column,) = files.profile_table("age\n" + "30\n" * 9 + "unknown\n").columns
    assert (column.type, column.kinds) == ("integer", {"integer": 9, "text": 1})


@pytest.mark.parametrize("delimiter", list(",\t;|"))
def test_each_delimiter_is_recognised_among_the_others_signs(delimiter):
    text = f"name{delimiter}sum\n" + "".join(
        f"a, b{delimiter}1;5\n" if delimiter == "|" else f"x{delimiter}1\n" for _ in range(9)
    )
    assert files.sniff_delimiter(text) == delimiter


def test_decimal_commas_do_not_hide_semicolons():
    table = files.profile_table("a;b\n" + "1,5;2,5\n" * 20)
    assert (table.delimiter, len(table.columns)) == (";", 2)


def test_ragged_repeated_and_broken_rows_are_counted():
    table = files.profile_table("a,b\n1,2\n1,2\n1\n1,2,3\n" + '"' + "x" * 200_000 + '",2\n' + "5,6\n")
    assert (table.rows, table.ragged, table.repeated, table.broken) == (5, 2, 1, 1)


def test_a_table_without_a_header_keeps_its_first_row():
    table = files.profile_table("1,a\n2,b\n")
    assert (table.header, table.rows, table.columns[0].name) == (False, 2, "column 1")


@given(rows=st.lists(st.lists(st.text(alphabet="ab1", min_size=1, max_size=4), min_size=3, max_size=3), min_size=2))
def test_every_row_that_was_written_is_counted(rows):
    out = io.StringIO()
    csv.writer(out).writerows([["first", "second", "third"], *rows])
    table = files.profile_table(out.getvalue())
    assert (table.rows, table.ragged, table.broken) == (len(rows), 0, 0)
    assert table.repeated == len(rows) - len({tuple(row) for row in rows})


@given(text=LINES, cut=st.booleans())
def test_any_text_profiles_as_any_kind(text, cut):
    for profile in (files.profile_table, files.profile_json, files.profile_json_lines):
        json_bytes(profile(text, cut=cut))
    json_bytes(files.profile_python(text))
    json_bytes(files.profile_text(text, headings=True))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(value=VALUES, indent=st.sampled_from([None, 2]))
@example(value=[], indent=2)
@example(value={}, indent=2)
def test_every_valid_document_is_read_to_its_end(value, indent):
    shape = files.profile_json(json.dumps(value, indent=indent))
    assert (shape.problem, shape.broken) == (None, 0)
    assert shape.items == (len(value) if isinstance(value, list | dict) else 1)


@given(value=VALUES, data=st.data())
def test_a_document_cut_anywhere_is_called_cut_not_broken(value, data):
    text = json.dumps(value)
    shape = files.profile_json(text[: data.draw(st.integers(0, len(text)))], cut=True)
    assert (shape.problem, shape.broken) == (None, 0)


@pytest.mark.parametrize("text", ["", "[1,]", "[1 2]", '{"a" 1}', "{1: 2}", "[1] x", '{"a": nope}', "[1", '{"a":1'])
def test_a_broken_document_says_where(text):
    assert "line 1" in (files.profile_json(text).problem or "")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_document_nested_beyond_reason_is_an_answer(opening):
    assert files.profile_json(opening * 200_000).problem == "nested too deeply"
    assert files.profile_json_lines(opening * 200_000).broken == 1


def test_json_keys_are_counted_with_their_types():
    shape = files.profile_json('[{"id": 1, "name": "a"}, {"id": null}, 3]')
    assert (shape.type, shape.items, shape.types) == ("array", 3, {"number": 1, "object": 2})
    assert shape.keys == [files.Key("id", 2, {"null": 1, "number": 1}), files.Key("name", 1, {"string": 1})]


def test_json_lines_count_what_is_broken():
    shape = files.profile_json_lines('{"a": 1}\n\nnope\n{"a": 2}\n')
    assert (shape.items, shape.broken) == (2, 1)
    assert (shape.problem or "").startswith("line 3")


def test_python_is_read_from_its_syntax_tree():
    source = (
        '"""A module."""\nimport os.path\nfrom json import loads\nfrom . import near\n\n'
        'class Thing:\n    def method(self):\n        """Says."""\n        return 1\n\n'
        "async def _hidden():\n    def inner():\n        pass\n"
    )
    shape = files.profile_python(source)
    assert (shape.functions, shape.classes, shape.imports) == (3, 1, ["json", "os"])
    assert (shape.documented, shape.documentable) == (2, 3)
    assert shape.longest[0] == files.Function("method", 7, 3)


@pytest.mark.parametrize("source", ["def f(:\n", "x = 1\n  y", "(" * 500, "-" * 200_000 + "1", "a\0b", "\ud800"])
def test_python_that_does_not_parse_says_why(source):
    assert files.profile_python(source).problem


def test_text_is_counted_by_line():
    shape = files.profile_text("# One\n\n```\n# no heading\n```\n## Two TODO\nlast", headings=True)
    assert (shape.lines, shape.blank, shape.marks) == (7, 1, 1)
    assert shape.headings == ["# One", "## Two TODO"]
    assert (shape.longest_line, shape.longest_line_at) == (12, 4)


# --- searching ------------------------------------------------------------------------------------


def test_search_finds_lines_by_pattern_and_by_literal(tmp_path):
    put(tmp_path, "a.py", "one\n# TODO(x): two\n")
    put(tmp_path, "b.bin", b"TODO\0")
    put(tmp_path, "c.csv", "TODO\n")
    assert [match.path for match in search_files(str(tmp_path), r"TODO\(\w\)").matches] == ["a.py"]
    assert search_files(str(tmp_path), "TODO(x)", literal=True).matches[0].line == 2
    search = search_files(str(tmp_path), "TODO", kinds=["table"])
    assert ([match.path for match in search.matches], search.files_passed) == (["c.csv"], 2)


def test_search_stops_at_its_bounds_and_says_so(tmp_path, monkeypatch):
    put(tmp_path, "a.txt", "x" * 10_000_000 + "\n" + "hit\n" * 300)
    put(tmp_path, "b.txt", "hit\n" * 300)
    search = search_files(str(tmp_path), "hit")
    assert (len(search.matches), search.cut) == (200, "stopped at 200 matches")
    assert json_bytes(search) < 512 * files.KIB
    monkeypatch.setattr(files, "SEARCH_BYTES_MAX", files.MIB)
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
    if len(pattern) <= files.PATTERN_CHARS_MAX:
        search_files(str(root), pattern, literal=True)


@given(text=st.text(), chars_max=st.integers(1, 50))
def test_a_clipped_text_is_one_short_printable_line(text, chars_max):
    clipped = files.clip(text, chars_max)
    assert len(clipped) <= chars_max
    assert clipped.isprintable()
