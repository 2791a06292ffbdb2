"""Profile any text: its lines, its headings, its notes to self."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import Final

from runstone.agents.files.bounds import LINE_CHARS_MAX, NAME_CHARS_MAX
from runstone.agents.files.names import clip

HEADINGS_MAX: Final = 50
MARKS_PATTERN: Final = r"\b(?:TODO|FIXME|XXX|HACK)\b"  # notes to self
MARKS: Final = re.compile(MARKS_PATTERN)


@dataclass(frozen=True, slots=True)
class Text:
    """Lines of any text; `marks` are its TODO, FIXME, XXX and HACK lines."""

    lines: int
    blank: int
    longest_line: int
    longest_line_at: int
    headings: list[str]
    marks: int


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
        marks += MARKS.search(bare[:LINE_CHARS_MAX]) is not None
        if headings and bare.lstrip().startswith(("```", "~~~")):
            fenced = not fenced  # a comment in a code block is no heading
        if headings and not fenced and len(found) < HEADINGS_MAX and re.match(r"#{1,6} ", bare):
            found.append(clip(bare, NAME_CHARS_MAX))
    return Text(lines, blank, longest, longest_at, found, marks)


def whole_lines(text: str, *, cut: bool) -> str:
    """A text without its last line where the cut went through it, unless that is all there is."""
    return text[: text.rindex("\n") + 1] if cut and "\n" in text else text
