"""The conversation on a socket as a pure machine: whatever the order of things, each event once, in order."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from runstone import protocol
from runstone.events import Event
from runstone.limits import CLIENT_FRAME_BYTES_MAX, FRAME_BYTES_SOFT, MIB, SUBSCRIPTIONS_MAX
from runstone.protocol import Close, Filter, Send, Session, Subscribe, Subscription, Unsubscribe
from runstone.states import TERMINAL_EVENTS
from runstone.views import Page

THREADS = ("thr_a", "thr_b", "thr_c")
KINDS = ("message_delta", "message_started", "usage", "agent_completed", "agent_failed", "run_queued")
FIELDS = ("op", "id", "thread_id", "after", "types", "run_id", "generation")
RUNS = ("run_1", "run_2", None)


def session(generation: str = "gen") -> Session:
    return Session(user_id="alice", generation=generation, heartbeat_s=15)


def event(seq: int, kind: str = "message_delta", run: str | None = "run_1", size: int = 0, **data: str) -> Event:
    wire = msgspec.json.encode({"seq": seq, "run_id": run, "type": kind, "data": {**data, "pad": "x" * size}})
    return Event(seq, run, kind, wire)


def said(step: object) -> dict[str, Any]:
    assert isinstance(step, Send)
    frame: dict[str, Any] = msgspec.json.decode(step.frame)
    return frame


def subscribe(thread_id: str, after: int = 0, **rest: object) -> str:
    return msgspec.json.encode({"op": "subscribe", "id": 1, "thread_id": thread_id, "after": after, **rest}).decode()


# --- the machine: pages, subscribes and unsubscribes in any order ------------------------------------------------


class Conversation(RuleBasedStateMachine):
    """A shell that reads pages of random size, and a client that keeps what it was shown."""

    @initialize()
    def begin(self) -> None:
        self.session = session()
        self.logs: dict[str, list[Event]] = {thread: [] for thread in THREADS}
        self.cursors: dict[str, int] = {}  # of the shell's tails
        self.wanted: dict[str, tuple[int, frozenset[str] | None, str | None]] = {}
        self.goals: dict[str, int] = {}
        self.seen: dict[str, list[Any]] = {}
        self.caught_up: dict[str, list[int]] = {}

    @rule(
        thread=st.sampled_from(THREADS),
        kinds=st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(RUNS)), max_size=6),
    )
    def commit(self, thread: str, kinds: list[tuple[str, str | None]]) -> None:
        log = self.logs[thread]
        log += [event(len(log) + index, kind, run) for index, (kind, run) in enumerate(kinds, start=1)]

    @rule(
        thread=st.sampled_from(THREADS),
        share=st.floats(0, 1),
        types=st.none() | st.frozensets(st.sampled_from(KINDS), min_size=1),
        run=st.none() | st.just("run_1"),
    )
    def subscribe(self, thread: str, share: float, types: frozenset[str] | None, run: str | None) -> None:
        head = len(self.logs[thread])
        after = int(share * head)
        rest = {} if types is None else {"types": sorted(types)}
        [step] = self.session.receive(subscribe(thread, after, **rest))
        assert isinstance(step, Subscribe)
        assert (step.thread_id, step.after, step.types) == (thread, after, types)
        family = None if run is None else frozenset({run})
        answer = self.session.subscribed(step, Subscription(Filter(types, family), after=after, head=head), head)
        assert msgspec.json.decode(answer) == {"op": "ok", "id": 1, "head": head}
        self.cursors[thread], self.goals[thread] = after, head
        self.wanted[thread] = (after, types, run)
        self.seen[thread], self.caught_up[thread] = [], []
        if after == head:
            self.deliver(thread, 0)

    @rule(thread=st.sampled_from(THREADS))
    def unsubscribe(self, thread: str) -> None:
        [step] = self.session.receive(f'{{"op":"unsubscribe","id":2,"thread_id":"{thread}"}}')
        assert isinstance(step, Unsubscribe)
        assert msgspec.json.decode(self.session.unsubscribed(step)) == {"op": "ok", "id": 2}
        for kept in (self.cursors, self.goals, self.wanted, self.seen, self.caught_up):
            kept.pop(thread, None)
        page = Page(self.logs[thread][:1], 1)
        assert self.session.deliver(thread, page) == ([], 0), "what was under way is not shown"

    @rule(thread=st.sampled_from(THREADS), size=st.integers(1, 4))
    def read(self, thread: str, size: int) -> None:
        if thread in self.cursors:
            self.deliver(thread, size)

    def deliver(self, thread: str, size: int) -> None:
        cursor = self.cursors[thread]
        found = self.logs[thread][cursor : cursor + size]
        self.cursors[thread] = found[-1].seq if found else cursor
        frames, count = self.session.deliver(thread, Page(found, self.cursors[thread]))
        shown = 0
        for frame in map(msgspec.json.decode, frames):
            assert frame["thread_id"] == thread
            if frame["op"] == "events":
                self.seen[thread] += frame["events"]
                shown += len(frame["events"])
            else:
                assert frame["op"] == "caught_up"
                self.caught_up[thread].append(frame["head"])
        assert shown == count

    @invariant()
    def everything_wanted_was_shown_once_and_in_order(self) -> None:
        for thread, (after, types, run) in getattr(self, "wanted", {}).items():
            looked_at = self.logs[thread][after : self.cursors[thread]]
            expected = [
                msgspec.json.decode(item.wire)
                for item in looked_at
                if (types is None or item.type in types | TERMINAL_EVENTS) and (run is None or item.run_id == run)
            ]
            assert self.seen[thread] == expected
            reached = self.cursors[thread] >= self.goals[thread]
            assert len(self.caught_up[thread]) == reached
            for head in self.caught_up[thread]:
                assert self.goals[thread] <= head <= self.cursors[thread]


Conversation.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestConversation = Conversation.TestCase


# --- frames ------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 40_000), max_size=60), st.sampled_from(["thr_a", 'thr_"quoted"', "thr_💥"]))
@settings(deadline=None, max_examples=50)
def test_frames_hold_every_event_once_within_their_bound(sizes: list[int], thread_id: str) -> None:
    events = [event(seq, size=size) for seq, size in enumerate(sizes, start=1)]
    frames = list(protocol.events_frames(thread_id, events))
    gathered = [item for frame in frames for item in msgspec.json.decode(frame)["events"]]
    assert [item["seq"] for item in gathered] == [item.seq for item in events]
    assert all(msgspec.json.decode(frame)["thread_id"] == thread_id for frame in frames)
    assert all(len(frame) <= FRAME_BYTES_SOFT + 1000 + len(events) for frame in frames)
    least = sum(len(item.wire) for item in events) // FRAME_BYTES_SOFT
    assert len(frames) <= 2 * least + 1, "as few as the bound allows"


def test_an_event_of_the_greatest_size_travels_alone_and_below_a_mebibyte() -> None:
    big = event(2, size=768 * 1024 - 200)
    frames = list(protocol.events_frames("thr_a", [event(1, size=200_000), big, event(3)]))
    assert [[item["seq"] for item in msgspec.json.decode(frame)["events"]] for frame in frames] == [[1], [2], [3]]
    assert max(len(frame) for frame in frames) < MIB


def test_a_frame_carries_the_very_bytes_of_its_events() -> None:
    odd = Event(1, None, "custom", b'{"seq":1,  "data":{"b":1,"a":"\xf0\x9f\x92\xa5"}}')
    [frame] = protocol.events_frames("thr_a", [odd])
    assert odd.wire in frame


# --- filters -----------------------------------------------------------------------------------------------------


@given(
    st.frozensets(st.sampled_from(KINDS), min_size=1),
    st.lists(st.tuples(st.sampled_from(KINDS), st.sampled_from(RUNS))),
)
def test_no_filter_of_types_holds_back_a_terminal_event(
    types: frozenset[str], kinds: list[tuple[str, str | None]]
) -> None:
    events = [event(seq, kind, run) for seq, (kind, run) in enumerate(kinds, start=1)]
    shown = Filter(types, None)(events)
    assert [item for item in events if item.type in TERMINAL_EVENTS] == [
        item for item in shown if item.type in TERMINAL_EVENTS
    ]
    of_run = Filter(types, frozenset({"run_1"}))(events)
    assert {item.run_id for item in of_run} <= {"run_1"}
    assert [item.seq for item in of_run] == [item.seq for item in shown if item.run_id == "run_1"]


def test_a_filter_of_a_run_takes_in_the_children_that_it_calls_and_theirs() -> None:
    wanted = Filter(frozenset({"message_delta"}), frozenset({"run_1"}))
    first = [
        event(1, "run_queued", "run_2", parent_run_id="run_1"),
        event(2, "message_delta", "run_2"),
        event(3, "run_queued", "run_9", parent_run_id="run_8"),
        event(4, "message_delta", "run_9"),
    ]
    then = [event(5, "run_queued", "run_3", parent_run_id="run_2"), event(6, "agent_completed", "run_3")]
    assert [item.seq for item in wanted(first)] == [2]
    assert [item.seq for item in wanted(then)] == [6]


def test_a_final_page_has_caught_up_whatever_the_head_was() -> None:
    subscription = Subscription(Filter(None, None), after=0, head=100)
    assert subscription.take(Page([event(1)], 1)) == ([event(1)], None)
    assert subscription.take(Page([event(2)], 2), final=True) == ([event(2)], 2)
    assert subscription.take(Page([], 2), final=True) == ([], None)


# --- what a client may say ------------------------------------------------------------------------------------------


def test_hello_and_pong_say_what_the_protocol_gives() -> None:
    assert msgspec.json.decode(session().hello()) == {
        "op": "hello",
        "user_id": "alice",
        "generation": "gen",
        "heartbeat_s": 15,
    }
    assert said(session().receive('{"op":"ping"}')[0]) == {"op": "pong"}
    assert said(session().receive('{"op":"ping","id":"x"}')[0]) == {"op": "pong", "id": "x"}
    assert said(session().receive('{"op":"ping","id":0,"more":[1]}')[0]) == {"op": "pong", "id": 0}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (None, protocol.CLOSE_NOT_JSON),
        ("", protocol.CLOSE_NOT_JSON),
        ("ping", protocol.CLOSE_NOT_JSON),
        ("[]", protocol.CLOSE_NOT_JSON),
        ("null", protocol.CLOSE_NOT_JSON),
        ("{}", protocol.CLOSE_NOT_JSON),
        ('{"op":1}', protocol.CLOSE_NOT_JSON),
        ('{"op":null}', protocol.CLOSE_NOT_JSON),
        ('{"op":"ping","id":NaN}', protocol.CLOSE_NOT_JSON),
        ("[" * 60_000, protocol.CLOSE_NOT_JSON),
        ('{"op":"ping","pad":' + "9" * 5_000 + "}", protocol.CLOSE_NOT_JSON),
        ('{"op":"ping","pad":"' + "x" * CLIENT_FRAME_BYTES_MAX + '"}', protocol.CLOSE_TOO_LARGE),
        ('{"op":"ping","pad":"' + "é" * (CLIENT_FRAME_BYTES_MAX // 2) + '"}', protocol.CLOSE_TOO_LARGE),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_frame_that_is_no_object_with_an_op_closes_after_an_error_without_an_id(text: str | None, code: int) -> None:
    error, close = session().receive(text)
    frame = said(error)
    assert (frame["op"], frame["id"]) == ("error", None)
    assert frame["code"] in {"bad_json", "too_large"}
    assert frame["remedy"]
    assert close == Close(code)


def test_the_greatest_frame_is_taken() -> None:
    pad = "x" * (CLIENT_FRAME_BYTES_MAX - len('{"op":"ping","pad":""}'))
    assert said(session().receive(f'{{"op":"ping","pad":"{pad}"}}')[0]) == {"op": "pong"}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"op":"dance","id":1}', "op"),
        ('{"op":"\\ud800","id":1}', "op"),
        ('{"op":"","id":1}', "op"),
        ('{"op":"subscribe","id":1}', "thread_id"),
        ('{"op":"subscribe","id":1,"thread_id":3}', "thread_id"),
        ('{"op":"subscribe","id":1,"thread_id":""}', "thread_id"),
        ('{"op":"subscribe","id":1,"thread_id":"' + "x" * 300 + '"}', "thread_id"),
        ('{"op":"subscribe","id":1,"thread_id":"t","after":-1}', "after"),
        ('{"op":"subscribe","id":1,"thread_id":"t","after":1.5}', "after"),
        ('{"op":"subscribe","id":1,"thread_id":"t","after":true}', "after"),
        ('{"op":"subscribe","id":1,"thread_id":"t","after":"1"}', "after"),
        ('{"op":"subscribe","id":1,"thread_id":"t","after":null}', "after"),
        ('{"op":"subscribe","id":1,"thread_id":"t","after":9223372036854775808}', "after"),
        ('{"op":"subscribe","id":1,"thread_id":"t","types":[]}', "types"),
        ('{"op":"subscribe","id":1,"thread_id":"t","types":"usage"}', "types"),
        ('{"op":"subscribe","id":1,"thread_id":"t","types":[1]}', "types"),
        ('{"op":"subscribe","id":1,"thread_id":"t","types":["\\ud800"]}', "types"),
        ('{"op":"subscribe","id":1,"thread_id":"t","run_id":1}', "run_id"),
        ('{"op":"unsubscribe","id":1}', "thread_id"),
    ],
    ids=lambda value: value[-40:],
)
def test_a_bad_field_is_an_error_frame_that_names_it_and_nothing_closes(text: str, path: str) -> None:
    [step] = session().receive(text)
    frame = said(step)
    assert (frame["op"], frame["id"], frame["code"], frame["status"]) == ("error", 1, "invalid", 422)
    assert [error["path"] for error in frame["errors"]] == [path]
    assert frame["remedy"]


@pytest.mark.parametrize("bad", ["null", "true", "1.5", "[]", "{}", "1" + "0" * 40, '"' + "x" * 300 + '"'])
@pytest.mark.parametrize("op", ["subscribe", "unsubscribe", "ping", "dance"])
def test_an_id_that_is_neither_string_nor_integer_is_answered_without_it(op: str, bad: str) -> None:
    [step] = session().receive(f'{{"op":"{op}","id":{bad},"thread_id":"t"}}')
    frame = said(step)
    assert (frame["op"], frame["id"], frame["code"]) == ("error", None, "invalid")


def test_an_id_with_a_lone_surrogate_comes_back_mended() -> None:
    [step] = session().receive('{"op":"dance","id":"\\ud800"}')
    assert said(step)["id"] == "�"


def test_another_generation_is_refused_and_changes_nothing() -> None:
    one = session("gen_2")
    [step] = one.receive(subscribe("thr_a", generation="gen_1"))
    assert said(step)["code"] == "generation_changed"
    [step] = one.receive(subscribe("thr_a", generation="gen_2"))
    assert isinstance(step, Subscribe)


def test_one_subscription_too_many_closes_and_a_second_on_the_same_thread_is_not_one() -> None:
    one = session()
    for step in _subscriptions(one, SUBSCRIPTIONS_MAX):
        one.subscribed(step, Subscription(Filter(None, None), after=0, head=0), 0)
    [again] = one.receive(subscribe("thr_0"))
    assert isinstance(again, Subscribe)
    error, close = one.receive(subscribe("thr_more"))
    assert (said(error)["code"], said(error)["id"]) == ("limited", 1)
    assert close == Close(protocol.CLOSE_TOO_MANY)


def _subscriptions(one: Session, count: int) -> Iterator[Subscribe]:
    for number in range(count):
        [step] = one.receive(subscribe(f"thr_{number}"))
        assert isinstance(step, Subscribe)
        yield step


def test_a_deleted_thread_ends_its_subscription_with_an_error_frame_without_an_id() -> None:
    one = session()
    [step] = _subscriptions(one, 1)
    one.subscribed(step, Subscription(Filter(None, None), after=0, head=0), 0)
    frame = msgspec.json.decode(one.deleted("thr_0"))
    assert (frame["op"], frame["id"], frame["thread_id"], frame["code"]) == ("error", None, "thr_0", "not_found")
    assert len(one) == 0
    assert one.deliver("thr_0", Page([event(1)], 1)) == ([], 0)


ODD = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5)


@given(st.text() | ODD.map(json.dumps) | st.dictionaries(st.sampled_from(FIELDS), ODD).map(json.dumps))
@settings(deadline=None)
def test_no_text_raises(text: str) -> None:
    for step in session().receive(text):
        assert isinstance(step, Send | Close | Subscribe | Unsubscribe)
