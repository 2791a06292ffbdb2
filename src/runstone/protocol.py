"""One client's conversation as a pure state machine: frames in, steps out; pages in, frames out.

No socket, no clock, no store: the shells in `gateway` carry out what comes from here. PROTOCOL.md is the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import msgspec

from runstone import values
from runstone.errors import BadJson, GenerationChanged, Invalid, Limited, NotFound, RunstoneError, TooLarge
from runstone.events import TYPES, Event
from runstone.feed import Feed, pos_of
from runstone.limits import CLIENT_FRAME_BYTES_MAX, FRAME_BYTES_SOFT, KEY_CHARS_MAX, SUBSCRIPTIONS_MAX
from runstone.states import TERMINAL_EVENTS
from runstone.values import Json
from runstone.views import FeedPage, Page

SUBPROTOCOL = "runstone.v1"

CLOSE_DONE = 1000
CLOSE_RESTARTING = 1012
CLOSE_NOT_JSON = 4400
CLOSE_TOO_LARGE = 4413
CLOSE_TOO_MANY = 4429

CURSOR_MAX = 2**63 - 1

RequestId: TypeAlias = "str | int"


class Filter:
    """Which events of a thread a reader wants. Terminal events are never held back."""

    __slots__ = ("_runs", "_types")

    def __init__(self, types: frozenset[str] | None, runs: frozenset[str] | None) -> None:
        self._types = None if types is None else types | TERMINAL_EVENTS
        self._runs = None if runs is None else set(runs)

    def __call__(self, events: Sequence[Event]) -> Sequence[Event]:
        if self._runs is not None:
            events = list(self._of_family(events, self._runs))
        if self._types is not None:
            events = [event for event in events if event.type in self._types]
        return events

    def _of_family(self, events: Iterable[Event], family: set[str]) -> Iterator[Event]:
        for event in events:
            if event.type == "run_queued" and event.run_id not in family and _parent(event) in family:
                assert event.run_id is not None
                family.add(event.run_id)  # a child that was called since
            if event.run_id in family:
                yield event


class Subscription:
    """One reader's place in what it asked for: what is shown of a page, and when it has caught up."""

    __slots__ = ("_cursor", "_goal", "_wanted")

    def __init__(self, wanted: Filter, *, after: int, head: int) -> None:
        self._wanted = wanted
        self._goal: int | None = head
        self._cursor = after

    def take(self, page: Page, *, final: bool = False) -> tuple[Sequence[Event], int | None]:
        """The events to show, and the head to announce when this page has caught up, once.

        After a final page there is nothing to catch up with.
        """
        self._cursor = max(self._cursor, page.last)
        goal = self._goal
        if goal is None or (self._cursor < goal and not final):
            return self._wanted(page.events), None
        self._goal = None
        return self._wanted(page.events), self._cursor


# --- WebSocket: what a client's frame asks for -----------------------------------------------------------


class Send(msgspec.Struct, frozen=True):
    frame: bytes


class Subscribe(msgspec.Struct, frozen=True):
    id: RequestId
    thread_id: str
    after: int
    types: frozenset[str] | None
    run_id: str | None


class Unsubscribe(msgspec.Struct, frozen=True):
    id: RequestId
    thread_id: str


class FollowFeed(msgspec.Struct, frozen=True):
    id: RequestId
    after: int | None  # a pos; null: from the beginning


class Close(msgspec.Struct, frozen=True):
    code: int


Step: TypeAlias = "Send | Subscribe | Unsubscribe | FollowFeed | Close"


Frames: TypeAlias = Callable[[str, Sequence[Event]], Sequence[bytes]]  # `events_frames`, or one that remembers


class Session:
    """The conversation on one socket."""

    __slots__ = ("_feed", "_frames", "_generation", "_heartbeat_s", "_subscriptions", "_user_id")

    def __init__(self, *, user_id: str, generation: str, heartbeat_s: float, frames: Frames | None = None) -> None:
        self._user_id = user_id
        self._generation = generation
        self._heartbeat_s = heartbeat_s
        self._subscriptions: dict[str, Subscription] = {}
        self._feed: Feed | None = None
        self._frames = frames or events_frames

    def __len__(self) -> int:
        return len(self._subscriptions)

    def hello(self) -> bytes:
        return _frame("hello", user_id=self._user_id, generation=self._generation, heartbeat_s=self._heartbeat_s)

    def receive(self, text: str | None) -> list[Step]:
        """What one frame asks for; None stands for a binary frame."""
        try:
            frame = _parsed(text)
        except RunstoneError as error:
            code = CLOSE_TOO_LARGE if isinstance(error, TooLarge) else CLOSE_NOT_JSON
            return [Send(error_frame(None, error)), Close(code)]
        known = _known_id(frame)
        try:
            return self._step(str(frame["op"]), frame)
        except _TooMany as error:
            return [Send(error_frame(known, error)), Close(CLOSE_TOO_MANY)]
        except RunstoneError as error:
            return [Send(error_frame(known, error))]

    def _step(self, op: str, frame: dict[str, Json]) -> list[Step]:
        if op == "ping":
            return [Send(_frame("pong") if "id" not in frame else _frame("pong", id=_id(frame)))]
        if op == "subscribe":
            return [self._subscribe(frame)]
        if op == "unsubscribe":
            step = Unsubscribe(_id(frame), _text(frame, "thread_id"))
            self._subscriptions.pop(step.thread_id, None)
            return [step]
        if op == "feed":
            after = frame.get("after")
            return [FollowFeed(_id(frame), None if after is None else pos_of(after, self._generation))]
        raise Invalid("There is no such op.", [{"path": "op", "detail": f"unknown: {op[:100]}"}], remedy=_OPS)

    def _subscribe(self, frame: dict[str, Json]) -> Subscribe:
        step = Subscribe(
            _id(frame),
            _text(frame, "thread_id"),
            cursor_of(frame.get("after", 0)),
            None if frame.get("types") is None else types_of(frame["types"]),
            None if frame.get("run_id") is None else _text(frame, "run_id"),
        )
        generation = frame.get("generation")
        if generation is not None and generation != self._generation:
            raise GenerationChanged("The store has been restored: its history is another one.")
        if step.thread_id not in self._subscriptions and len(self._subscriptions) >= SUBSCRIPTIONS_MAX:
            raise _TooMany(f"A socket takes {SUBSCRIPTIONS_MAX} subscriptions.", remedy="Open another socket.")
        return step

    def subscribed(self, step: Subscribe, subscription: Subscription, head: int) -> bytes:
        """The answer to a subscribe that was carried out; from here on only its events come."""
        self._subscriptions[step.thread_id] = subscription
        return _frame("ok", id=step.id, head=head)

    def unsubscribed(self, step: Unsubscribe) -> bytes:
        return _frame("ok", id=step.id)

    def feeding(self, step: FollowFeed, feed: Feed) -> bytes:
        """The answer to a feed that was begun; from here on only its threads come."""
        self._feed = feed
        return _frame("ok", id=step.id)

    def changed(self, page: FeedPage) -> list[bytes]:
        """The frames that a page of changed threads becomes."""
        assert self._feed is not None, "begun before anything is read"
        shown, caught_up = self._feed.take(page)
        frames = [thread.frame() for thread in shown]
        return frames if caught_up is None else [*frames, _frame("caught_up", cursor=caught_up)]

    def deliver(self, thread_id: str, page: Page) -> tuple[Sequence[bytes], int]:
        """The frames that a page becomes, and how many events are in them."""
        subscription = self._subscriptions.get(thread_id)
        if subscription is None:
            return [], 0
        events, caught_up = subscription.take(page)
        frames = self._frames(thread_id, events) if events else []
        if caught_up is not None:
            frames = [*frames, _frame("caught_up", thread_id=thread_id, head=caught_up)]
        return frames, len(events)

    def deleted(self, thread_id: str) -> bytes:
        """The subscription is over, because its thread is gone."""
        self._subscriptions.pop(thread_id, None)
        return error_frame(None, NotFound(f"There is no thread {thread_id}."), thread_id=thread_id)


def events_frames(thread_id: str, events: Sequence[Event]) -> list[bytes]:
    """Frames of events, as few as the bound on their size allows."""
    head = b'{"op":"events","thread_id":' + values.encode(thread_id) + b',"events":['
    frames: list[bytes] = []
    start = size = 0
    for index, event in enumerate(events):
        if size and size + len(event.wire) > FRAME_BYTES_SOFT:
            frames.append(head + b",".join([event.wire for event in events[start:index]]) + b"]}")
            start, size = index, 0
        size += len(event.wire)
    if size:
        frames.append(head + b",".join([event.wire for event in events[start:]]) + b"]}")
    return frames


def pong() -> bytes:
    return _frame("pong")


def error_frame(request_id: RequestId | None, error: RunstoneError, **members: Json) -> bytes:
    return values.encode_plain({"op": "error", "id": request_id, **members, **error.problem()})


# --- the small parts that requests and frames share ---------------------------------------------------------


def cursor_of(value: object) -> int:
    """A seq to resume after; raises Invalid."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= CURSOR_MAX:
        raise Invalid.at("after", "must be a whole number, 0 or more")
    return value


def types_of(value: object) -> frozenset[str]:
    """Event types to filter by; raises Invalid."""
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise Invalid.at("types", "must be a list of event types")
    unknown = sorted(item for item in value if item not in TYPES)
    if unknown:
        raise Invalid.at("types", f"there is no event type {unknown[0][:100]!r}; PROTOCOL.md lists them")
    return frozenset(value)


_OPS = "The ops are subscribe, unsubscribe, feed and ping."


class _TooMany(Limited):
    pass


def _parsed(text: str | None) -> dict[str, Json]:
    if text is None:
        raise BadJson("A frame is JSON text, not binary.")
    if len(text) > CLIENT_FRAME_BYTES_MAX or len(text.encode()) > CLIENT_FRAME_BYTES_MAX:
        raise TooLarge(f"A frame takes at most {CLIENT_FRAME_BYTES_MAX} bytes.", remedy="Send commands by HTTP.")
    value = values.parse(text)
    if not isinstance(value, dict) or not isinstance(value.get("op"), str):
        raise BadJson("A frame is a JSON object with a string op.", remedy=_OPS)
    return value


def _id(frame: dict[str, Json]) -> RequestId:
    value = frame.get("id")
    if isinstance(value, str) and len(value) <= KEY_CHARS_MAX:
        return values.mend(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= CURSOR_MAX:
        return value
    raise Invalid.at("id", f"must be a string of at most {KEY_CHARS_MAX} characters or a whole number")


def _known_id(frame: dict[str, Json]) -> RequestId | None:
    """The id to answer an error with: none where it is itself what is wrong."""
    try:
        return _id(frame)
    except Invalid:
        return None


def _text(frame: dict[str, Json], name: str) -> str:
    value = frame.get(name)
    if not isinstance(value, str) or not value or len(value) > KEY_CHARS_MAX:
        raise Invalid.at(name, "must be an id")
    return values.mend(value)


def _frame(op: str, **members: Json) -> bytes:
    return msgspec.json.encode({"op": op, **members})


def _parent(event: Event) -> object:
    """The run that called the run of a `run_queued` event."""
    data = msgspec.json.decode(event.wire)["data"]
    return data.get("parent_run_id")
