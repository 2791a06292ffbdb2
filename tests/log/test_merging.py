"""Adjacent deltas of one part may merge on their way to the disk; nothing else may, and nothing is lost."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runstone import events as e
from runstone.limits import DELTA_BYTES_MAX
from tests.log.support import draft, opened, seqs
from tests.stores.making import custom, datas, shown, started

pytestmark = pytest.mark.anyio

KINDS: dict[str, type[e.MessageDelta | e.AgentThinking]] = {
    "message_delta": e.MessageDelta,
    "agent_thinking": e.AgentThinking,
}


async def test_adjacent_deltas_of_a_part_become_one_event(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.append(draft(row, started("msg_1")))
        place.store.hold()
        for number in range(100):
            await box.delta(e.MessageDelta, "msg_1", 0, number, "🗿" if number % 2 else "x")
        place.store.release()
        await box.flush()
        pieces = datas(await place.stored(row.thread), "message_delta")
        assert "".join(piece["delta"] for piece in pieces) == "x🗿" * 50
        assert len(pieces) <= 4  # a commit that was under way when they came takes the first of them
        offset = 0
        for piece in pieces:
            assert piece["offset"] == offset
            offset += len(piece["delta"])


async def test_a_merged_delta_is_never_larger_than_its_bound(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.append(draft(row, started("msg_1")))
        place.store.hold()
        for number in range(50):
            await box.delta(e.MessageDelta, "msg_1", 0, number * 1000, "é" * 1000)
        place.store.release()
        await box.flush()
        sizes = [len(piece["delta"].encode()) for piece in datas(await place.stored(row.thread), "message_delta")]
        assert sum(sizes) == 100_000
        assert max(sizes) <= DELTA_BYTES_MAX
        assert len(sizes) <= 6


async def test_neighbours_of_another_part_message_or_kind_do_not_merge(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        await box.append(draft(row, started("msg_1")), draft(row, started("msg_2")))
        place.store.hold()
        await box.delta(e.MessageDelta, "msg_1", 0, 0, "a")
        await box.delta(e.MessageDelta, "msg_1", 1, 0, "b")
        await box.delta(e.AgentThinking, "msg_1", 1, 0, "c")
        await box.delta(e.AgentThinking, "msg_2", 1, 0, "d")
        place.store.release()
        await box.flush()
        said = await place.stored(row.thread, *KINDS)
        assert [(event.type, data["message_id"], data["part"], data["delta"]) for event, data in _with_data(said)] == [
            ("message_delta", "msg_1", 0, "a"),
            ("message_delta", "msg_1", 1, "b"),
            ("agent_thinking", "msg_1", 1, "c"),
            ("agent_thinking", "msg_2", 1, "d"),
        ]


def _with_data(events: list[e.Event]) -> list[tuple[e.Event, Any]]:
    return [(event, shown(event)["data"]) for event in events]


async def test_what_is_shown_is_what_is_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as place:
        row, box = await place.run()
        head = await place.log.head(row.thread)
        place.store.hold()
        await box.write(draft(row, started("msg_1")))
        for number in range(40):
            await box.delta(e.MessageDelta, "msg_1", 0, number, "x")
            if number % 7 == 0:
                await box.write(draft(row, custom()))
        place.store.release()
        await box.flush()
        page = await place.log.read(row.thread, after=head)
        assert [event.wire for event in page.events] == [event.wire for event in await place.stored(row.thread)][head:]


saying = st.lists(
    st.tuples(
        st.sampled_from(["message_delta", "message_delta", "agent_thinking", "custom"]),
        st.sampled_from(["msg_1", "msg_2"]),
        st.sampled_from(["", "x", "🗿🗿", "\0", "y" * 9000, "é" * 7000]),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(saying)
def test_whatever_a_run_says_is_stored_once_and_in_order(said: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_say_and_compare(Path(folder), said))


async def _say_and_compare(folder: Path, said: list[tuple[str, str, str]]) -> None:
    async with opened(folder) as place:
        row, box = await place.run()
        for name in ("msg_1", "msg_2"):
            await box.append(draft(row, started(name)))
        parts: dict[str, tuple[str, int, int]] = {}  # kind, number, offset
        runs: list[tuple[str, str, int, str]] = []  # what has to come out, where all that may merge is merged
        for kind, name, text in said:
            if kind == "custom":
                await box.write(draft(row, custom("c", text[:5])))
                runs.append(("custom", "", 0, text[:5]))
                continue
            last, number, offset = parts.get(name, ("", -1, 0))
            if last != kind:
                number, offset = number + 1, 0
            await box.delta(KINDS[kind], name, number, offset, text[:8000])
            parts[name] = kind, number, offset + len(text[:8000])
            if runs and runs[-1][:3] == (kind, name, number):
                runs[-1] = (*runs[-1][:3], runs[-1][3] + text[:8000])
            else:
                runs.append((kind, name, number, text[:8000]))
        await box.flush()
        events = await place.stored(row.thread)
        assert seqs(events) == list(range(1, len(events) + 1))
        assert _joined(events) == runs
        _check_offsets(events)


def _joined(events: list[e.Event]) -> list[tuple[str, str, int, str]]:
    """The events, with all neighbours merged that may be."""
    found: list[tuple[str, str, int, str]] = []
    for event in events:
        data: dict[str, Any] = shown(event)["data"]
        if event.type == "custom":
            found.append(("custom", "", 0, data["value"]))
        elif event.type in KINDS:
            key = (event.type, data["message_id"], data["part"])
            assert len(data["delta"].encode()) <= DELTA_BYTES_MAX
            if found and found[-1][:3] == key:
                found[-1] = (*key, found[-1][3] + data["delta"])
            else:
                found.append((*key, data["delta"]))
    return found


def _check_offsets(events: list[e.Event]) -> None:
    lengths: dict[tuple[str, int], int] = defaultdict(int)
    for data in datas(events, *KINDS):
        key = data["message_id"], data["part"]
        assert data["offset"] == lengths[key]
        lengths[key] += len(data["delta"])
