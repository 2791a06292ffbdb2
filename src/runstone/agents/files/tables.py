"""Profile a delimited table: its delimiter, its header, its rows, its columns."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Final

from runstone.agents.files.bounds import INT_MAX, NAME_CHARS_MAX
from runstone.agents.files.columns import Column, ColumnSoFar, kind_of_cell
from runstone.agents.files.names import clip
from runstone.agents.files.text import whole_lines
from runstone.limits import KIB

ROWS_MAX: Final = 500_000  # their hashes, kept to count repeated rows, take about 30 MiB
ROWS_AT_ONCE: Final = 2_000  # equal cells of a batch are classified once; larger batches gain nothing
COLUMNS_MAX: Final = 200  # described; a wider table says how many were left out
SNIFF_ROWS: Final = 100  # decide the delimiter
DELIMITERS: Final = ",\t;|"


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
    text = whole_lines(text, cut=cut)
    delimiter = sniff_delimiter(text)
    broken = [0]
    source = io.StringIO(text, newline="")
    rows = _rows(source, delimiter, broken)
    filled = (row for row in rows if row)
    first = next(filled, [])
    header = is_header(first)
    described = first[:COLUMNS_MAX]
    columns = [
        ColumnSoFar(clip(cell, NAME_CHARS_MAX) if header else f"column {at}") for at, cell in enumerate(described, 1)
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
