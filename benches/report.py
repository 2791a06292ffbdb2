"""What a benchmark says: rows of figure, target, baseline and ratio, and the table they are printed as."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import apsw
from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 118


@dataclass(frozen=True)
class Row:
    """One figure. `holds` is null where there is no target, or where this size cannot tell."""

    figure: str
    measured: str
    target: str = ""
    baseline: str = ""
    ratio: str = ""
    holds: bool | None = None


def at_least(
    figure: str, value: float, unit: str, *, target: float | None = None, baseline: float | None = None
) -> Row:
    """A rate: more is better; the ratio is what is left of the baseline's."""
    return Row(
        figure,
        f"{number(value)} {unit}",
        "" if target is None else f"≥ {number(target)}",
        "" if baseline is None else number(baseline),
        "" if not baseline else f"{value / baseline:.2f} ×",
        None if target is None else value >= target,
    )


def at_most(figure: str, value: float, unit: str, *, target: float | None = None, baseline: float | None = None) -> Row:
    """A cost or a time: less is better; the ratio is what it is of the baseline's."""
    return Row(
        figure,
        f"{number(value)} {unit}",
        "" if target is None else f"≤ {number(target)}",
        "" if baseline is None else number(baseline),
        "" if not baseline else f"{value / baseline:.2f} ×",
        None if target is None else value <= target,
    )


def number(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which that share of the (unsorted) values lies."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]


def show(title: str, rows: Sequence[Row], seconds: float) -> None:
    table = Table(box=box.SIMPLE_HEAD, title=f"{title}  ({seconds:.0f} s)", title_justify="left", title_style="bold")
    table.add_column("figure", min_width=46)
    for name in ("measured", "target", "baseline", "ratio"):
        table.add_column(name, justify="right")
    table.add_column("holds")
    for row in rows:
        holds = "" if row.holds is None else "[green]yes[/]" if row.holds else "[red]NO[/]"
        table.add_row(row.figure, row.measured, row.target, row.baseline, row.ratio, holds)
    console().print(table)


def show_machine() -> None:
    console().print(
        f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()} · "
        f"{platform.python_implementation()} {platform.python_version()} · SQLite {apsw.sqlite_lib_version()} · "
        f"load {os.getloadavg()[0]:.1f}\n"
        "A ratio is Runstone against its baseline of the same run: raw group commits, raw sockets. "
        "Figures differ from machine to machine, ratios less."
    )


def console() -> Console:
    return Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
