"""The sections of the report, as Markdown paragraphs: pure renderings of what the tools returned."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from runstone.agents.files import PROFILE_BYTES_MAX, Entry, Listing, Profile, Search, clip
from runstone.agents.report.findings import Finding
from runstone.agents.report.markdown import bullets, code_span, count, number, percent, size, table
from runstone.limits import MIB

COLUMNS_SHOWN_MAX: Final = 30  # of a table; the findings are of all columns
KEYS_SHOWN_MAX: Final = 12
ROWS_SHOWN_MAX: Final = 25  # of any other list in the report
WORST_SHOWN_MAX: Final = 5  # files named in the end
PARAGRAPH_CHARS_MAX: Final = 600


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
    found = f"{len(todos.matches):,} or more lines" if todos.cut else count(len(todos.matches), "line")
    lines = [f"{code_span(f'{match.path}:{match.line}')} {code_span(match.text)}" for match in todos.matches]
    return ["## To do", f"{found} with TODO, FIXME, XXX or HACK:", bullets(lines)]


def conclusion(findings: list[Finding], listing: Listing, opened: list[Entry]) -> list[str]:
    looked = (
        f"Looked at the names of {count(listing.file_count, 'file')} and into {len(opened):,}, at most "
        f"{PROFILE_BYTES_MAX // MIB} MiB of each."
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
