"""Choose which files of a listing to open."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from runstone.agents.files import Entry, Kind, Listing, Tally

# How many files of each kind are opened, the largest first. The order is the report's.
OPENED_MAX: Final[dict[Kind, int]] = {
    "table": 12,
    "json": 8,
    "python": 25,
    "code": 10,
    "markdown": 5,
    "text": 5,
}


def choose(listing: Listing) -> list[Entry]:
    """The files to open: of each kind the largest, since there is most to find in them."""
    chosen: list[Entry] = []
    for kind, number in OPENED_MAX.items():
        of_kind = [entry for entry in listing.files if entry.kind == kind and entry.bytes]
        chosen += sorted(of_kind, key=lambda entry: (-entry.bytes, entry.path))[:number]
    return chosen


def without(listing: Listing, entries: list[Entry]) -> Listing:
    """The listing as it were without some of its files."""
    paths = {entry.path for entry in entries}
    kinds = dict(listing.kinds)
    for entry in entries:
        tally = kinds[entry.kind]
        kinds[entry.kind] = Tally(tally.files - 1, tally.bytes - entry.bytes)
    return replace(
        listing,
        files=[entry for entry in listing.files if entry.path not in paths],
        largest=[entry for entry in listing.largest if entry.path not in paths],
        file_count=listing.file_count - len(entries),
        byte_count=listing.byte_count - sum(entry.bytes for entry in entries),
        kinds={kind: tally for kind, tally in kinds.items() if tally.files},
    )
