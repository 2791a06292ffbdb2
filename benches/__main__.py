"""Measures: `python -m benches [name …] [--quick]`. Prints a table each; writes nothing outside a temporary folder."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import resource
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import uvloop

from benches import delete_mode, fan_out, flat_out, growth, idle, latency, levels, resume, start, streams
from benches.bench import Bench, Scale
from benches.report import Row, console, show, show_machine

BENCHES: dict[str, ModuleType] = {
    "latency": latency,
    "streams": streams,
    "flat_out": flat_out,
    "fan_out": fan_out,
    "resume": resume,
    "idle": idle,
    "start": start,
    "growth": growth,
    "levels": levels,
    "delete_mode": delete_mode,
}


def measure(name: str, scale: Scale, *, huge: bool = False) -> list[Row]:
    """One benchmark, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="runstone-bench-") as folder:
        bench = Bench(scale, Path(folder), huge)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            rows: list[Row] = runner.run(BENCHES[name].run(bench))
    gc.collect()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"which: {', '.join(BENCHES)} (default: all)")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_const", const="quick", dest="scale", help="all of it in about 90 s")
    sizes.add_argument("--tiny", action="store_const", const="tiny", dest="scale", help="does it still run?")
    parser.add_argument("--huge", action="store_true", help="also a store of 10,000,000 events (minutes, 4 GB)")
    parser.set_defaults(scale="full")
    chosen = parser.parse_args()
    if unknown := sorted(set(chosen.names) - set(BENCHES)):
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHES)}")
    _many_files()
    show_machine()
    missed = 0
    for name in chosen.names or BENCHES:
        begin = time.monotonic()
        rows = measure(name, chosen.scale, huge=chosen.huge)
        show(f"{name}: {BENCHES[name].TITLE}", rows, time.monotonic() - begin)
        missed += sum(row.holds is False for row in rows)
    if missed:
        console().print(f"{missed} targets missed.")
    return 0


def _many_files() -> None:
    """As many sockets as the machine allows, here and in the servers started from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
