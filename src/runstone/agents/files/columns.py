"""Profile one column of a table, from what its cells look like."""

from __future__ import annotations

import math
import re
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Final, Literal

from runstone.agents.files.bounds import DISTINCT_MAX
from runstone.agents.files.names import clip

EXAMPLES_MAX: Final = 3
EXAMPLE_CHARS_MAX: Final = 40
OUTLIERS_FROM: Final = 20  # values; with fewer, quartiles say little
OUTLIER_REACH: Final = 3.0  # interquartile ranges beyond the quartiles: Tukey's "far out"

NOTHING: Final = frozenset({"", "na", "n/a", "nan", "null", "none", "nil", "-", "--", "?"})
TRUTH: Final = frozenset({"true", "false", "yes", "no"})
# A leading zero is kept as text: postcodes and phone numbers are no amounts.
INTEGER: Final = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,17})")
NUMBER: Final = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]{0,29})(?:\.[0-9]{0,30})?|\.[0-9]{1,30})(?:[eE][+-]?[0-9]{1,3})?")
DATE: Final = re.compile(
    r"[0-9]{4}[-/][0-9]{2}[-/][0-9]{2}(?:[T ][0-9]{2}:[0-9]{2}.{0,20})?|[0-9]{1,2}[./][0-9]{1,2}[./][0-9]{4}"
)

CellKind = Literal["empty", "integer", "number", "boolean", "date", "text"]


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


@dataclass(slots=True)
class ColumnSoFar:
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
