"""What is said and not yet committed is bounded, of a run and of the process, and the bound is let go of."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from runstone import commands as c
from runstone import events as e
from runstone.errors import StaleAttempt
from runstone.limits import RUN_BUFFER_BYTES_MAX
from runstone.log import Outbox
from runstone.store import RunRow
from tests.log.support import Place, draft, ended, opened, soon, stays_waiting
from tests.stores.making import custom, fence, started

pytestmark = pytest.mark.anyio

PIECE = "x" * 8000


class Talker:
    """Writes without end, and counts."""

    def __init__(self, row: RunRow, box: Outbox) -> None:
        self._row = row
        self._box = box
        self.bytes = 0

    async def talk(self, pieces: int = 10**9) -> None:
        await self._box.write(draft(self._row, started(f"msg_{self._row.run_id}")))
        for number in range(pieces):
            await self._box.delta(e.MessageDelta, f"msg_{self._row.run_id}", 0, number * len(PIECE), PIECE)
            self.bytes += len(PIECE)


async def talkers(place: Place, count: int) -> list[Talker]:
    return [Talker(*await place.run()) for _ in range(count)]


async def test_a_run_that_is_ahead_of_the_disk_waits_and_goes_on(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        (talker,) = await talkers(place, 1)
        place.store.hold()
        talking = asyncio.create_task(talker.talk(100))
        assert await stays_waiting(talking)
        assert RUN_BUFFER_BYTES_MAX - 2 * len(PIECE) <= talker.bytes <= RUN_BUFFER_BYTES_MAX
        place.store.release()
        await asyncio.wait_for(talking, 10)
        assert talker.bytes == 100 * len(PIECE)


async def test_one_run_that_waits_does_not_hold_up_another(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        loud, quiet = await talkers(place, 2)
        place.store.hold()
        talking = asyncio.create_task(loud.talk())
        assert await stays_waiting(talking)
        await asyncio.wait_for(quiet.talk(3), 10)  # it has room of its own
        await ended(talking)


async def test_all_runs_together_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = 2 * RUN_BUFFER_BYTES_MAX
    monkeypatch.setattr("runstone.log.space.PROCESS_BUFFER_BYTES_MAX", bound)
    async with opened(tmp_path) as place:
        crowd = await talkers(place, 8)
        place.store.hold()
        talking = [asyncio.create_task(talker.talk(60)) for talker in crowd]
        for task in talking:
            assert await stays_waiting(task)
        assert bound - 9 * len(PIECE) <= sum(talker.bytes for talker in crowd) <= bound + 8 * len(PIECE)
        place.store.release()
        await asyncio.wait_for(asyncio.gather(*talking), 30)


async def test_room_is_given_back_when_all_is_committed(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        for talker in await talkers(place, 5):
            await talker.talk(40)
            await talker._box.flush()
        assert place.buffered_bytes() == 0


async def test_room_is_given_back_once_when_a_run_is_closed_while_its_commit_is_under_way(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        place.store.hold()
        await box.write(draft(row, custom("one")))
        await place.store.entered.wait()
        await box.write(draft(row, custom("two")))
        box.close()
        assert place.buffered_bytes() == 0
        place.store.release()
        await place.log.append(c.cancel_run("alice", row.run_id, None))
        assert place.buffered_bytes() == 0


async def test_room_is_given_back_when_an_append_is_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await place.log.append(c.end_run(row.run_id, c.Cancelled(), fence(row)))
        await box.write(draft(row, custom("late")))
        with pytest.raises(StaleAttempt):
            await box.flush()
        assert place.buffered_bytes() == 0


async def test_who_waits_for_room_is_told_when_its_run_has_ended(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        (talker,) = await talkers(place, 1)
        place.store.hold()
        talking = asyncio.create_task(talker.talk())
        assert await stays_waiting(talking)
        talker._box.close()
        with pytest.raises(StaleAttempt):
            await asyncio.wait_for(talking, 10)


async def test_a_run_that_writes_flat_out_lets_others_have_their_turn(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.append(draft(row, started("msg_1")))
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        task = asyncio.create_task(other())
        await soon(lambda: turns)
        before = turns
        for number in range(640):
            await box.delta(e.MessageDelta, "msg_1", 0, number, "x")
        assert turns - before >= 19
        await ended(task)
