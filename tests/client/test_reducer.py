"""What a client folds of a thread's events is what the server's rows say, wherever it began, stopped and went on."""

from __future__ import annotations

import asyncio
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

from runstone.client import Event, ThreadView
from runstone.clock import to_datetime
from tests.client.histories import USER, History, Tape, tapes
from tests.stores.making import query
from tests.stores.sqlite_database import SqliteDatabase
from tests.support.clocks import ManualClock

STEPS = 60
LOOKS_EVERY = 6  # steps


def examples(count: int, *, shrink: bool = False) -> Any:
    """Shrinking takes minutes, which the long run has."""
    phases = set(Phase) if shrink else set(Phase) - {Phase.shrink}
    return settings(max_examples=count, deadline=None, phases=phases, suppress_health_check=list(HealthCheck))


def in_a_store(work: Callable[[History], Any], tape: bytes) -> None:
    """Does the work with a new history in a new store."""

    async def run(folder: str) -> None:
        clock = ManualClock()
        store = SqliteDatabase(Path(folder)).store(clock)
        await store.open()
        try:
            history = History(store, clock, Tape(tape))
            await history.begin()
            try:
                await work(history)
            except AssertionError:
                for one in await history.events():
                    note(f"{one.seq} {one.type} {one.run_id} {one.attempt} {one.data}")
                raise
        finally:
            await store.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(folder))


def fold(events: list[Event], view: ThreadView | None = None) -> ThreadView:
    view = view or ThreadView()
    for event in events:
        view.feed(event)
    return view


def plain(items: Any) -> list[dict[str, Any]]:
    return [item.model_dump() for item in items]


def everything(view: ThreadView) -> dict[str, Any]:
    """All that a view shows."""
    lists: dict[str, list[Any]] = {
        f"{children} {superseded}": view.messages(children=children, superseded=superseded)
        for children in (False, True)
        for superseded in (False, True)
    }
    lists |= {"actions": view.actions(), "all actions": view.actions(children=True), "runs": view.runs()}
    lists |= {"approvals": view.approvals(), "retrying": view.retrying()}
    found: dict[str, Any] = {name: plain(items) for name, items in lists.items()}
    outputs = {action.action_id: view.live_output(action.action_id) for action in view.actions(children=True)}
    thread = None if view.thread is None else view.thread.model_dump()
    return found | {"thread": thread, "state": view.state, "outputs": outputs, "seq": view.seq}


def outlined(actions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of private actions only whether they have ended: their events say no more."""
    return [
        action | {"status": "pending" if action["ended_at"] is None else "ended"}
        if action["tool"] == "private"
        else action
        for action in actions
    ]


async def assert_as_in_the_rows(view: ThreadView, history: History) -> None:
    rows, thread_id = history.store.rows, history.thread.thread_id
    thread = await rows.thread(USER, thread_id)
    assert plain([view.thread]) == plain([thread])
    for children in (False, True):
        for superseded in (False, True):
            asked = query(thread_id, 1000, children=children, superseded=superseded)
            shown = view.messages(children=children, superseded=superseded)
            assert plain(shown) == plain((await rows.messages(USER, asked)).items)
        acted = (await rows.actions(USER, query(thread_id, 1000, children=children))).items
        assert outlined(plain(view.actions(children=children))) == outlined(plain(acted))
    for run_id in history.runs:
        assert view.run(run_id) == await rows.run(USER, run_id)
        for children in (False, True):
            asked = query(thread_id, 1000, run_id=run_id, children=children)
            assert plain(view.messages(run_id=run_id, children=children)) == plain(
                (await rows.messages(USER, asked)).items
            )
            acted = (await rows.actions(USER, asked)).items
            assert outlined(plain(view.actions(run_id=run_id, children=children))) == outlined(plain(acted))
    assert {run.run_id for run in view.runs()} == history.runs.keys()
    assert view.state == (await rows.state(USER, thread_id, private=False))[0]
    assert view.approvals() == (await rows.approvals(USER, query(thread_id, 1000))).items


async def check_against_rows(history: History) -> None:
    view = ThreadView()
    step = 0
    while await history.step():
        step += 1
        if step % LOOKS_EVERY == 0:
            events = await history.events()
            fold([event for event in events if event.seq > view.seq], view)
            await assert_as_in_the_rows(view, history)
    await history.delete()
    view = fold(await history.events())
    assert view.thread is None
    assert all(run.ended for run in view.runs())


async def check_every_cut(history: History) -> None:
    while await history.step():
        pass
    events = await history.events()
    whole = everything(fold(events))
    view = ThreadView()
    reads: list[tuple[list[Any], list[dict[str, Any]]]] = []
    for event in events:
        assert everything(fold(events[view.seq :], copy.deepcopy(view))) == whole, f"resumed after {view.seq}"
        view.feed(event)
        read = [*view.messages(superseded=True), *view.actions(), *view.runs(), *view.approvals()]
        reads.append((read, plain(read)))
    assert everything(view) == whole
    assert all(plain(read) == then for read, then in reads), "what was read once does not change"


async def check_one_run(history: History) -> None:
    """The stream of a run has its events and those of its descendants, and what it says of them is the same."""
    while await history.step():
        pass
    events = await history.events()
    whole = fold(events)
    for root in [run for run in whole.runs() if run.parent_run_id is None]:
        family = {run.run_id for run in whole.runs() if run.root_run_id == root.run_id}
        view = fold([event for event in events if event.run_id in family])
        assert view.runs() == [run for run in whole.runs() if run.run_id in family]
        assert view.actions(children=True) == whole.actions(run_id=root.run_id, children=True)
        said = [
            m.model_copy(update={"last_seq": 0})
            for m in whole.messages(run_id=root.run_id, children=True, superseded=True)
        ]
        assert [m.model_copy(update={"last_seq": 0}) for m in view.messages(children=True, superseded=True)] == said


@examples(20)
@given(tapes(STEPS))
def test_a_fold_of_any_history_is_what_the_rows_say(tape: bytes) -> None:
    in_a_store(check_against_rows, tape)


@examples(12)
@given(tapes(STEPS))
def test_a_fold_that_was_kept_at_any_seq_goes_on_to_what_a_fold_from_the_beginning_shows(tape: bytes) -> None:
    in_a_store(check_every_cut, tape)


@examples(12)
@given(tapes(STEPS))
def test_the_stream_of_a_run_says_of_it_what_the_threads_stream_says(tape: bytes) -> None:
    in_a_store(check_one_run, tape)


def test_a_token_costs_the_same_however_long_its_message_is() -> None:
    """200,000 tokens of one message, in ten portions: the last ones cost what the first ones do."""
    view, offset, seconds = ThreadView(), 0, []
    start: dict[str, Any] = {"message_id": "msg_1", "role": "assistant"}
    view.feed(event(1, "message_started", start))
    for portion in range(10):
        events = []
        for number in range(20_000):
            delta: dict[str, Any] = {"message_id": "msg_1", "part": 0, "offset": offset, "delta": f"token {number} "}
            events.append(event(portion * 20_000 + number + 2, "message_delta", delta))
            offset += len(delta["delta"])
        before = time.process_time()
        fold(events, view)
        seconds.append(time.process_time() - before)
        assert len(view.messages()[0].content) == offset
    assert statistics.median(seconds[5:]) < 3 * statistics.median(seconds[:5])


def event(seq: int, type: str, data: dict[str, Any]) -> Event:
    return Event(
        seq=seq,
        thread_id="thr_1",
        run_id="run_1",
        attempt=1,
        user_id=USER,
        type=type,
        time=to_datetime(0),
        data=data,
        metadata=None,
        raw=None,
    )


@pytest.mark.torture
@pytest.mark.timeout(900)
@pytest.mark.parametrize("check", [check_against_rows, check_every_cut, check_one_run])
def test_all_of_this_over_many_histories(check: Any) -> None:
    @examples(600, shrink=True)
    @given(tapes(STEPS))
    def over_many(tape: bytes) -> None:
        in_a_store(check, tape)

    over_many()
