"""`report` says what is in any folder, and writes it down without harming anybody's file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from asyncio import to_thread
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runstone.agents import files
from runstone.agents.report.markdown import percent, size
from runstone.agents.report.saving import MARKER, save_report
from runstone.agents.report.survey import Summary, Tools, survey
from runstone.agents.report.voice import pieces
from runstone.errors import AgentError
from runstone.limits import KIB
from tests.support.folders import json_bytes, put


class Heard:
    """Everything that the survey thought, wrote and did, in order."""

    def __init__(self) -> None:
        self.log: list[tuple[str, str]] = []

    async def think(self, text: str) -> None:
        self.log.append(("think", text))

    async def write(self, text: str) -> None:
        self.log.append(("write", text))

    @contextlib.asynccontextmanager
    async def message(self):
        yield self

    def of(self, kind: str) -> list[str]:
        return [text for each, text in self.log if each == kind]

    @property
    def text(self) -> str:
        return "".join(self.of("write"))

    def tool(self, function):
        async def called(*arguments):
            self.log.append(("tool", " ".join([function.__name__, *map(str, arguments[1:2])])))
            named = {"kinds": arguments[2]} if len(arguments) == 3 else {}
            result = await to_thread(function, *arguments[:2], **named)
            assert json_bytes(result) < 512 * KIB
            return result

        return called


def look(folder: Path | str) -> tuple[Summary, Heard]:
    heard = Heard()
    functions = (files.list_files, files.read_file, files.profile_file, files.search_files, save_report)
    tools = Tools(*map(heard.tool, functions))
    return asyncio.run(survey(heard, tools, str(folder))), heard


@pytest.fixture
def shop(tmp_path):
    rows = "".join(f"{at},{at % 7}.5,{'' if at % 4 else 'x'},{at % 3}\n" for at in range(200))
    contents: dict[str, str | bytes] = {
        "README.md": "# Shop\n\n[![badge](x)](y)\n\nSells things\nto people.\n\nMore.\n",
        "data/sales.csv": "id,price,note,kind\n" + rows + "n/a,99999,,many\n",
        "data/stock.json": '[{"id": 1}, {"id": "two"}]',
        "src/shop.py": '"""Sells."""\nimport json\ndef sell():\n' + "    x = 1\n" * 80 + "# TODO: taxes\n",
        "src/broken.py": "def f(:\n",
        "empty.txt": "",
        "picture.png": b"\x89PNG\0",
        ".git/config": "x",
    }
    for name, content in contents.items():
        put(tmp_path, name, content)
    return tmp_path


def test_a_folder_is_told_of_in_data_code_sizes_and_notes(shop):
    summary, heard = look(shop)
    for expected in (
        "> Sells things to people.",
        "`data/sales.csv`",
        "201 rows × 4 columns",
        "column `price` has 1 value far outside the rest, between 0.5 and 99,999",
        "column `note` has no value in 151 of 201 rows (75 %)",
        "column `kind` is integer, but for 1 text",
        "key `id` has values of several types: 1 number, 1 string",
        "`src/shop.py`: `sell` is 81 lines long (from line 3)",
        "`src/broken.py`: does not parse: line 1: invalid syntax",
        "`empty.txt`: empty",
        "`src/shop.py:84` `# TODO: taxes`",
        "1 × hidden name",
        "Written to `report.md`.",
    ):
        assert expected in heard.text
    assert summary == Summary(files=7, bytes=summary.bytes, findings=7, report="report.md")
    assert summary.bytes == sum(
        path.stat().st_size
        for path in shop.rglob("*")
        if path.is_file() and ".git" not in path.parts and path.name != "report.md"
    )


def test_what_was_said_is_what_the_file_holds(shop):
    _, heard = look(shop)
    written = (shop / "report.md").read_text(encoding="utf-8")
    assert written == MARKER + "\n\n" + heard.text.removesuffix("Written to `report.md`.\n\n")


def test_it_thinks_before_it_looks_and_speaks_while_it_looks(shop):
    _, heard = look(shop)
    kinds = [kind for kind, _ in heard.log]
    assert kinds[:3] == ["think", "tool", "think"]
    assert "write" in kinds[: len(kinds) - kinds[::-1].index("tool")]
    assert heard.of("tool")[:4] == [
        "list_files",
        "read_file README.md",
        "profile_file data/sales.csv",
        "profile_file data/stock.json",
    ]
    assert "all 2 python files, src/shop.py first" in heard.of("think")[1]
    assert "most on data/sales.csv (3)" in heard.of("think")[2]


def test_text_comes_in_small_pieces(shop):
    _, heard = look(shop)
    words = [piece for piece in heard.of("write") if not piece.startswith("|")]
    assert max(len(piece.split()) for piece in words) == 1
    assert len(heard.of("write")) > 150


@given(text=st.text(alphabet="ab |\n-", max_size=80))
def test_pieces_joined_are_the_text(text):
    assert "".join(pieces(text)) == text


def test_the_same_folder_gives_the_same_report_and_leaves_its_own_report_out(shop):
    first, heard_first = look(shop)
    second, heard_second = look(shop)
    assert (first, heard_first.text) == (second, heard_second.text)
    assert heard_first.of("think") == heard_second.of("think")
    assert not (shop / "report-2.md").exists()
    assert [path.name for path in shop.iterdir() if path.name.startswith(".report-")] == []


def test_somebody_elses_report_is_never_overwritten(tmp_path):
    mine = tmp_path / "report.md"
    mine.write_text("mine", encoding="utf-8")
    (tmp_path / "report-2.md").mkdir()
    (tmp_path / "report-3.md").symlink_to("elsewhere.md")
    assert look(tmp_path)[0].report == "report-4.md"
    assert look(tmp_path)[0].report == "report-4.md"
    assert mine.read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "elsewhere.md").exists()


def test_a_link_to_one_of_our_reports_is_not_replaced(tmp_path):
    (tmp_path / "kept.md").write_text(MARKER + "\nkept", encoding="utf-8")
    (tmp_path / "report.md").symlink_to("kept.md")
    assert save_report(str(tmp_path), MARKER).path == "report-2.md"
    assert (tmp_path / "report.md").is_symlink()


def test_a_report_that_cannot_be_written_stays_in_the_message(tmp_path, monkeypatch):
    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    summary, heard = look(tmp_path)
    assert summary.report is None
    assert heard.text.endswith("could not be written: no space left on device. It is in this message.\n\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_folder_says_what_to_give_before_anything_is_done(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(AgentError, match="Give the path of a folder"):
        look(tmp_path / name)


def test_an_empty_folder_is_told_of(tmp_path):
    summary, heard = look(tmp_path)
    assert (summary.files, summary.findings) == (0, 0)
    assert "no files" in heard.text


def test_a_folder_of_binaries_is_told_of(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "b.csv").write_bytes(b"\0\1\2")
    summary, heard = look(tmp_path)
    assert summary.findings == 1
    assert "`b.csv`: is binary, though its name says table" in heard.text


def test_thousands_of_files_are_told_of_within_bounds(tmp_path):
    for at in range(3_000):
        (tmp_path / f"{at:04}.py").write_text("x = 1\n", encoding="utf-8")
    summary, heard = look(tmp_path)
    assert summary.files == 3_000
    assert "names 2,000 of 3,000 files" in heard.text
    assert "the 25 largest of 2000 python files" in heard.of("think")[1]


def test_the_worst_folder_makes_a_report_that_fits_an_input(tmp_path):
    wide = "😀" * 100
    rows = (
        [",".join(f"{wide}{column}" for column in range(250))] + [",".join(["1"] * 250)] * 9 + [",".join(["x"] * 250)]
    )
    for at in range(15):
        (tmp_path / f"{at}.csv").write_text("\n".join(rows), encoding="utf-8")
        (tmp_path / f"{at}.json").write_text(
            json.dumps([{f"{wide}{key}": value} for key in range(200) for value in (1, "")])
        )
        (tmp_path / f"{at}.py").write_text(
            "".join(f"def f{n}():\n" + " x\n" * 90 for n in range(9)) + f"# TODO {wide}\n" * 50
        )
    summary, heard = look(tmp_path)
    assert summary.findings > 1_000
    assert len(heard.text.encode()) < 500 * KIB


def test_names_that_could_break_the_page_are_shown_as_code(tmp_path):
    (tmp_path / "a`b|c\n<script>.csv").write_text("x|`y\n1\n", encoding="utf-8")
    _, heard = look(tmp_path)
    assert "`` a`b|c <script>.csv ``" in heard.text


def test_a_file_that_vanishes_on_the_way_is_a_remark(shop, monkeypatch):
    def gone(folder, path):
        (shop / path).unlink()
        return profile(folder, path)

    profile = files.profile_file
    monkeypatch.setattr(files, "profile_file", gone)
    gone.__name__ = "profile_file"
    summary, heard = look(shop)
    assert "`data/sales.csv`: cannot be read: no such file or directory" in heard.text
    assert summary.findings >= 4


@pytest.mark.parametrize(
    ("part", "whole", "text"), [(0, 0, "0 %"), (1, 1_000, "1 %"), (999, 1_000, "99 %"), (5, 5, "100 %")]
)
def test_shares_never_round_to_nothing_or_all(part, whole, text):
    assert percent(part, whole) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [(1, "1 byte"), (1023, "1,023 bytes"), (1024, "1.0 KiB"), (2**20 - 1, "1.0 MiB"), (2**63, "8.0 EiB")],
)
def test_sizes_read_well(amount, text):
    assert size(amount) == text
