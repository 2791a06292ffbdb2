"""Benchmarks still run: one small enough to measure nothing, from its server to its table."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benches.__main__ import BENCHES, measure
from benches.report import at_least, at_most, percentile

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(60)


def test_a_benchmark_prints_its_table_and_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benches", "streams", "--tiny"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert "SQLite" in done.stdout
    assert "tokens delivered, none lost" in done.stdout
    assert "server CPU" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_fan_out_that_is_measured_is_checked_to_be_whole() -> None:
    rows = measure("fan_out", "tiny")
    assert [row.figure for row in rows if row.target] == [
        "one event a write: deliveries",
        "coalesced, 16 events a commit: deliveries",
    ]
    assert all(row.baseline and row.ratio for row in rows if row.target)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    command = [sys.executable, "-m", "benches", "flatout"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=50)
    assert done.returncode == 2
    assert all(name in done.stderr for name in BENCHES)


def test_a_target_holds_or_does_not() -> None:
    assert at_least("rate", 10, "/s", target=10).holds is True
    assert at_least("rate", 9, "/s", target=10, baseline=18).holds is False
    assert at_most("time", 10, "ms", target=10).holds is True
    assert at_most("time", 11, "ms", target=10).holds is False
    assert at_most("time", 11, "ms", baseline=5.5).ratio == "2.00 ×"
    assert at_most("time", 11, "ms").holds is None


def test_a_percentile_of_few_values_is_one_of_them() -> None:
    assert percentile([3, 1, 2], 0.5) == 2
    assert percentile([1], 0.99) == 1
    assert percentile(list(range(1000)), 0.99) == 990
