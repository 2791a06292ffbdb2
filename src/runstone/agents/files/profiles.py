"""Profile a file: open it within bounds, and let the profile of its kind say what it holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from runstone.agents.files.folders import folder, locate, reason_of
from runstone.agents.files.json_documents import Json, profile_json, profile_json_lines
from runstone.agents.files.kinds import Kind, kind_of
from runstone.agents.files.python_source import Python, profile_python, unparsed
from runstone.agents.files.reading import decode, head_of
from runstone.agents.files.tables import Table, profile_table
from runstone.agents.files.text import Text, profile_text
from runstone.limits import MIB

PROFILE_BYTES_MAX: Final = 8 * MIB  # of `profile_file`: one or two seconds, and 200 MiB at the worst
PYTHON_BYTES_MAX: Final = 1 * MIB  # a syntax tree takes about fifty times its source


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


def profile_file(root: str, path: str) -> Profile:
    """Say what a file holds: columns of a table, keys of JSON, functions of Python, lines of any text."""
    target = locate(folder(root), path)
    kind = kind_of(path)
    try:
        head = head_of(target, PROFILE_BYTES_MAX)
    except OSError as error:
        return Profile(path, kind, 0, 0, False, None, reason_of(error))
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
        python = profile_python(text) if seen <= PYTHON_BYTES_MAX else unparsed("longer than 1 MiB: not parsed")
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
