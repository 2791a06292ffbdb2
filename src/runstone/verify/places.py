"""The order of the whole store: positions without a gap, times that never fall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from runstone.audit import PlaceRow
from runstone.verify.findings import Finding


def misplaced(rows: Sequence[PlaceRow], before: PlaceRow) -> Iterator[Finding]:
    """Findings of one page; `before` is the place right below it, (0, 0) at the beginning."""
    if not rows:
        return
    positions, times = zip(*rows, strict=True)
    start = before[0] + 1
    if positions == tuple(range(start, start + len(rows))) and [before[1], *times] == sorted([before[1], *times]):
        return  # the common case, at the speed of C
    for pos, time_us in rows:
        if pos != before[0] + 1:
            missing = (
                f"{before[0] + 1} to {pos - 1} are missing" if pos > before[0] + 2 else f"{before[0] + 1} is missing"
            )
            yield Finding(check="pos", pos=pos, detail=f"{missing}, expected no gap")
        if time_us < before[1]:
            detail = f"its time is {time_us} µs, expected {before[1]} µs or later, as at pos {before[0]}"
            yield Finding(check="time", pos=pos, detail=detail)
        before = (pos, time_us)
