"""Bounds that several of these modules keep; each other bound stands beside its use."""

from __future__ import annotations

from typing import Final

INT_MAX: Final = 2**63 - 1  # the log holds 64-bit integers; sparse files can add up to more
DISTINCT_MAX: Final = 10_000  # distinct values of a column, or keys of a document, remembered
NAME_CHARS_MAX: Final = 80  # of a column, key, heading or function
LINE_CHARS_MAX: Final = 2_000  # of each line; keeps patterns away from minified code
