"""A folder is walked whole, in order, and never left."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from runstone.agents.files import FileError, folders, list_files, profile_file, read_file, search_files
from runstone.agents.files.listing import Entry, Tally
from runstone.limits import KIB
from tests.support.folders import json_bytes, put


def names(root: Path) -> list[str]:
    return [entry.path for entry in list_files(str(root)).files]


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
    assert json_bytes(listing) < 512 * KIB


def test_a_walk_that_is_too_long_stops_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ENTRIES_MAX", 5)
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
    assert listing.kinds == {"code": Tally(1, 0), "table": Tally(2, 8)}
    assert (listing.byte_count, listing.empty_count) == (8, 1)
    assert listing.largest[0] == Entry("a.csv", 5, "table")
