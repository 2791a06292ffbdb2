"""100 producers flat out, one viewer each: tokens committed and delivered, buffered and one by one."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path

from benches.bench import Bench, Lost
from benches.processes import runstone
from benches.raw import recommit
from benches.report import Row, at_least
from benches.viewers import Viewer, all_ended, open_viewers
from benches.wire import Http, Pool

TITLE = "100 producers flat out"
_SETTLE_S = 1.5
_COMMITS = re.compile(rb"^runstone_(commit_seconds_count|events_appended_total) (\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Flood:
    tokens_a_second: float
    events_a_second: float
    events: float
    events_a_commit: float
    cores: float


async def run(bench: Bench) -> list[Row]:
    producers = bench.pick(100, 100, 4)
    rows = []
    folder = bench.room("buffered")
    buffered = await measure(folder, producers, bench.pick(10_000, 4_000, 100), flush=False)
    raw = recommit(folder, folder / "runs.db", buffered.events_a_commit)
    rows.append(at_least("buffered: tokens committed and delivered", buffered.tokens_a_second, "/s", target=80_000))
    rows.append(
        at_least(
            "  events, which neighbours in a queue merge into",
            buffered.events_a_second,
            "/s",
            baseline=raw["events_a_second"],
        )
    )
    folder = bench.room("one-by-one")
    waiting = await measure(folder, producers, bench.pick(1_500, 400, 20), flush=True)
    raw = recommit(folder, folder / "runs.db", waiting.events_a_commit)
    rows.append(
        at_least(
            "each waits for its own commit: tokens", waiting.tokens_a_second, "/s", baseline=raw["events_a_second"]
        )
    )
    rows.append(at_least("  events a commit", waiting.events_a_commit, ""))
    return rows


async def measure(folder: Path, producers: int, tokens: int, *, flush: bool, journal_mode: str = "wal") -> Flood:
    """So many tokens of each producer; every viewer's text is checked, character by character."""
    with runstone(folder, journal_mode=journal_mode) as server:
        pool, http = Pool(server.port), Http(server.port)
        threads = await pool.threads(producers)
        texts: list[list[bytes]] = [[] for _ in threads]
        viewers = [Viewer(thread_id, text.append) for thread_id, text in zip(threads, texts, strict=True)]
        await open_viewers(server.port, viewers)
        begin_ns = time.monotonic_ns() + int(_SETTLE_S * 1e9)
        await pool.start("flat_out", threads, count=tokens, start_ns=begin_ns, flush=flush)
        if time.monotonic_ns() > begin_ns:
            raise Lost("the runs could not be started in time")
        before = await _counts(http)
        spent_s = server.cpu_s()["all"]
        took_s = (await all_ended(viewers, 120) - begin_ns) / 1e9
        spent_s = server.cpu_s()["all"] - spent_s
        after = await _counts(http)
        wanted = b"".join(b"%d " % number for number in range(tokens))
        if any(b"".join(text) != wanted for text in texts):
            raise Lost("a viewer's text is not what was said")
        for viewer in viewers:
            viewer.close()
        pool.close()
        http.close()
    commits, events = (new - old for new, old in zip(after, before, strict=True))
    return Flood(producers * tokens / took_s, events / took_s, events, events / commits, spent_s / took_s)


async def _counts(http: Http) -> tuple[float, float]:
    """Commits and events so far."""
    found = dict(_COMMITS.findall(await http.raw("GET", "/metrics")))
    return float(found[b"commit_seconds_count"]), float(found[b"events_appended_total"])
