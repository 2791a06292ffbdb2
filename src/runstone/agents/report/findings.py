"""What in a folder deserves a second look: pure judgements on what the tools returned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from runstone.agents.files import Column, Listing, Profile
from runstone.agents.report.markdown import code_span, count, number, percent, size
from runstone.limits import MIB

BIG_BYTES: Final = 10 * MIB  # a file over it deserves a mention: common hosts warn at 50 MiB
EMPTY_ON_PURPOSE: Final = ("__init__.py", "py.typed")
LONG_FUNCTION_LINES: Final = 60  # more than a screen
LONG_FILE_LINES: Final = 1_000
LONG_LINE_CHARS: Final = 1_000  # a sign of generated or minified text
EMPTY_SHARE: Final = 0.05  # of a column's cells; a few gaps are ordinary
MIXED_SHARE: Final = 0.5  # a column is of a type when this much of it is, and then the rest is out of place


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark, and the file it is about."""

    path: str
    text: str


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
