"""List a folder: which files it holds, how large, of which kinds."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Final

from runstone.agents.files.bounds import INT_MAX
from runstone.agents.files.folders import cut_short, folder, walk
from runstone.agents.files.kinds import Kind, kind_of
from runstone.agents.files.names import shown
from runstone.limits import KIB

LISTED_MAX: Final = 2_000  # files named in a listing, so that with their names …
LISTED_BYTES_MAX: Final = 192 * KIB  # … the result stays well under the log's 512 KiB for one output
NAMED_MAX: Final = 20  # skipped folders, unreadable paths, largest files: examples, the count is exact


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
    for seen in walk(base):
        counts[seen.what] += 1
        if seen.what == "cut":
            cut = cut_short()
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
