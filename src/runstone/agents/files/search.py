"""Search the lines of a folder's files."""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from typing import Final

from runstone.agents.files.bounds import LINE_CHARS_MAX
from runstone.agents.files.folders import FileError, cut_short, folder, walk
from runstone.agents.files.kinds import kind_of
from runstone.agents.files.names import clip
from runstone.agents.files.reading import decode, head_of
from runstone.limits import MIB

SEARCH_FILE_BYTES_MAX: Final = 1 * MIB  # of each file; longer ones are data or generated
SEARCH_BYTES_MAX: Final = 64 * MIB  # of all files: about two seconds
MATCHES_MAX: Final = 200
MATCH_CHARS_MAX: Final = 160
PATTERN_CHARS_MAX: Final = 500


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
    for seen in walk(base):
        if seen.what == "cut":
            cut = cut_short()
        if seen.what != "file":
            continue
        kind = kind_of(seen.path)
        if kind == "binary" or (kinds is not None and kind not in kinds):
            passed += 1
            continue
        try:
            head = head_of(base / seen.inside, min(SEARCH_FILE_BYTES_MAX, room))
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
            if not found.search(line[:LINE_CHARS_MAX]):
                continue
            matches.append(Match(seen.path, number, clip(line, MATCH_CHARS_MAX)))
            if len(matches) == MATCHES_MAX:
                return Search(pattern, matches, searched, passed, f"stopped at {MATCHES_MAX} matches")
        if room <= 0:
            cut = f"stopped after {SEARCH_BYTES_MAX // MIB} MiB"
            break
    return Search(pattern, matches, searched, passed, cut)


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
