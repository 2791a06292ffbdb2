"""Amounts, names and lists as Markdown for people."""

from __future__ import annotations

import re
from typing import Final

from runstone.agents.files import clip

PATH_CHARS_MAX: Final = 160
REMARKS_SHOWN_MAX: Final = 25  # in one list; all are counted


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
