"""Look into a folder without surprises: list, read, profile and search its files, always within bounds.

Plain functions from a folder to small records that are JSON once encoded, so they serve as tools as they
stand. Two kinds of trouble are kept apart. What the caller did wrong (no such folder, a path that leads out
of it, a bad pattern) raises `FileError`. What the world does (a file that vanished, may not be read, is
binary or broken) is an answer: `problem` says it.

Symbolic links are never followed and only regular files are opened. Files are cut, never refused: a result
says how many bytes it looked at. Names that are not UTF-8 are written with `\\xNN` for each odd byte, and
are understood in that form.
"""

from __future__ import annotations

import ast
import codecs
import csv
import io
import json
import math
import os
import re
import stat
import warnings
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, Literal

KIB: Final = 1024
MIB: Final = 1024 * KIB

ENTRIES_MAX: Final = 200_000  # one walk looks at no more; about a second of directory reads
LISTED_MAX: Final = 2_000  # files named in a listing, so that with their names …
LISTED_BYTES_MAX: Final = 192 * KIB  # … the result stays well under the log's 512 KiB for one output
NAMED_MAX: Final = 20  # skipped folders, unreadable paths, largest files: examples, the count is exact
EXCERPT_BYTES_MAX: Final = 64 * KIB  # of `read_file`: a long README, not a book
PROFILE_BYTES_MAX: Final = 8 * MIB  # of `profile_file`: one or two seconds, and 200 MiB at the worst
PYTHON_BYTES_MAX: Final = 1 * MIB  # a syntax tree takes about fifty times its source
ROWS_MAX: Final = 500_000  # their hashes, kept to count repeated rows, take about 30 MiB
ROWS_AT_ONCE: Final = 2_000  # equal cells of a batch are classified once; larger batches gain nothing
COLUMNS_MAX: Final = 200  # described; a wider table says how many were left out
DISTINCT_MAX: Final = 10_000  # distinct values remembered in one column
KEYS_MAX: Final = 100  # JSON keys described
HEADINGS_MAX: Final = 50
IMPORTS_MAX: Final = 50
LONGEST_MAX: Final = 3  # functions named in one Python file
EXAMPLES_MAX: Final = 3
NAME_CHARS_MAX: Final = 80  # of a column, key, heading or function
EXAMPLE_CHARS_MAX: Final = 40
SNIFF_BYTES: Final = 8 * KIB  # of the head decide whether a file is text
SNIFF_ROWS: Final = 100  # of a table decide its delimiter
SEARCH_FILE_BYTES_MAX: Final = 1 * MIB  # of each file; longer ones are data or generated
SEARCH_BYTES_MAX: Final = 64 * MIB  # of all files: about two seconds
SEARCH_LINE_CHARS_MAX: Final = 2_000  # of each line; keeps patterns away from minified code
MATCHES_MAX: Final = 200
MATCH_CHARS_MAX: Final = 160
PATTERN_CHARS_MAX: Final = 500
INT_MAX: Final = 2**63 - 1  # the log holds 64-bit integers; sparse files can add up to more

Kind = Literal["table", "json", "python", "code", "markdown", "text", "binary", "other"]

SUFFIXES: Final[dict[Kind, str]] = {
    "table": ".csv .tsv .tab .psv",
    "json": ".json .jsonl .ndjson .geojson .ipynb",
    "python": ".py .pyi",
    "code": ".c .h .cc .cpp .hpp .cs .css .cu .dart .ex .exs .go .hs .html .java .jl .js .jsx .kt .lua .m "
    ".mjs .php .pl .proto .ps1 .r .rb .rs .scala .scss .sh .bash .sql .svelte .swift .tf .ts .tsx .vue .zig",
    "markdown": ".md .markdown .mdx",
    "text": ".txt .log .rst .adoc .tex .toml .yaml .yml .ini .cfg .conf .xml .properties .env .diff .patch .lock",
    "binary": ".png .jpg .jpeg .gif .webp .ico .pdf .zip .gz .bz2 .xz .zst .7z .tar .whl .jar .so .dylib "
    ".dll .exe .o .a .pyc .class .wasm .mp3 .mp4 .mov .wav .ogg .woff .woff2 .ttf .otf .sqlite .db .npy "
    ".parquet .feather .npz .pkl .pt .onnx .safetensors .xlsx .docx .pptx .bin .iso",
}
KIND_BY_SUFFIX: Final[dict[str, Kind]] = {
    suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes.split()
}
KIND_BY_NAME: Final[dict[str, Kind]] = {
    "makefile": "code",
    "dockerfile": "code",
    "justfile": "code",
    "readme": "text",
    "license": "text",
    "notice": "text",
    "authors": "text",
    "changelog": "text",
}
SKIPPED_NAMES: Final = frozenset({"node_modules", "bower_components", "__pycache__", "site-packages", "venv"})
CACHE_TAGS: Final = frozenset({"CACHEDIR.TAG", "pyvenv.cfg"})  # a folder that holds one is made by a tool

MARKS: Final = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")


class FileError(Exception):
    """The caller asked for something that no folder could answer; the message says what to ask instead."""


# --- Records --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """One file: its path under the root (`/` between names), size in bytes, and kind by name."""

    path: str
    bytes: int
    kind: Kind


@dataclass(frozen=True, slots=True)
class Tally:
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Listing:
    """What a walk saw. Counts are exact up to `cut`; `files` names at most 2,000, nearest the root first."""

    root: str
    files: list[Entry]
    file_count: int
    folder_count: int
    byte_count: int
    kinds: dict[str, Tally]
    largest: list[Entry]
    empty_count: int
    link_count: int
    special_count: int
    hidden_count: int
    skipped: list[str]
    skipped_count: int
    unreadable: list[str]
    unreadable_count: int
    cut: str | None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The head of a text file; `text` is empty when there is a `problem`."""

    path: str
    bytes: int
    text: str
    cut: bool
    problem: str | None


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table. `empty` counts blanks and the usual words for nothing (NA, null, -)."""

    name: str
    type: str
    kinds: dict[str, int]
    empty: int
    distinct: int
    distinct_cut: bool
    low: float | None
    high: float | None
    mean: float | None
    outliers: int
    examples: list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """A delimited table. `ragged` rows are not as wide as the first; `broken` ones could not be read."""

    delimiter: str
    header: bool
    rows: int
    rows_estimated: int | None
    columns: list[Column]
    columns_left_out: int
    ragged: int
    repeated: int
    broken: int


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    count: int
    types: dict[str, int]


@dataclass(frozen=True, slots=True)
class Json:
    """The top of a JSON document, or of JSON lines: how many items, of which types, with which keys."""

    type: str
    items: int
    types: dict[str, int]
    keys: list[Key]
    keys_left_out: int
    broken: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Function:
    name: str
    line: int
    lines: int


@dataclass(frozen=True, slots=True)
class Python:
    """What a syntax tree tells. `documented` of `documentable`: the module and its public names."""

    functions: int
    classes: int
    longest: list[Function]
    imports: list[str]
    documented: int
    documentable: int
    problem: str | None


@dataclass(frozen=True, slots=True)
class Text:
    """Lines of any text; `marks` are its TODO, FIXME, XXX and HACK lines."""

    lines: int
    blank: int
    longest_line: int
    longest_line_at: int
    headings: list[str]
    marks: int


@dataclass(frozen=True, slots=True)
class Profile:
    """What a file is and holds, as far as `bytes_seen` of its `bytes` tell."""

    path: str
    kind: Kind
    bytes: int
    bytes_seen: int
    cut: bool
    encoding: str | None
    problem: str | None
    text: Text | None = None
    table: Table | None = None
    json: Json | None = None
    python: Python | None = None


@dataclass(frozen=True, slots=True)
class Match:
    path: str
    line: int
    text: str


@dataclass(frozen=True, slots=True)
class Search:
    pattern: str
    matches: list[Match]
    files_searched: int
    files_passed: int
    cut: str | None


# --- The tools ------------------------------------------------------------------------------------


def list_files(root: str) -> Listing:
    """List the files under a folder: names, sizes and kinds, nearest first, in the same order every time."""
    base = folder(root)
    listed: list[Entry] = []
    files: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    named: dict[str, list[str]] = {"skipped": [], "unreadable": []}
    largest: list[Entry] = []
    room, cut = LISTED_BYTES_MAX, None
    for seen in _walk(base):
        counts[seen.what] += 1
        if seen.what == "cut":
            cut = f"stopped after {ENTRIES_MAX:,} names"
        elif seen.what in named and len(named[seen.what]) < NAMED_MAX:
            named[seen.what].append(seen.path)
        if seen.what != "file":
            continue
        entry = Entry(seen.path, seen.bytes, kind_of(seen.path))
        files[entry.kind] += 1
        sizes[entry.kind] += entry.bytes
        counts["empty"] += entry.bytes == 0
        largest = sorted([*largest, entry], key=lambda each: (-each.bytes, each.path))[:NAMED_MAX]
        room -= len(json.dumps(entry.path)) + 48  # 48: the rest of an entry, encoded
        if len(listed) < LISTED_MAX and room >= 0:
            listed.append(entry)
    file_count = files.total()
    if cut is None and len(listed) < file_count:
        cut = f"names {len(listed):,} of {file_count:,} files; the counts are of all"
    return Listing(
        root=shown(str(base)),
        files=listed,
        file_count=file_count,
        folder_count=counts["folder"],
        byte_count=min(sizes.total(), INT_MAX),
        kinds={kind: Tally(n, min(sizes[kind], INT_MAX)) for kind, n in sorted(files.items())},
        largest=largest,
        empty_count=counts["empty"],
        link_count=counts["link"],
        special_count=counts["special"],
        hidden_count=counts["hidden"],
        skipped=named["skipped"],
        skipped_count=counts["skipped"],
        unreadable=named["unreadable"],
        unreadable_count=counts["unreadable"],
        cut=cut,
    )


def read_file(root: str, path: str) -> Excerpt:
    """Read the head of a text file, at most 64 KiB."""
    target = _locate(folder(root), path)
    try:
        head = _head(target, EXCERPT_BYTES_MAX)
    except OSError as error:
        return Excerpt(path, 0, "", False, _reason(error))
    decoded = decode(head.data, cut=head.cut)
    if decoded is None:
        return Excerpt(path, head.bytes, "", head.cut, "binary")
    return Excerpt(path, head.bytes, decoded[0], head.cut, None)


def profile_file(root: str, path: str) -> Profile:
    """Say what a file holds: columns of a table, keys of JSON, functions of Python, lines of any text."""
    target = _locate(folder(root), path)
    kind = kind_of(path)
    try:
        head = _head(target, PROFILE_BYTES_MAX)
    except OSError as error:
        return Profile(path, kind, 0, 0, False, None, _reason(error))
    seen = len(head.data)
    decoded = decode(head.data, cut=head.cut)
    if decoded is None:
        return Profile(path, "binary", head.bytes, seen, head.cut, None, None)
    text, encoding = decoded
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    table = shape = python = None
    if kind == "table":
        table = profile_table(text, cut=head.cut, share=seen / max(head.bytes, 1))
    elif kind == "json":
        lines = path.endswith((".jsonl", ".ndjson"))
        shape = profile_json_lines(text, cut=head.cut) if lines else profile_json(text, cut=head.cut)
    elif kind == "python":
        python = profile_python(text) if seen <= PYTHON_BYTES_MAX else _unparsed("longer than 1 MiB: not parsed")
    return Profile(
        path,
        kind,
        head.bytes,
        seen,
        head.cut,
        encoding,
        None,
        text=profile_text(text, headings=kind == "markdown"),
        table=table,
        json=shape,
        python=python,
    )


def search_files(root: str, pattern: str, literal: bool = False, kinds: list[str] | None = None) -> Search:
    """Find the lines that match a regular expression (or hold a literal text), at most 200.

    `kinds` limits the search to files of these kinds. A pattern comes from a program or from the server's own
    user: Python's `re` has no time limit, so a stranger's pattern could hold the process.
    """
    base = folder(root)
    found = _compile(pattern, literal)
    matches: list[Match] = []
    searched = passed = 0
    room, cut = SEARCH_BYTES_MAX, None
    for seen in _walk(base):
        if seen.what == "cut":
            cut = f"stopped after {ENTRIES_MAX:,} names"
        if seen.what != "file":
            continue
        kind = kind_of(seen.path)
        if kind == "binary" or (kinds is not None and kind not in kinds):
            passed += 1
            continue
        try:
            head = _head(base / seen.inside, min(SEARCH_FILE_BYTES_MAX, room))
        except OSError:
            passed += 1
            continue
        room -= len(head.data)
        decoded = decode(head.data, cut=head.cut)
        if decoded is None:
            passed += 1
            continue
        searched += 1
        for number, line in enumerate(io.StringIO(decoded[0]), 1):
            if not found.search(line[:SEARCH_LINE_CHARS_MAX]):
                continue
            matches.append(Match(seen.path, number, clip(line, MATCH_CHARS_MAX)))
            if len(matches) == MATCHES_MAX:
                return Search(pattern, matches, searched, passed, f"stopped at {MATCHES_MAX} matches")
        if room <= 0:
            cut = f"stopped after {SEARCH_BYTES_MAX // MIB} MiB"
            break
    return Search(pattern, matches, searched, passed, cut)


# --- Folders and names ----------------------------------------------------------------------------


def folder(root: str) -> Path:
    """The real, absolute path of a folder that can be read; otherwise `FileError` with what to do."""
    try:
        base = Path(root).expanduser().resolve()
        with os.scandir(base):
            return base
    except FileNotFoundError:
        reason = "does not exist"
    except NotADirectoryError:
        reason = "is not a folder"
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: `~name` of nobody
        reason = f"cannot be read ({_reason(error)})"
    raise FileError(f"{clip(root, 200)!r} {reason}. Give the path of a folder that the server can read.")


def kind_of(path: str) -> Kind:
    """The kind that a name promises; what the file really holds, `profile_file` says."""
    name = path.rpartition("/")[2].lower()
    stem, dot, suffix = name.rpartition(".")
    return KIND_BY_SUFFIX.get(dot + suffix) or KIND_BY_NAME.get(name) or KIND_BY_NAME.get(stem) or "other"


def shown(path: str) -> str:
    """A path as valid Unicode: a byte that is not UTF-8 becomes `\\xNN`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _unshown(path: str) -> str:
    """The path that `shown` wrote, where it holds an escaped byte that could not have been text."""
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), path.encode("utf-8"))
    return raw.decode("utf-8", "surrogateescape")


def clip(text: str, chars_max: int) -> str:
    """One printable line of at most `chars_max` characters; what does not print becomes U+FFFD."""
    head = text[: 4 * chars_max]  # enough after white space is folded, and never a whole huge line
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(head.split()))
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"


def _locate(base: Path, path: str) -> Path:
    """The real path of `path` under `base`; `FileError` when it leads elsewhere."""
    try:
        target = base / path
        if not os.path.lexists(target):
            target = base / _unshown(path)
        target = target.resolve()
        if target.is_relative_to(base):
            return target
    except (OSError, RuntimeError, ValueError):
        pass
    raise FileError(f"{clip(path, 200)!r} is no path inside the folder. Use one that list_files returned.")


@dataclass(frozen=True, slots=True)
class _Seen:
    inside: str
    what: Literal["file", "folder", "link", "special", "hidden", "skipped", "unreadable", "cut"]
    bytes: int = 0

    @property
    def path(self) -> str:
        return shown(self.inside)


def _walk(base: Path) -> Iterator[_Seen]:
    """Everything under `base` that is worth a look, level by level and sorted, without leaving it."""
    room = ENTRIES_MAX
    waiting = deque([""])
    while waiting:
        inside = waiting.popleft()
        try:
            with os.scandir(base / inside) as scan:
                entries = sorted(islice(scan, room), key=lambda entry: entry.name)
        except OSError:
            yield _Seen(inside, "unreadable")
            continue
        if inside and not CACHE_TAGS.isdisjoint(entry.name for entry in entries):
            yield _Seen(inside, "skipped")
            continue
        if inside:
            yield _Seen(inside, "folder")
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            seen = _look(entry, path)
            if seen.what == "folder":
                waiting.append(path)  # reported once it could be read
            else:
                yield seen
        room -= len(entries)
        if room <= 0:
            yield _Seen("", "cut")
            return


def _look(entry: os.DirEntry[str], path: str) -> _Seen:
    if entry.name.startswith("."):
        return _Seen(path, "hidden")
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return _Seen(path, "unreadable")
    if stat.S_ISLNK(status.st_mode):
        return _Seen(path, "link")
    if stat.S_ISDIR(status.st_mode):
        return _Seen(path, "skipped" if entry.name in SKIPPED_NAMES else "folder")
    if stat.S_ISREG(status.st_mode):
        return _Seen(path, "file", status.st_size)
    return _Seen(path, "special")


# --- Bytes and text -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Head:
    data: bytes
    bytes: int
    cut: bool


def _head(target: Path, bytes_max: int) -> _Head:
    """The first bytes of a regular file. Anything else is refused unopened: a FIFO would wait for ever."""
    if not stat.S_ISREG(target.lstat().st_mode):
        raise OSError("not a regular file")
    # Asked again after opening, since the name may mean another file by now; without O_NONBLOCK that open
    # itself could wait.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        data = bytearray()
        while len(data) <= bytes_max:
            chunk = os.read(descriptor, min(1 * MIB, bytes_max + 1 - len(data)))
            if not chunk:
                break
            data += chunk
    finally:
        os.close(descriptor)
    return _Head(bytes(data[:bytes_max]), max(status.st_size, len(data)), len(data) > bytes_max)


def decode(data: bytes, *, cut: bool = False) -> tuple[str, str] | None:
    """Text and the name of its encoding, or None for binary. Bytes that are no text become U+FFFD."""
    for mark, codec in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF8, "utf-8-sig"),
    ):
        if data.startswith(mark):
            return _decode_as(codec, "replace", data, cut), codec
    head = data[:SNIFF_BYTES]
    if 0 in head:
        return None
    try:
        return _decode_as("utf-8", "strict", data, cut), "utf-8"
    except UnicodeDecodeError:
        control = len(head) - len(head.translate(None, bytes([*range(9), *range(14, 32), 127])))
        if control * 10 > len(head):
            return None
        return _decode_as("utf-8", "replace", data, cut), "not UTF-8"


def _decode_as(codec: str, errors: str, data: bytes, cut: bool) -> str:
    # A character that the cut went through is left away, instead of being called invalid.
    return codecs.getincrementaldecoder(codec)(errors).decode(data, final=not cut)


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


def _compile(pattern: str, literal: bool) -> re.Pattern[str]:
    if len(pattern) > PATTERN_CHARS_MAX:
        raise FileError(f"The pattern is longer than {PATTERN_CHARS_MAX} characters. Use a shorter one.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "possible nested set" is not the server's to print
            return re.compile(re.escape(pattern) if literal else pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise FileError(
            f"The pattern is no regular expression ({error}). Pass literal=True to find it as it is."
        ) from None


# --- Text -----------------------------------------------------------------------------------------


def profile_text(text: str, *, headings: bool = False) -> Text:
    """Count the lines of a text, its blank, longest and marked ones, and collect Markdown headings."""
    lines = blank = longest = longest_at = marks = 0
    found: list[str] = []
    fenced = False
    for lines, line in enumerate(io.StringIO(text), 1):
        bare = line.rstrip("\n")
        blank += not bare.strip()
        if len(bare) > longest:
            longest, longest_at = len(bare), lines
        marks += MARKS.search(bare[:SEARCH_LINE_CHARS_MAX]) is not None
        if headings and bare.lstrip().startswith(("```", "~~~")):
            fenced = not fenced  # a comment in a code block is no heading
        if headings and not fenced and len(found) < HEADINGS_MAX and re.match(r"#{1,6} ", bare):
            found.append(clip(bare, NAME_CHARS_MAX))
    return Text(lines, blank, longest, longest_at, found, marks)


# --- Tables ---------------------------------------------------------------------------------------

NOTHING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "nil", "-", "--", "?"})
TRUTH: Final = frozenset({"true", "false", "yes", "no"})
# A leading zero is kept as text: postcodes and phone numbers are no amounts.
INTEGER: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,17})")
NUMBER: Final = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]{0,29})(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
DATE: Final = re.compile(
    r"[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}.{0,20})?|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{4}"
)
DELIMITERS: Final = ",\t;|"
OUTLIERS_FROM: Final = 20  # values; with fewer, quartiles say little
OUTLIER_REACH: Final = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"

CellKind = Literal["empty", "integer", "number", "boolean", "date", "text"]


def kind_of_cell(value: str) -> CellKind:
    """What a cell of a table is, judged by its text alone."""
    bare = value.strip()
    if bare.lower() in NOTHING:
        return "empty"
    if len(bare) > 100:
        return "text"
    if INTEGER.fullmatch(bare):
        return "integer"
    if NUMBER.fullmatch(bare) and math.isfinite(float(bare)):
        return "number"
    if bare.lower() in TRUTH:
        return "boolean"
    return "date" if DATE.fullmatch(bare) else "text"


def sniff_delimiter(text: str) -> str:
    """The delimiter that cuts the first rows into the most even table; a comma when there is one column."""
    sample = list(islice(io.StringIO(text[: 64 * KIB], newline=""), SNIFF_ROWS))
    best, best_score = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        widths: Counter[int] = Counter(len(row) for row in _rows(sample, delimiter) if row)
        if not widths:
            continue
        width, times = max(widths.items(), key=lambda item: (item[1], item[0]))
        score = (times / widths.total(), width)
        if width > 1 and score > best_score:
            best, best_score = delimiter, score
    return best


def is_header(row: list[str]) -> bool:
    """Whether a first row names its columns: distinct words, nothing that could be a value.

    The first name may be blank, as it is where an index was written beside the data.
    """
    names = [cell.strip().casefold() for cell in row]
    named = all(kind_of_cell(name) == "text" for name in names[1:])
    return bool(
        named and names and kind_of_cell(names[0]) in ("text", "empty") and any(names) and len(set(names)) == len(names)
    )


def profile_table(text: str, *, cut: bool = False, share: float = 1.0) -> Table:
    """Describe a delimited table; `share` is the part of its file that `text` is, to estimate all rows."""
    if cut and "\n" in text:
        text = text[: text.rindex("\n") + 1]  # the last row is only half there
    delimiter = sniff_delimiter(text)
    broken = [0]
    source = io.StringIO(text, newline="")
    rows = _rows(source, delimiter, broken)
    filled = (row for row in rows if row)
    first = next(filled, [])
    header = is_header(first)
    described = first[:COLUMNS_MAX]
    columns = [
        _ColumnSoFar(clip(cell, NAME_CHARS_MAX) if header else f"column {at}") for at, cell in enumerate(described, 1)
    ]
    hashes: set[int] = set()
    count = ragged = 0
    batch = [] if header or not first else [first]
    while batch or (batch := list(islice(filled, min(ROWS_AT_ONCE, ROWS_MAX - count)))):
        count += len(batch)
        ragged += sum(len(row) != len(first) for row in batch)
        hashes.update(hash(tuple(row)) for row in batch)
        for at, column in enumerate(columns):
            column.add([row[at] if at < len(row) else "" for row in batch])
        batch = []
    read = source.tell() / max(len(text), 1)
    whole = next(filled, None) is None and not cut
    return Table(
        delimiter=delimiter,
        header=header,
        rows=count,
        rows_estimated=None if whole else min(round(count / (share * read or 1)), INT_MAX),
        columns=[column.done() for column in columns],
        columns_left_out=max(len(first) - COLUMNS_MAX, 0),
        ragged=ragged,
        repeated=count - len(hashes),
        broken=broken[0],
    )


def _rows(
    lines: Iterator[str] | list[str] | io.StringIO, delimiter: str, broken: list[int] | None = None
) -> Iterator[list[str]]:
    reader = csv.reader(lines, delimiter=delimiter)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error:  # a field over the module's own limit (128 KiB): the rows after it are still good
            if broken is not None:
                broken[0] += 1


@dataclass(slots=True)
class _ColumnSoFar:
    name: str
    kinds: Counter[str] = field(default_factory=Counter)
    values: set[str] = field(default_factory=set)
    values_cut: bool = False
    numbers: array[float] = field(default_factory=lambda: array("d"))
    examples: list[str] = field(default_factory=list)

    def add(self, cells: list[str]) -> None:
        for cell, count in Counter(cells).items():
            kind = kind_of_cell(cell)
            self.kinds[kind] += count
            if kind == "empty":
                continue
            if kind in ("integer", "number"):
                self.numbers.extend([float(cell)] * count)
            if cell in self.values:
                continue
            if len(self.values) >= DISTINCT_MAX:
                self.values_cut = True
                continue
            self.values.add(cell)
            if len(self.examples) < EXAMPLES_MAX:
                self.examples.append(clip(cell, EXAMPLE_CHARS_MAX))

    def done(self) -> Column:
        kinds = {kind: count for kind, count in self.kinds.items() if kind != "empty"}
        if "number" in kinds and "integer" in kinds:
            kinds["number"] += kinds.pop("integer")
        numbers = sorted(self.numbers)
        return Column(
            name=self.name,
            type=min(kinds, key=lambda kind: (-kinds[kind], kind)) if kinds else "empty",
            kinds=dict(sorted(kinds.items())),
            empty=self.kinds["empty"],
            distinct=len(self.values),
            distinct_cut=self.values_cut,
            low=numbers[0] if numbers else None,
            high=numbers[-1] if numbers else None,
            mean=_mean(numbers),
            outliers=_outliers(numbers),
            examples=self.examples,
        )


def _mean(numbers: list[float]) -> float | None:
    try:
        return math.fsum(numbers) / len(numbers)
    except (OverflowError, ZeroDivisionError):  # values near the end of what a float holds; or none
        return None


def _outliers(ordered: list[float]) -> int:
    if len(ordered) < OUTLIERS_FROM:
        return 0
    low, high = ordered[len(ordered) // 4], ordered[3 * len(ordered) // 4]
    reach = OUTLIER_REACH * (high - low)
    # A column that is mostly one value has no spread to measure by.
    return sum(not low - reach <= number <= high + reach for number in ordered) if reach > 0 else 0


# --- JSON -----------------------------------------------------------------------------------------

_DECODER: Final = json.JSONDecoder()
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_TYPE_NAMES: Final[dict[type, str]] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}


@dataclass(slots=True)
class _Items:
    """What was seen so far of the values at the top."""

    count: int = 0
    types: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Counter[str]] = field(default_factory=dict)
    keys_left_out: set[int] = field(default_factory=set)

    def item(self, value: object) -> None:
        self.count += 1
        self.types[_TYPE_NAMES[type(value)]] += 1
        if isinstance(value, dict):
            for key, inner in value.items():
                self.key(key, inner)

    def member(self, key: str, value: object) -> None:
        self.count += 1
        self.key(key, value)

    def key(self, key: str, value: object) -> None:
        name = clip(key, NAME_CHARS_MAX)
        if name in self.keys or len(self.keys) < KEYS_MAX:
            self.keys.setdefault(name, Counter())[_TYPE_NAMES[type(value)]] += 1
        elif len(self.keys_left_out) < DISTINCT_MAX:
            self.keys_left_out.add(hash(key))

    def done(self, type_name: str, *, broken: int = 0, problem: str | None = None) -> Json:
        return Json(
            type=type_name,
            items=self.count,
            types=dict(sorted(self.types.items())),
            keys=[Key(name, types.total(), dict(sorted(types.items()))) for name, types in self.keys.items()],
            keys_left_out=len(self.keys_left_out),
            broken=broken,
            problem=problem,
        )


def profile_json(text: str, *, cut: bool = False) -> Json:
    """Describe a JSON document item by item, so that a cut or broken one still tells what came before."""
    items = _Items()
    at = _skip(text, 0)
    opening = text[at : at + 1]
    type_name = {"[": "array", "{": "object"}.get(opening, "value")
    try:
        if type_name == "array":
            end = _members(text, at, "]", lambda start: _array_item(text, start, items))
        elif type_name == "object":
            end = _members(text, at, "}", lambda start: _object_member(text, start, items))
        else:
            value, end = _DECODER.raw_decode(text, at)
            type_name = _TYPE_NAMES[type(value)]
            items.item(value)
        if _skip(text, end) < len(text):
            raise json.JSONDecodeError("Extra data", text, _skip(text, end))
    except (ValueError, RecursionError) as error:
        # Whatever is wrong near a cut is the cut.
        return items.done(type_name, broken=not cut, problem=None if cut else _json_problem(error))
    return items.done(type_name)


def profile_json_lines(text: str, *, cut: bool = False) -> Json:
    """Describe JSON lines: each line a document; lines that are none are counted."""
    if cut and "\n" in text:
        text = text[: text.rindex("\n") + 1]
    items, broken, problem = _Items(), 0, None
    for number, line in enumerate(io.StringIO(text), 1):
        if not line.strip():
            continue
        try:
            items.item(json.loads(line))
        except (ValueError, RecursionError) as error:
            broken += 1
            problem = problem or f"line {number}: {_json_problem(error)}"
    return items.done("lines", broken=broken, problem=problem)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _members(text: str, at: int, closing: str, member: Callable[[int], int]) -> int:
    """Walk from an opening bracket to its closing one; `member` reads one and returns where it ended."""
    at = _skip(text, at + 1)
    if text[at : at + 1] == closing:
        return at + 1
    while True:
        at = _skip(text, member(_skip(text, at)))
        if text[at : at + 1] == closing:
            return at + 1
        at = _expect(text, at, ",")


def _array_item(text: str, at: int, items: _Items) -> int:
    value, end = _DECODER.raw_decode(text, at)
    items.item(value)
    return end


def _object_member(text: str, at: int, items: _Items) -> int:
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting a property name in double quotes", text, at)
    key, end = _DECODER.raw_decode(text, at)
    value, end = _DECODER.raw_decode(text, _skip(text, _expect(text, _skip(text, end), ":")))
    items.member(key, value)
    return end


def _expect(text: str, at: int, char: str) -> int:
    if text[at : at + 1] != char:
        raise json.JSONDecodeError(f"Expecting {char!r}", text, at)
    return at + 1


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"


# --- Python ---------------------------------------------------------------------------------------


def profile_python(source: str) -> Python:
    """Describe Python source from its syntax tree; source that does not parse says where."""
    try:
        # The parser warns about the file's style, on the server's own stderr: not ours to print.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError as error:
        return _unparsed(f"line {error.lineno or 1}: {clip(error.msg, NAME_CHARS_MAX)}")
    except (ValueError, RecursionError, MemoryError) as error:
        return _unparsed("holds a NUL character" if isinstance(error, ValueError) else "nested too deeply to parse")
    functions: list[Function] = []
    imports: set[str] = set()
    classes = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imports.add(node.module.partition(".")[0])
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            functions.append(Function(clip(node.name, NAME_CHARS_MAX), node.lineno, length))
        classes += isinstance(node, ast.ClassDef)
    public = [tree, *_public(tree)]
    return Python(
        functions=len(functions),
        classes=classes,
        longest=sorted(functions, key=lambda each: (-each.lines, each.line))[:LONGEST_MAX],
        imports=sorted(clip(name, NAME_CHARS_MAX) for name in imports)[:IMPORTS_MAX],
        documented=sum(ast.get_docstring(node, clean=False) is not None for node in public),
        documentable=len(public),
        problem=None,
    )


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _public(holder: ast.Module | ast.ClassDef) -> Iterator[_Definition]:
    """The functions and classes that others can reach by name."""
    for node in holder.body:
        if isinstance(node, _Definition) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from _public(node)


def _unparsed(problem: str) -> Python:
    return Python(0, 0, [], [], 0, 0, problem)
