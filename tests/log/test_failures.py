"""A refused append stops its agent; a failed store stops everything, and nobody is left waiting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runstone import commands as c
from runstone import events as e
from runstone.errors import RunstoneError, StaleAttempt, StoreFailed
from tests.log.support import Reader, draft, opened, stays_waiting
from tests.stores.making import custom, fence, started

pytestmark = pytest.mark.anyio


async def test_a_refused_append_is_raised_at_the_next_call_and_told_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        told: list[RunstoneError] = []
        box.on_failure = told.append
        await place.log.append(c.end_run(row.run_id, c.Cancelled(), fence(row)))
        await box.write(draft(row, custom()))  # nobody knows yet
        with pytest.raises(StaleAttempt):
            await box.flush()
        for call in (box.flush(), box.write(draft(row, custom())), box.delta(e.MessageDelta, "m", 0, 0, "x")):
            with pytest.raises(StaleAttempt):
                await call
        assert [type(failure) for failure in told] == [StaleAttempt]


async def test_every_barrier_of_a_refused_run_is_told(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await place.log.append(c.end_run(row.run_id, c.Cancelled(), fence(row)))
        barriers = [asyncio.create_task(box.append(draft(row, custom()))) for _ in range(5)]
        outcomes = await asyncio.gather(*barriers, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [StaleAttempt] * 5


async def test_a_failed_store_is_told_to_everyone_who_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        other_row, other = await place.run()
        reader = asyncio.create_task(Reader(place.log, row.thread).read_to(99))
        place.store.hold()
        place.store.faults.append(StoreFailed("disk full"))
        waiting = [asyncio.create_task(box.append(draft(row, custom())))]
        await place.store.entered.wait()
        waiting += [
            asyncio.create_task(box.append(draft(row, custom()))),
            asyncio.create_task(other.append(draft(other_row, custom()))),
            asyncio.create_task(place.log.append(c.create_thread("alice", c.NewThread()))),
        ]
        await asyncio.sleep(0)
        place.store.release()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, reader, return_exceptions=True), 10)
        assert [type(outcome) for outcome in outcomes] == [StoreFailed] * 5
        assert place.log.failed.is_set()


async def test_after_a_failure_nothing_more_is_committed_acknowledged_or_shown(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        quiet_row, quiet = await place.run()  # says nothing while the store fails
        told: list[RunstoneError] = []
        quiet.on_failure = told.append
        place.store.faults.append(StoreFailed("disk full"))
        with pytest.raises(StoreFailed):
            await box.append(draft(row, custom()))
        commits = len(place.store.batches)
        for call in (
            quiet.append(draft(quiet_row, custom())),
            quiet.append(draft(quiet_row, started("msg_1"))),
            place.log.append(c.create_thread("alice", c.NewThread())),
            place.log.read(row.thread, after=0),
            place.log.read_before(row.thread, before=9, limit=9),
            place.log.head(row.thread),
            place.log.find("alice", row.thread_id),
        ):
            with pytest.raises(StoreFailed):
                await asyncio.wait_for(call, 10)
        assert len(place.store.batches) == commits, "a store that failed is not asked again"
        assert [type(failure) for failure in told] == [StoreFailed]


async def test_a_log_that_failed_stops_without_waiting_for_anyone(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.faults.append(StoreFailed("disk full"))
        await box.write(draft(row, custom()))
        await place.log.failed.wait()
        await asyncio.wait_for(place.log.stop(), 10)


async def test_a_commit_that_dies_of_a_bug_fails_everyone_who_waits(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        place.store.faults.append(ZeroDivisionError("a bug"))
        waiting = [
            asyncio.create_task(box.append(draft(row, custom()))),
            asyncio.create_task(place.log.append(c.create_thread("alice", c.NewThread()))),
        ]
        await place.store.entered.wait()
        waiting.append(asyncio.create_task(place.log.append(c.create_thread("bob", c.NewThread()))))
        await asyncio.sleep(0)
        place.store.release()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 10)
        assert [type(outcome) for outcome in outcomes] == [StoreFailed] * 3


async def test_a_failed_read_of_the_heads_stops_everything_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstone.log.log.POLL_S", 0.01)
    async with opened(tmp_path) as place:
        row, _ = await place.run()

        async def broken(_threads: object) -> list[int]:
            raise StoreFailed("I/O error")

        reader = Reader(place.log, row.thread)
        reading = asyncio.create_task(reader.read_to(99))
        await reader.subscribed.wait()
        monkeypatch.setattr(place.store, "heads", broken)
        with pytest.raises(StoreFailed):
            await asyncio.wait_for(reading, 10)


async def test_stopping_commits_what_was_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.write(draft(row, started("msg_1")))
        for number in range(1000):
            await box.delta(e.MessageDelta, "msg_1", 0, number, "x")
        await place.log.stop()
        await place.log.stop()
    async with opened(tmp_path) as again:
        text = "".join(
            event.wire.decode().split('"delta":"')[1].split('"')[0]
            for event in await again.stored(row.thread, "message_delta")
        )
        assert text == "x" * 1000


async def test_stopping_waits_for_the_commit_that_is_under_way(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        await box.write(draft(row, custom()))
        await place.store.entered.wait()
        stopping = asyncio.create_task(place.log.stop())
        assert await stays_waiting(stopping)
        place.store.release()
        await stopping
    async with opened(tmp_path) as again:
        assert len(await again.stored(row.thread, "custom")) == 1
