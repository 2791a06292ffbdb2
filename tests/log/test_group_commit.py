"""Appends share commits, a barrier returns only after its own, and what a run says stays in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runstone import commands as c
from runstone import events as e
from runstone import failpoints, values
from runstone.errors import NotFound, TooLarge
from tests.log.support import Recording, draft, opened, soon, stays_waiting
from tests.stores.making import custom, datas, fence, query, said, started

pytestmark = pytest.mark.anyio


async def test_many_writers_share_a_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        runs = [await place.run() for _ in range(40)]
        place.store.hold()
        first = asyncio.create_task(runs[0][1].append(draft(runs[0][0], custom())))
        await place.store.entered.wait()
        before = len(place.store.batches)
        others = [asyncio.create_task(box.append(draft(row, custom()))) for row, box in runs[1:]]
        others.append(asyncio.create_task(place.log.append(c.create_thread("bob", c.NewThread()))))
        await asyncio.sleep(0)
        place.store.release()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in place.store.batches[before:]] == [40]


async def test_a_barrier_returns_only_after_its_commit(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        await box.write(draft(row, custom("buffered")))  # returns at once
        barriers = [
            asyncio.create_task(box.flush()),
            asyncio.create_task(box.append(draft(row, custom("barrier")))),
            asyncio.create_task(place.log.append(c.cancel_run("alice", row.run_id, None))),
        ]
        for barrier in barriers:
            assert await stays_waiting(barrier)
        assert await place.stored(row.thread, "custom", "cancel_requested") == []
        place.store.release()
        await asyncio.gather(*barriers)
        assert len(await place.stored(row.thread, "custom", "cancel_requested")) == 3


async def test_nothing_is_hinted_or_readable_before_it_is_committed(tmp_path: Path) -> None:
    broker = Recording()
    async with opened(tmp_path, broker) as place:
        row, box = await place.run()
        head = await place.log.head(row.thread)
        broker.hints.clear()
        committed: list[int] = []
        failpoints.arm("before_commit", lambda: committed.append(len(broker.hints)))
        place.store.hold()
        writing = asyncio.create_task(box.append(draft(row, custom())))
        assert await stays_waiting(writing)
        assert (await place.log.read(row.thread, after=head)).events == []
        assert broker.hints == []
        place.store.release()
        await writing
        assert committed == [0]
        assert [(hint.about, hint.seq) for hint in broker.hints] == [("events", head + 1)]


async def test_a_flush_with_nothing_to_wait_for_returns_at_once(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.append(draft(row, custom()))
        place.store.hold()
        commits = len(place.store.batches)
        await box.flush()
        assert len(place.store.batches) == commits


async def test_what_a_run_says_is_committed_in_the_order_it_was_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        await box.write(draft(row, custom("1")), draft(row, started("msg_1")))
        await box.delta(e.MessageDelta, "msg_1", 0, 0, "2")
        await box.write(draft(row, custom("3")))
        await box.delta(e.MessageDelta, "msg_1", 0, 1, "4")
        last = asyncio.create_task(box.append(draft(row, custom("5"))))
        await soon(lambda: place.store.batches)
        place.store.release()
        await last
        events = await place.stored(row.thread, "custom", "message_delta")
        assert [data.get("name") or data["delta"] for data in datas(events, "custom", "message_delta")] == list("12345")


async def test_the_end_of_a_run_comes_after_all_that_it_had_said(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.write(draft(row, started("msg_1")))
        for offset in range(500):
            await box.delta(e.MessageDelta, "msg_1", 0, offset, "x")
        end = c.end_run(row.run_id, c.Completed(values.raw(None)), fence(row))
        assert await place.log.append(end) == "agent_completed"
        events = await place.stored(row.thread)
        assert events[-1].type == "agent_completed"
        (message,) = (await place.log.rows.messages("alice", query(row.thread_id))).items
        assert (message.status, message.content) == ("completed", "x" * 500)


async def test_a_refused_command_hurts_nobody_in_its_batch(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        tasks = [
            asyncio.create_task(box.append(draft(row, custom()))),
            asyncio.create_task(place.log.append(c.cancel_run("bob", row.run_id, None))),
            asyncio.create_task(place.log.append(c.create_thread("bob", c.NewThread()))),
        ]
        await asyncio.sleep(0)
        place.store.release()
        one, two, three = await asyncio.gather(*tasks, return_exceptions=True)
        assert one is None
        assert isinstance(two, NotFound)
        assert isinstance(three, c.Made)


async def test_a_caller_who_gave_up_does_not_stop_the_command_nor_the_others(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        gone = [
            asyncio.create_task(place.log.append(c.create_thread("bob", c.NewThread()))),
            asyncio.create_task(box.append(draft(row, custom()))),
        ]
        stayed = asyncio.create_task(box.flush())
        await asyncio.sleep(0)
        for task in gone:
            task.cancel()
        await asyncio.sleep(0)
        place.store.release()
        await asyncio.wait([*gone, stayed])
        await stayed
        assert len(await place.stored(row.thread, "custom")) == 1
        assert len((await place.log.rows.threads("bob", query())).items) == 1


async def test_a_draft_that_is_too_large_is_refused_whole_and_the_run_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        with pytest.raises(TooLarge):
            await box.write(draft(row, custom("small")), draft(row, custom("large", "x" * (1 << 20))))
        await box.append(draft(row, custom("next")))
        assert [data["name"] for data in datas(await place.stored(row.thread), "custom")] == ["next"]


async def test_a_long_queue_is_committed_in_several_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runstone.log.log.BATCH_EVENTS_MAX", 10)
    async with opened(tmp_path) as place:
        runs = [await place.run() for _ in range(25)]
        place.store.hold()
        tasks = [asyncio.create_task(box.append(draft(row, said("m", "x")))) for row, box in runs]
        for row, box in runs:
            await box.write(draft(row, custom()))
        before = len(place.store.batches)
        place.store.release()
        await asyncio.gather(*tasks)
        assert all(len(batch) <= 10 for batch in place.store.batches[before:])
