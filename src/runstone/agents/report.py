"""The agent `report`: look through a folder, tell what is found while looking, and leave it in `report.md`.

It needs no model and no key. What it says comes from what its tools return, so the same folder gives the
same report: nothing in it depends on the time of day, on chance, or on how long a step took. A later attempt
at the same run therefore makes the same calls.
"""

import os
import re
import tempfile
from asyncio import to_thread
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from runstone.agents import files
from runstone.agents.files import (
    MIB,
    Column,
    Entry,
    Excerpt,
    FileError,
    Kind,
    Listing,
    Profile,
    Search,
    Tally,
    clip,
)
from runstone.errors import AgentError, ToolError

if TYPE_CHECKING:
    from runstone import Runstone

# How many files of each kind are opened, the largest first. The order is the report's.
OPENED_MAX: Final[dict[Kind, int]] = {
    "table": 12,
    "json": 8,
    "python": 25,
    "code": 10,
    "markdown": 5,
    "text": 5,
}
DATA: Final[tuple[Kind, ...]] = ("table", "json")
PROSE_AND_CODE: Final = [
    "python",
    "code",
    "markdown",
    "text",
    "other",
]  # where people leave notes to themselves
TODO_PATTERN: Final = r"\b(?:TODO|FIXME|XXX|HACK)\b"
COLUMNS_SHOWN_MAX: Final = 30  # of a table; the findings are of all columns
KEYS_SHOWN_MAX: Final = 12
ROWS_SHOWN_MAX: Final = 25  # of any other list in the report
WORST_SHOWN_MAX: Final = 5  # files named in the end
REMARKS_SHOWN_MAX: Final = 25  # in one list; all are counted
BIG_BYTES: Final = 10 * MIB  # a file over it deserves a mention: common hosts warn at 50 MiB
EMPTY_ON_PURPOSE: Final = ("__init__.py", "py.typed")
LONG_FUNCTION_LINES: Final = 60  # more than a screen
LONG_FILE_LINES: Final = 1_000
LONG_LINE_CHARS: Final = 1_000  # a sign of generated or minified text
EMPTY_SHARE: Final = 0.05  # of a column's cells; a few gaps are ordinary
MIXED_SHARE: Final = 0.5  # a column is of a type when this much of it is, and then the rest is out of place
REPORTS_MAX: Final = 99  # report-99.md is the last name tried
PARAGRAPH_CHARS_MAX: Final = 600
PATH_CHARS_MAX: Final = 160
TITLE_CHARS_MAX: Final = 80

MARKER: Final = "<!-- Written by `runstone run report`, which replaces this file. Rename it to keep it. -->"
TOOL_TIMEOUT_S: Final = 120.0  # each reads a bounded number of bytes; this is for a disk that hangs


@dataclass(frozen=True, slots=True)
class Written:
    """Where the report is, or why it is nowhere."""

    path: str | None
    bytes: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """How many files and bytes there are, what was worth a remark, and where the report is."""

    files: int
    bytes: int
    findings: int
    report: str | None


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark, and the file it is about."""

    path: str
    text: str


# --- what the agent stands on ------------------------------------------------------------------------


class Writing(Protocol):
    async def write(self, delta: str, /) -> object: ...


class Voice(Protocol):
    """The part of a run that the survey uses."""

    async def think(self, text: str, /) -> object: ...

    def message(self) -> AbstractAsyncContextManager[Writing]: ...


@dataclass(frozen=True, slots=True)
class Tools:
    """The tools that the survey calls, each with a folder first."""

    list_files: Callable[[str], Awaitable[Listing]]
    read_file: Callable[[str, str], Awaitable[Excerpt]]
    profile_file: Callable[[str, str], Awaitable[Profile]]
    search_files: Callable[[str, str, list[str]], Awaitable[Search]]
    write_report: Callable[[str, str], Awaitable[Written]]


@dataclass(slots=True)
class Teller:
    """Says a text in small pieces, and remembers it: what was said is what the file holds."""

    writing: Writing
    said: list[str] = field(default_factory=list)

    async def say(self, *paragraphs: str) -> None:
        for paragraph in paragraphs:
            text = paragraph + "\n\n"
            self.said.append(text)
            for piece in pieces(text):
                await self.writing.write(piece)


def pieces(text: str) -> Iterator[str]:
    """A text word by word, but its table rows whole: half a row is no table. Joined, they are the text."""
    for line in text.splitlines(keepends=True):
        yield from [line] if line.startswith("|") else re.findall(r"\s*\S+\s*|\s+", line)


# --- the survey --------------------------------------------------------------------------------------


async def survey(voice: Voice, tools: Tools, folder: str) -> Summary:
    """Look through `folder`, say what is there, and write it down."""
    try:
        await to_thread(files.folder, folder)
    except FileError as error:
        raise AgentError(str(error)) from error
    await voice.think(
        f"First the names, sizes and kinds of everything under {clip(folder, PATH_CHARS_MAX)}: "
        "they say what is worth opening.\n"
    )
    listing = await tools.list_files(folder)
    own = await _own_reports(tools, folder, listing)
    listing = without(listing, own)
    opened = choose(listing)
    await voice.think(plan(listing, opened) + "\n")
    findings: list[Finding] = []
    async with voice.message() as writing:
        teller = Teller(writing)
        await teller.say(f"# Report on {Path(listing.root).name or listing.root}", *overview(listing))
        await _readme(teller, tools, folder, listing)
        profiles = await _profiles(voice, teller, tools, folder, opened, findings)
        code = [profile for profile in profiles if profile.text and profile.kind not in DATA]
        if code:
            findings += await _code(teller, code)
        findings += await _sizes(teller, listing)
        todos = await tools.search_files(folder, TODO_PATTERN, PROSE_AND_CODE)
        reports = {entry.path for entry in own}
        todos = replace(
            todos,
            matches=[match for match in todos.matches if match.path not in reports],
            files_searched=todos.files_searched - len(own),
        )
        await voice.think(about_todos(todos) + "\n")
        await teller.say(*todo_list(todos))
        await teller.say(*conclusion(findings, listing, opened))
        written = await tools.write_report(folder, MARKER + "\n\n" + "".join(teller.said))
        await teller.say(
            f"Written to {code_span(written.path)}."
            if written.path
            else f"The report could not be written: {written.problem}. It is in this message."
        )
    return Summary(listing.file_count, listing.byte_count, len(findings), written.path)


async def _own_reports(tools: Tools, folder: str, listing: Listing) -> list[Entry]:
    """Earlier reports of ours. They are left out, or each report would report the one before."""
    own = []
    for entry in listing.files:
        if re.fullmatch(r"report(-[0-9]{1,2})?\.md", entry.path):
            excerpt = await tools.read_file(folder, entry.path)
            if excerpt.text.startswith(MARKER):
                own.append(entry)
    return own


async def _readme(teller: Teller, tools: Tools, folder: str, listing: Listing) -> None:
    readme = next((each for each in listing.files if re.fullmatch(r"(?i)readme(\.\w+)?", each.path)), None)
    if readme is None or readme.kind not in ("markdown", "text"):
        return
    said = first_paragraph((await tools.read_file(folder, readme.path)).text)
    if said:
        await teller.say("## What it says it is", f"> {said}", f"From {code_span(readme.path)}.")


async def _profiles(
    voice: Voice, teller: Teller, tools: Tools, folder: str, opened: list[Entry], findings: list[Finding]
) -> list[Profile]:
    """Open the chosen files in order; tell of data at once, and think where data ends and the rest begins."""
    profiles: list[Profile] = []
    told = False
    for entry in opened:
        if profiles and opened[len(profiles) - 1].kind in DATA and entry.kind not in DATA:
            await voice.think(after_data(profiles, findings, opened) + "\n")
        profile = await tools.profile_file(folder, entry.path)
        profiles.append(profile)
        if profile.problem:
            findings.append(Finding(entry.path, f"cannot be read: {profile.problem}"))
        elif profile.kind == "binary":
            findings.append(Finding(entry.path, f"is binary, though its name says {entry.kind}"))
        elif profile.kind in DATA:
            if not told:
                await teller.say("## Data")
            told = True
            found = data_findings(profile)
            findings += found
            await teller.say(*data_section(profile, found))
    return profiles


async def _code(teller: Teller, profiles: list[Profile]) -> list[Finding]:
    found = code_findings(profiles)
    await teller.say("## Code and text", *code_section(profiles))
    await _remarks(teller, found)
    return found


async def _sizes(teller: Teller, listing: Listing) -> list[Finding]:
    found = size_findings(listing)
    if found:
        await teller.say("## Sizes")
        await _remarks(teller, found)
    return found


async def _remarks(teller: Teller, found: list[Finding]) -> None:
    if found:
        await teller.say(bullets([f"{code_span(each.path)}: {each.text}" for each in found]))


# --- what to open, and why ---------------------------------------------------------------------------


def choose(listing: Listing) -> list[Entry]:
    """The files to open: of each kind the largest, since there is most to find in them."""
    chosen: list[Entry] = []
    for kind, number in OPENED_MAX.items():
        of_kind = [entry for entry in listing.files if entry.kind == kind and entry.bytes]
        chosen += sorted(of_kind, key=lambda entry: (-entry.bytes, entry.path))[:number]
    return chosen


def without(listing: Listing, entries: list[Entry]) -> Listing:
    """The listing as it were without some of its files."""
    paths = {entry.path for entry in entries}
    kinds = dict(listing.kinds)
    for entry in entries:
        tally = kinds[entry.kind]
        kinds[entry.kind] = Tally(tally.files - 1, tally.bytes - entry.bytes)
    return replace(
        listing,
        files=[entry for entry in listing.files if entry.path not in paths],
        largest=[entry for entry in listing.largest if entry.path not in paths],
        file_count=listing.file_count - len(entries),
        byte_count=listing.byte_count - sum(entry.bytes for entry in entries),
        kinds={kind: tally for kind, tally in kinds.items() if tally.files},
    )


def plan(listing: Listing, opened: list[Entry]) -> str:
    """The reasoning between the listing and the first file."""
    if not listing.file_count:
        passed = f" ({count(listing.hidden_count, 'hidden name')} passed over)" if listing.hidden_count else ""
        return f"There is no file here{passed}, so nothing to open. The report will say just that."
    by_count = max(listing.kinds.items(), key=lambda item: (item[1].files, item[0]))
    by_size = max(listing.kinds.items(), key=lambda item: (item[1].bytes, item[0]))
    thought = (
        f"{count(listing.file_count, 'file')}, {size(listing.byte_count)}. Most are {by_count[0]} "
        f"({by_count[1].files:,})"
    )
    if by_size[0] == by_count[0]:
        thought += f", and they hold most of the bytes ({percent(by_size[1].bytes, listing.byte_count)}). "
    else:
        share = percent(by_size[1].bytes, listing.byte_count)
        thought += f", but {by_size[0]} files hold {share} of the bytes. "
    if not opened:
        return thought + "None of it is text that I can profile, so sizes are all I can speak of."
    groups = {kind: [entry for entry in opened if entry.kind == kind] for kind in OPENED_MAX}
    steps = []
    for kind, group in groups.items():
        total = sum(entry.kind == kind for entry in listing.files)
        if len(group) == 1 == total:
            steps.append(f"the only {kind} file, {clip(group[0].path, PATH_CHARS_MAX)}")
        elif group:
            largest = f"the {len(group)} largest of {total}" if len(group) < total else f"all {total}"
            steps.append(f"{largest} {kind} files, {clip(group[0].path, PATH_CHARS_MAX)} first")
    thought += f"I open {', then '.join(steps)}."
    if groups["table"] or groups["json"]:
        thought += " Data comes before code, because gaps and odd values in it are what nobody sees by reading."
    return thought


def after_data(profiles: list[Profile], findings: list[Finding], opened: list[Entry]) -> str:
    """The reasoning between the data files and the rest."""
    ahead = len(opened) - len(profiles)
    if findings:
        counts: dict[str, int] = {}
        for finding in findings:
            counts[finding.path] = counts.get(finding.path, 0) + 1
        worst = max(counts, key=lambda path: (counts[path], path))
        most = f"most on {clip(worst, PATH_CHARS_MAX)} ({counts[worst]})"
        seen = f"{count(len(findings), 'remark')} on the data, {most}."
    else:
        seen = f"{count(len(profiles), 'data file')} without a gap or an odd value that stands out."
    return (
        f"{seen} Next {count(ahead, 'file')} of code and text: there I look for what does not parse, and for "
        f"functions over {LONG_FUNCTION_LINES} lines."
    )


def about_todos(todos: Search) -> str:
    """The reasoning after the search for notes."""
    searched = count(todos.files_searched, "file")
    if not todos.matches:
        return f"No TODO, FIXME, XXX or HACK in {searched}; what is left is to sum up."
    holders = {match.path for match in todos.matches}
    return (
        f"{count(len(todos.matches), 'note')} to self in {len(holders):,} of {searched}"
        f"{', and the search stopped there' if todos.cut else ''}. I list them as they stand, then sum up."
    )


# --- sections ----------------------------------------------------------------------------------------


def overview(listing: Listing) -> list[str]:
    held = [
        count(listing.file_count, "file"),
        size(listing.byte_count),
        count(listing.folder_count, "folder"),
    ]
    said = [f"{code_span(listing.root)} holds {', '.join(held)}."]
    if listing.cut:
        said[0] += f" The listing {listing.cut}."
    kinds = sorted(listing.kinds.items(), key=lambda item: (-item[1].bytes, item[0]))
    if kinds:
        said.append(table(["kind", "files", "size"], [[kind, f"{t.files:,}", size(t.bytes)] for kind, t in kinds]))
    passed = [
        (listing.hidden_count, "hidden name"),
        (listing.link_count, "symbolic link"),
        (listing.special_count, "pipe, socket or device"),
        (listing.skipped_count, "folder of caches or installed packages"),
        (listing.unreadable_count, "unreadable name"),
    ]
    over = [f"{number:,} × {what}" for number, what in passed if number]
    if over:
        named = [code_span(path) for path in [*listing.unreadable, *listing.skipped][:5]]
        said.append(f"Passed over: {', '.join(over)}{' (' + ', '.join(named) + ')' if named else ''}.")
    return said


def first_paragraph(text: str) -> str:
    """The first paragraph of prose in a README, on one line: no headings, badges, HTML or code."""
    fenced = False
    paragraph: list[str] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith(("```", "~~~")):
            fenced = not fenced
        prose = bare and not fenced and not re.match(r"[#<>|=`~\-*!\[]|\.\. |:\w+:", bare)
        if prose:
            paragraph.append(bare)
        elif paragraph:
            break
    return clip(" ".join(paragraph), PARAGRAPH_CHARS_MAX)


def data_section(profile: Profile, found: list[Finding]) -> list[str]:
    said = [f"### {code_span(profile.path)}"]
    if profile.table:
        said += _table_section(profile)
    elif profile.json:
        shape = profile.json
        what = {"array": "An array of", "object": "An object of", "lines": "JSON lines,"}.get(shape.type, "A")
        items = count(shape.items, "key" if shape.type == "object" else "item")
        sentence = f"{what} {items}" if shape.type in ("array", "object", "lines") else f"{what} {shape.type}"
        if shape.types and shape.type in ("array", "lines"):
            sentence += " (" + ", ".join(f"{n:,} {name}" for name, n in shape.types.items()) + ")"
        said.append(sentence + ", " + _seen(profile) + ".")
        keys = [f"{code_span(key.name)} {'/'.join(key.types)}" for key in shape.keys[:KEYS_SHOWN_MAX]]
        if keys:
            left_out = len(shape.keys) + shape.keys_left_out - len(keys)
            said.append(f"Keys: {', '.join(keys)}{f', and {left_out:,} more' if left_out else ''}.")
    if found:
        said.append(bullets([each.text for each in found]))
    return said


def _table_section(profile: Profile) -> Iterator[str]:
    shape = profile.table
    if shape is None or not shape.columns:
        yield "No rows."
        return
    rows = count(shape.rows, "row")
    if shape.rows_estimated is not None:
        rows = f"the first {rows} (about {shape.rows_estimated:,} in all)"
    delimiter = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}[shape.delimiter]
    header = "" if shape.header else ", without a header"
    width = len(shape.columns) + shape.columns_left_out
    yield f"{rows[0].upper()}{rows[1:]} × {count(width, 'column')}, by {delimiter}{header}, {_seen(profile)}."
    yield table(
        ["column", "type", "empty", "distinct", "range", "such as"],
        [
            [
                code_span(column.name or "(no name)"),
                column.type,
                percent(column.empty, shape.rows) if column.empty else "",
                f"{column.distinct:,}{'+' if column.distinct_cut else ''}",
                f"{number(column.low)} … {number(column.high)}" if column.low is not None else "",
                ", ".join(code_span(example) for example in column.examples),
            ]
            for column in shape.columns[:COLUMNS_SHOWN_MAX]
        ],
    )
    if width > COLUMNS_SHOWN_MAX:
        yield f"The first {COLUMNS_SHOWN_MAX} of {width:,} columns."


def _seen(profile: Profile) -> str:
    if profile.cut:
        return f"from the first {size(profile.bytes_seen)} of {size(profile.bytes)}"
    return size(profile.bytes)


def code_section(profiles: list[Profile]) -> Iterator[str]:
    rows = [
        [
            code_span(profile.path),
            f"{profile.text.lines:,}" if profile.text else "",
            f"{profile.python.functions:,}" if profile.python and not profile.python.problem else "",
            f"{profile.python.classes:,}" if profile.python and not profile.python.problem else "",
            percent(profile.python.documented, profile.python.documentable)
            if profile.python and not profile.python.problem
            else "",
            f"{profile.text.marks:,}" if profile.text and profile.text.marks else "",
        ]
        for profile in profiles[:ROWS_SHOWN_MAX]
    ]
    yield table(["file", "lines", "functions", "classes", "documented", "notes to self"], rows)
    if len(profiles) > ROWS_SHOWN_MAX:
        yield f"{ROWS_SHOWN_MAX} of the {len(profiles)} files that were opened."
    parsed = [profile.python for profile in profiles if profile.python and not profile.python.problem]
    if parsed:
        documented, documentable = sum(p.documented for p in parsed), sum(p.documentable for p in parsed)
        imports: dict[str, int] = {}
        for name in (name for python in parsed for name in python.imports):
            imports[name] = imports.get(name, 0) + 1
        common = sorted(imports, key=lambda name: (-imports[name], name))[:8]
        leaning = f" They lean most on {', '.join(map(code_span, common))}." if common else ""
        yield (
            f"Of {documentable:,} modules, classes and functions that others can use, "
            f"{percent(documented, documentable)} say what they are for.{leaning}"
        )


def todo_list(todos: Search) -> list[str]:
    if not todos.matches:
        return []
    found = f"{len(todos.matches):,}" + (" or more" if todos.cut else "")
    lines = [f"{code_span(f'{match.path}:{match.line}')} {code_span(match.text)}" for match in todos.matches]
    return ["## To do", f"{found} lines with TODO, FIXME, XXX or HACK:", bullets(lines)]


def conclusion(findings: list[Finding], listing: Listing, opened: list[Entry]) -> list[str]:
    looked = (
        f"Looked at the names of {count(listing.file_count, 'file')} and into {len(opened):,}, at most "
        f"{files.PROFILE_BYTES_MAX // MIB} MiB of each."
    )
    if not listing.file_count:
        return ["## In short", "There is nothing to report on: no files."]
    if not findings:
        return ["## In short", f"Nothing stands out. {looked}"]
    by_path: dict[str, list[str]] = {}
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding.text)
    worst = sorted(by_path, key=lambda path: (-len(by_path[path]), path))[:WORST_SHOWN_MAX]
    lines = [
        f"{code_span(path)}: {by_path[path][0]}"
        + (f", and {count(len(by_path[path]) - 1, 'other remark')}" if len(by_path[path]) > 1 else "")
        for path in worst
    ]
    most = ", most on" if len(by_path) > len(worst) else ""
    heading = f"{count(len(findings), 'remark')} on {count(len(by_path), 'file')}{most}:"
    return ["## In short", heading, bullets(lines), looked]


# --- findings ----------------------------------------------------------------------------------------


def data_findings(profile: Profile) -> list[Finding]:
    """What in a data file deserves a second look."""
    found: list[str] = []
    if profile.encoding == "not UTF-8":
        found.append("holds bytes that are not UTF-8")
    shape = profile.table
    if shape is not None:
        for column in shape.columns:
            found += column_findings(column, shape.rows)
        if shape.ragged:
            found.append(f"{count(shape.ragged, 'row')} not as wide as the first")
        if shape.repeated:
            found.append(f"{count(shape.repeated, 'row')} repeated, cell for cell")
        if shape.broken:
            found.append(f"{count(shape.broken, 'row')} that cannot be read: look for a quote that is never closed")
        if shape.columns and not shape.rows:
            found.append("a header without rows")
    if profile.json is not None:
        if profile.json.problem:
            broken = f" ({profile.json.broken:,} lines)" if profile.json.type == "lines" else ""
            found.append(f"broken JSON{broken}: {profile.json.problem}")
        for key in profile.json.keys if profile.json.type in ("array", "lines") else []:
            kinds = [name for name in key.types if name != "null"]
            if len(kinds) > 1:
                types = ", ".join(f"{number:,} {name}" for name, number in key.types.items())
                found.append(f"key {code_span(key.name)} has values of several types: {types}")
    return [Finding(profile.path, text) for text in found]


def column_findings(column: Column, rows: int) -> Iterator[str]:
    name = f"column {code_span(column.name or '(no name)')}"
    filled = sum(column.kinds.values())
    if rows and not filled:
        yield f"{name} is empty"
        return
    if column.empty > EMPTY_SHARE * rows:
        yield f"{name} has no value in {column.empty:,} of {rows:,} rows ({percent(column.empty, rows)})"
    others = {kind: number for kind, number in column.kinds.items() if kind != column.type}
    if others and column.type != "text" and column.kinds[column.type] > MIXED_SHARE * filled:
        odd = ", ".join(f"{number:,} {kind}" for kind, number in others.items())
        yield f"{name} is {column.type}, but for {odd}"
    if column.outliers:
        yield (
            f"{name} has {count(column.outliers, 'value')} far outside the rest, "
            f"between {number(column.low)} and {number(column.high)} (mean {number(column.mean)})"
        )
    if column.distinct == 1 and filled == rows > 1:
        yield f"{name} holds the same value in every row"


def code_findings(profiles: Iterable[Profile]) -> list[Finding]:
    """Source that does not parse, and what is too long to read in one go."""
    found: list[Finding] = []
    for profile in profiles:
        if profile.python is not None:
            if profile.python.problem:
                found.append(Finding(profile.path, f"does not parse: {profile.python.problem}"))
            for each in profile.python.longest:
                if each.lines > LONG_FUNCTION_LINES:
                    text = f"{code_span(each.name)} is {each.lines:,} lines long (from line {each.line:,})"
                    found.append(Finding(profile.path, text))
        if profile.text is None:
            continue
        if profile.kind in ("python", "code") and profile.text.lines > LONG_FILE_LINES:
            found.append(Finding(profile.path, f"{profile.text.lines:,} lines in one file"))
        if profile.kind in ("python", "code") and profile.text.longest_line > LONG_LINE_CHARS:
            where = f"line {profile.text.longest_line_at:,} has {profile.text.longest_line:,} characters"
            found.append(Finding(profile.path, f"{where}: generated or minified?"))
        if profile.encoding == "not UTF-8":
            found.append(Finding(profile.path, "holds bytes that are not UTF-8"))
    return found


def size_findings(listing: Listing) -> list[Finding]:
    """Files that are large for a folder that people pass around, and files that hold nothing."""
    found = [Finding(each.path, size(each.bytes)) for each in listing.largest if each.bytes > BIG_BYTES]
    empty = [each.path for each in listing.files if not each.bytes]
    return found + [Finding(path, "empty") for path in empty if not path.endswith(EMPTY_ON_PURPOSE)]


# --- words -------------------------------------------------------------------------------------------


def size(number_of_bytes: int) -> str:
    if number_of_bytes < 1024:
        return count(number_of_bytes, "byte")
    amount, units = number_of_bytes / 1024, ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while amount >= 1023.95 and len(units) > 1:
        amount /= 1024
        units.pop(0)
    return f"{amount:.1f} {units[0]}"


def count(number_of: int, noun: str) -> str:
    return f"{number_of:,} {noun}{'' if number_of == 1 else 's'}"


def percent(part: int, whole: int) -> str:
    """A share in whole percent; what is not nothing never reads 0 %, and what is not all never 100 %."""
    if not 0 < part < whole:
        return f"{100 if part and whole else 0} %"
    return f"{min(max(round(100 * part / whole), 1), 99)} %"


def number(value: float | None) -> str:
    if value is None:
        return "?"
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def code_span(text: str) -> str:
    """Text as Markdown code, on one line, whatever it holds."""
    line = clip(text, PATH_CHARS_MAX) or " "
    fence = "`" * (max(map(len, re.findall(r"`+", line)), default=0) + 1)
    pad = " " if "`" in line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def bullets(lines: list[str]) -> str:
    shown = [f"- {line}" for line in lines[:REMARKS_SHOWN_MAX]]
    if len(lines) > REMARKS_SHOWN_MAX:
        shown.append(f"- … and {len(lines) - REMARKS_SHOWN_MAX:,} more")
    return "\n".join(shown)


def table(head: list[str], rows: list[list[str]]) -> str:
    # A bar ends a cell even inside code.
    cells = [[cell.replace("|", "\\|") for cell in row] for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


# --- writing it down ---------------------------------------------------------------------------------


def save_report(folder: str, text: str) -> Written:
    """Write `text` to `report.md` in `folder`, whole or not at all, and safe from a power cut.

    Only a report that begins with our marker is replaced; where somebody else's file has the name, it is
    `report-2.md`, and so on. Safe to repeat.
    """
    base = files.folder(folder)
    data = text.encode("utf-8", "replace")
    try:
        descriptor, temporary = tempfile.mkstemp(dir=base, prefix=".report-", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, 0o644)  # it was made for its owner alone, as temporary files are
                os.fsync(descriptor)
            name = _take_name(base)
            Path(temporary).replace(base / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(base)
    except OSError as error:
        return Written(None, 0, (error.strerror or str(error)).lower())
    return Written(name, len(data), None)


def _take_name(base: Path) -> str:
    """The first name that is free, and then is ours, or that holds a report of ours."""
    for name in ("report.md", *(f"report-{at}.md" for at in range(2, REPORTS_MAX + 1))):
        # Taken in one step: nobody's file can come between the look and the rename.
        with suppress(FileExistsError):
            os.close(os.open(base / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return name
        with suppress(FileError):
            if files.read_file(str(base), name).text.startswith(MARKER) and not (base / name).is_symlink():
                return name
    raise OSError(f"report.md to report-{REPORTS_MAX}.md are all somebody else's")


def _sync_folder(base: Path) -> None:
    # Without it the rename may be lost with the power, though the file's bytes are not.
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- the agent --------------------------------------------------------------------------------------


def register(app: "Runstone") -> None:
    """Add the agent `report` to an app."""
    from runstone import Run

    tool = app.tool(timeout_s=TOOL_TIMEOUT_S)

    @tool
    async def list_files(folder: str) -> Listing:
        return await to_thread(files.list_files, folder)

    @tool
    async def read_file(folder: str, path: str) -> Excerpt:
        return await to_thread(files.read_file, folder, path)

    @tool
    async def profile_file(folder: str, path: str) -> Profile:
        return await to_thread(files.profile_file, folder, path)

    @tool
    async def search_files(folder: str, pattern: str, kinds: list[str]) -> Search:
        return await to_thread(files.search_files, folder, pattern, kinds=kinds)

    @tool
    async def write_report(folder: str, text: str) -> Written:
        return await to_thread(save_report, folder, text)

    tools = Tools(list_files, read_file, profile_file, search_files, write_report)

    @app.agent
    async def report(run: Run, folder: str = ".") -> dict[str, int | str | None]:
        """Look through a folder, tell what is in it, and write it to report.md there."""
        await run.set_title(f"Report on {clip(folder, TITLE_CHARS_MAX)}")
        try:
            summary = await survey(run, tools, folder)
        except ToolError as error:
            raise AgentError(str(error)) from error
        return {
            "files": summary.files,
            "bytes": summary.bytes,
            "findings": summary.findings,
            "report": summary.report,
        }
