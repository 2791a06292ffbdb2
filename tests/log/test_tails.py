"""Whoever follows a thread sees 1, 2, 3 … once each, whatever happens to hints and whenever they come."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runstone import commands as c
from runstone import values
from runstone.broker import Broker
from runstone.brokers.local import LocalBroker
from runstone.errors import CursorAhead, NotFound
from runstone.limits import PAGE_BYTES_MAX
from runstone.log import POLL_S
from runstone.views import ThreadRef
from tests.log.support import Doubling, HeldStore, Late, Lossy, Reader, Recording, draft, opened, seqs
from tests.stores.making import custom, fence

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("after", [0, 1, 5])
async def test_a_tail_reads_what_there_was_and_what_comes(tmp_path: Path, after: int) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.append(*[draft(row, custom()) for _ in range(10)])
        reader = Reader(place.log, row.thread, after)
        reading = asyncio.create_task(reader.read_to(23))
        for _ in range(10):
            await box.append(draft(row, custom()))
        assert seqs(await asyncio.wait_for(reading, 10)) == list(range(after + 1, 24))


async def test_an_event_committed_while_a_tail_looks_at_the_head_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Subscribe first, look at the head then: the other way round leaves a gap."""
    monkeypatch.setattr("runstone.log.log.POLL_S", 3600)
    async with opened(tmp_path) as place:
        row, box = await place.run()
        looked, go_on = asyncio.Event(), asyncio.Event()

        async def slow_heads(threads: Sequence[ThreadRef]) -> list[int]:
            found = await HeldStore.heads(place.store, threads)
            looked.set()
            await go_on.wait()
            return found

        monkeypatch.setattr(place.store, "heads", slow_heads)
        reading = asyncio.create_task(Reader(place.log, row.thread, after=3).read_to(5))
        await looked.wait()
        await box.append(draft(row, custom()), draft(row, custom()))  # beyond the head that was read
        go_on.set()
        assert seqs(await asyncio.wait_for(reading, 10)) == [4, 5]


@pytest.mark.parametrize("broker", [Lossy, Doubling, Late])
async def test_hints_that_are_lost_doubled_or_late_change_latency_only(tmp_path: Path, broker: type[Broker]) -> None:
    async with opened(tmp_path, broker()) as place:
        row, box = await place.run()
        readers = [asyncio.create_task(Reader(place.log, row.thread, after).read_to(33)) for after in (0, 1, 3)]
        await asyncio.sleep(0)
        for _ in range(30):
            await box.append(draft(row, custom()))
        committed = time.monotonic()
        found = await asyncio.wait_for(asyncio.gather(*readers), 10)
        assert time.monotonic() - committed <= POLL_S + 1.0  # and a second for a busy machine
        assert [seqs(events) for events in found] == [list(range(after + 1, 34)) for after in (0, 1, 3)]


async def test_a_cursor_beyond_the_head_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, _ = await place.run()
        head = await place.log.head(row.thread)
        async with place.log.tail(row.thread, after=head, wake=lambda: None) as tail:
            assert not tail.behind
        for thread in (row.thread, ThreadRef("thr_unknown", "alice"), ThreadRef(row.thread_id, "bob")):
            with pytest.raises(CursorAhead):
                async with place.log.tail(thread, after=head + 1, wake=lambda: None):
                    raise AssertionError("it was let in")
        assert place.log._watched == {}
        assert place.log._by_id == {}


async def test_a_foreign_thread_is_not_found(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, _ = await place.run()
        assert await place.log.find("alice", row.thread_id) == row.thread
        for user, thread_id in (("bob", row.thread_id), ("alice", "thr_unknown")):
            with pytest.raises(NotFound):
                await place.log.find(user, thread_id)


async def test_a_thousand_tails_of_one_thread_are_all_woken_and_see_the_same(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        readers = [Reader(place.log, row.thread, 3) for _ in range(1000)]
        tasks = [asyncio.create_task(reader.read_to(23)) for reader in readers]
        for reader in readers:
            await reader.subscribed.wait()
        for _ in range(20):
            await box.append(draft(row, custom()))
        found = await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert all(seqs(events) == list(range(4, 24)) for events in found)


async def test_a_tail_that_ends_wakes_nobody_any_more(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        woken = []
        async with place.log.tail(row.thread, after=0, wake=lambda: woken.append(1)):
            await box.append(draft(row, custom()))
        count = len(woken)
        assert count >= 1
        await box.append(draft(row, custom()))
        assert len(woken) == count


async def test_memory_and_store_give_the_same_bytes_in_pages_of_the_same_bound(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        for _ in range(3):
            await box.append(*[draft(row, custom("big", "x" * 40_000)) for _ in range(5)])
        await box.append(*[draft(row, custom()) for _ in range(50)])
        head = await place.log.head(row.thread)
        for after in range(head + 1):
            for limit in (1, 7, 1000):
                memory = await place.log.read(row.thread, after=after, limit=limit)
                store = await place.store.events(row.thread, after=after, limit=limit, bytes_max=PAGE_BYTES_MAX)
                shared = min(len(memory.events), len(store.events))
                assert shared >= 1 or after == head
                assert [event.wire for event in memory.events[:shared]] == [
                    event.wire for event in store.events[:shared]
                ]
                assert memory.last == (memory.events[-1].seq if memory.events else after)


async def test_a_reader_far_behind_is_served_from_the_store_without_a_gap(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        for _ in range(60):
            await box.append(*[draft(row, custom("big", "x" * 15_000)) for _ in range(4)])
        head = await place.log.head(row.thread)
        window = place.log._windows._windows[row.thread]
        assert window.events[0].seq > 1, "memory is bounded"
        assert window.bytes == sum(len(event.wire) for event in window.events)
        assert seqs(await Reader(place.log, row.thread).read_to(head, limit=17)) == list(range(1, head + 1))


async def test_memory_of_all_threads_together_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstone.log.windows.WINDOWS_BYTES_MAX", 200_000)
    async with opened(tmp_path) as place:
        runs = [await place.run() for _ in range(20)]
        for row, box in runs:
            await box.append(*[draft(row, custom("big", "x" * 10_000)) for _ in range(4)])
        windows = place.log._windows
        assert windows._bytes <= 200_000
        assert windows._bytes == sum(window.bytes for window in windows._windows.values())
        for row, _ in runs:
            head = await place.log.head(row.thread)
            assert seqs(await Reader(place.log, row.thread).read_to(head)) == list(range(1, head + 1))


async def test_hints_follow_from_events(tmp_path: Path) -> None:
    broker = Recording()
    async with opened(tmp_path, broker) as place:
        row, box = await place.run()
        assert [hint.about for hint in broker.hints] == ["events", "work", "feed", "events", "feed"]
        broker.hints.clear()
        await box.append(draft(row, custom()), draft(row, custom()))
        await place.log.append(c.cancel_run("alice", row.run_id, None))
        await place.log.append(c.end_run(row.run_id, c.Completed(values.raw(None)), fence(row)))
        said = [(hint.about, hint.id, hint.seq) for hint in broker.hints]
        assert said == [
            ("events", row.thread_id, 5),
            ("events", row.thread_id, 6),
            ("cancel", row.run_id, 0),
            ("feed", "alice", 0),
            ("events", row.thread_id, 7),
            ("ended", row.run_id, 0),
            ("feed", "alice", 0),
        ]


async def test_the_lag_of_a_thread_counts_from_its_newest_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, _ = await place.run()
        lag = place.log.lag_s(row.thread)
        assert lag is not None
        assert 0 <= lag < 10
        assert place.log.lag_s(ThreadRef("thr_unknown", "alice")) is None


steps = st.lists(
    st.one_of(
        st.tuples(st.just("say"), st.integers(1, 5)),
        st.tuples(st.just("read"), st.integers(1, 4)),
        st.tuples(st.just("cut"), st.integers(0, 2)),
        st.tuples(st.just("turn"), st.integers(1, 3)),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps, st.sampled_from([LocalBroker, Lossy, Doubling, Late]))
def test_a_reader_that_is_cut_and_resumes_at_any_moment_sees_everything_once(
    script: list[tuple[str, int]], broker: type[Broker]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_cut_and_resume(Path(folder), script, broker()))


async def _cut_and_resume(folder: Path, script: list[tuple[str, int]], broker: Broker) -> None:
    async with opened(folder, broker) as place:
        row, box = await place.run()
        seen: list[int] = []
        writing: list[asyncio.Task[None]] = []
        position = 0
        while position < len(script):
            async with place.log.tail(row.thread, after=len(seen), wake=lambda: None) as tail:
                while position < len(script):
                    what, number = script[position]
                    position += 1
                    if what == "say":
                        writing.append(asyncio.create_task(box.append(*[draft(row, custom())] * number)))
                    elif what == "turn":
                        for _ in range(number * 10):
                            await asyncio.sleep(0)
                    elif what == "read":
                        seen += seqs((await tail.read(number)).events)
                    else:
                        break
        await asyncio.gather(*writing)
        head = await place.log.head(row.thread)
        async with place.log.tail(row.thread, after=len(seen), wake=lambda: None) as tail:
            while tail.cursor < head:
                seen += seqs((await tail.read()).events)
        assert seen == list(range(1, head + 1))
