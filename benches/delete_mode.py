"""`journal_mode=delete`: 100 producers flat out, for disks that cannot do WAL."""

from __future__ import annotations

from benches.bench import Bench
from benches.flat_out import measure
from benches.raw import recommit
from benches.report import Row, at_least

TITLE = "100 producers flat out, journal_mode=delete"


async def run(bench: Bench) -> list[Row]:
    producers = bench.pick(100, 100, 4)
    rows = []
    for name, flush, tokens in (
        ("buffered: tokens committed and delivered", False, bench.pick(6_000, 2_000, 50)),
        ("each waits for its own commit: tokens", True, bench.pick(500, 150, 10)),
    ):
        folder = bench.room(f"flush-{flush}")
        found = await measure(folder, producers, tokens, flush=flush, journal_mode="delete")
        raw = recommit(folder, folder / "runs.db", found.events_a_commit, journal_mode="delete")
        rows.append(at_least(name, found.tokens_a_second, "/s"))
        rows.append(at_least("  events", found.events_a_second, "/s", baseline=raw["events_a_second"]))
    return rows
