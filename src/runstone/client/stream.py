"""Follows a server over a network that breaks: every event once and in order, however often it is cut."""

from __future__ import annotations

import asyncio
import random  # noqa: TID251 - the default of an injected parameter
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection
from datetime import datetime, timedelta
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import msgspec

from runstone.client.http import Http, Params, Passing
from runstone.client.sse import Frame, FrameTooLarge, SseParser
from runstone.clock import to_datetime, to_rfc3339
from runstone.errors import NotFound, RunstoneError
from runstone.states import TERMINAL_EVENTS
from runstone.values import Json

PAUSE_FIRST_S, PAUSE_MAX_S = 0.1, 5.0  # a server that restarts is missed for 5 s at most
FAULTS_MAX = 5  # connections in a row that broke the protocol and brought nothing new: it is no accident


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a thread's log; its identity is `(thread_id, seq)`."""

    seq: int
    thread_id: str
    run_id: str | None
    attempt: int | None
    user_id: str
    type: str
    time: datetime
    data: dict[str, Json]
    metadata: Json
    raw: Json

    @classmethod
    def decode(cls, wire: str | bytes) -> Event:
        """An event from its envelope; raises `msgspec.DecodeError`."""
        said = msgspec.json.decode(wire, type=_Envelope)
        return cls(**{name: getattr(said, name) for name in cls.__struct_fields__})

    def encode(self) -> bytes:
        """The envelope: what is absent is omitted, as on the wire."""
        members = {name: value for name, value in msgspec.structs.asdict(self).items() if value is not None}
        time_us = (self.time - to_datetime(0)) // timedelta(microseconds=1)
        return msgspec.json.encode(members | {"time": to_rfc3339(time_us)})


class _Envelope(msgspec.Struct):
    seq: int
    thread_id: str
    user_id: str
    type: str
    time: Annotated[datetime, msgspec.Meta(tz=True)]
    data: dict[str, Any]
    run_id: str | None = None
    attempt: int | None = None
    metadata: Any = None
    raw: Any = None


class _CaughtUp(msgspec.Struct):
    head: int


class _Closing(msgspec.Struct):
    reason: str


class _Restarting(Exception):
    """The server ends the stream, and not because it is finished."""


class Backoff:
    """Pauses before new tries: doubling, each cut by up to half, so that clients do not come back in step."""

    def __init__(
        self,
        first_s: float = PAUSE_FIRST_S,
        max_s: float = PAUSE_MAX_S,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._first_s = first_s
        self._max_s = max_s
        self._dice = dice
        self._next_s = first_s

    def reset(self) -> None:
        self._next_s = self._first_s

    def next_s(self) -> float:
        pause_s, self._next_s = self._next_s, min(self._next_s * 2, self._max_s)
        return pause_s * (1 - self._dice() / 2)


class Fault(Exception):
    """The stream broke its own rules: an event is missing, or a frame cannot be read."""


class Cursor:
    """How far a stream has been read; lets every event through once, and none out of order."""

    def __init__(self, after: int, *, contiguous: bool) -> None:
        self.seq = after
        self._contiguous = contiguous  # an unfiltered stream of a thread: 1, 2, 3 …

    def take(self, seq: int) -> bool:
        """Whether the event is new; raises `Fault` where one before it is missing."""
        if seq <= self.seq:
            return False
        if self._contiguous and seq != self.seq + 1:
            raise Fault(f"After event {self.seq} came {seq}.")
        self.seq = seq
        return True

    def reach(self, head: int) -> None:
        """Everything up to `head` was sent, or is not for this stream."""
        if self._contiguous and head > self.seq:
            raise Fault(f"After event {self.seq} the stream claims to have sent all up to {head}.")
        self.seq = max(self.seq, head)


T = TypeVar("T")


class Stream(AsyncIterator[T]):
    """What a server sends, over as many connections as it takes; iterate over it once.

    It reconnects by itself, for as long as it takes, and goes on where it was. Raises what the server refuses,
    and `RunstoneError` when it keeps breaking the protocol.

    `caught_up` is set once all that there was at the start has been yielded; `connected` tells whether there
    is a connection now. Leave the loop early and it closes itself; `async with` closes it at a known moment.
    """

    def __init__(self, http: Http, path: str, *, backoff: Backoff | None = None) -> None:
        self.caught_up = asyncio.Event()
        self.connected = False
        self._when_caught_up: list[Callable[[], None]] = []
        self._http = http
        self._path = path
        self._backoff = backoff or Backoff()
        self._items = self._follow()

    async def __anext__(self) -> T:
        return await anext(self._items)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._items.aclose()

    def when_caught_up(self, callback: Callable[[], None]) -> None:
        """Has it called at that moment, once, before anything later is yielded; what it raises ends the stream."""
        self._when_caught_up.append(callback)

    @abstractmethod
    def _params(self) -> Params:
        """What asks for all that has not been yielded yet."""

    @abstractmethod
    def _message(self, frame: Frame) -> T | None:
        """What a message holds, if it is new; raises `Fault`, and `msgspec.DecodeError`."""

    @abstractmethod
    def _caught_up(self, data: str) -> None:
        """Notes what the server says of where it is; raises as `_message` does."""

    def _is_last(self, item: T) -> bool:
        return False

    async def _follow(self) -> AsyncGenerator[T]:
        faults = 0
        while True:
            retry_after_s = 0.0
            try:
                async with self._http.stream(self._path, self._params()) as response:
                    if response.status_code == 204:
                        return
                    self.connected = True
                    frames = SseParser()
                    async for chunk in response.aiter_bytes():
                        for frame in frames.feed(chunk):
                            if (item := self._read(frame)) is None:
                                continue
                            faults = 0
                            yield item
                            if self._is_last(item):
                                return
            except Passing as passing:
                retry_after_s = passing.retry_after_s
            except _Restarting:
                pass
            except (Fault, FrameTooLarge) as fault:
                faults += 1
                if faults == FAULTS_MAX:
                    raise RunstoneError(
                        f"{self._http.url} keeps sending a broken stream. {fault}",
                        remedy="Look for a proxy in between; `runstone verify` checks the store.",
                    ) from fault
            finally:
                self.connected = False
            await asyncio.sleep(max(self._backoff.next_s(), retry_after_s))

    def _read(self, frame: Frame) -> T | None:
        """What is new in a frame, if anything."""
        try:
            match frame.event:
                case "message":
                    if (item := self._message(frame)) is not None:
                        self._backoff.reset()
                    return item
                case "caught_up":
                    self._caught_up(frame.data)
                    self._backoff.reset()
                    self.caught_up.set()
                    while self._when_caught_up:
                        self._when_caught_up.pop()()
                case "closing":
                    reason = msgspec.json.decode(frame.data, type=_Closing).reason
                    if reason == "deleted":
                        raise NotFound("The thread was deleted.")
                    raise _Restarting
        except msgspec.DecodeError as error:
            raise Fault(f"A frame {frame.event!r} cannot be read: {error}.") from error
        return None


class EventStream(Stream[Event]):
    """The events of a thread or a run, as they are committed, each once and in order.

    A run's stream ends after the run's terminal event; a thread's goes on until it is closed, and raises
    `NotFound` when the thread is deleted meanwhile.
    """

    def __init__(
        self,
        http: Http,
        path: str,
        *,
        after: int,
        types: Collection[str] | None,
        run_id: str | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(http, path, backoff=backoff)
        self._types = None if types is None else ",".join(types)
        self._run_id = run_id
        self._cursor = Cursor(after, contiguous=types is None and run_id is None)

    def _params(self) -> Params:
        params: dict[str, str | int] = {"after": self._cursor.seq}
        return params if self._types is None else params | {"types": self._types}

    def _message(self, frame: Frame) -> Event | None:
        event = Event.decode(frame.data)
        return event if self._cursor.take(event.seq) else None

    def _caught_up(self, data: str) -> None:
        self._cursor.reach(msgspec.json.decode(data, type=_CaughtUp).head)

    def _is_last(self, item: Event) -> bool:
        return item.type in TERMINAL_EVENTS and item.run_id == self._run_id
