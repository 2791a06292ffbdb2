"""A message that an agent writes: parts, offsets, and what is held back until it is whole."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import UNSET

from runstone import events as e
from runstone import values
from runstone.errors import Invalid, TooLarge
from runstone.events import PartialReason
from runstone.ids import new_id
from runstone.limits import MESSAGE_BYTES_MAX
from runstone.log import Outbox
from runstone.messages import MessageFold, text_of
from runstone.runtime.attempt import Attempt
from runstone.runtime.bounds import sized
from runstone.values import Json


class Message:
    """A message that is being written."""

    def __init__(self, attempt: Attempt, closed: Callable[[Message], None]) -> None:
        self.message_id = new_id("msg")
        self._attempt = attempt
        self._on_close = closed
        self._fold = MessageFold()
        self._kind: type[e.Delta] | None = None  # of the part that is being written
        self._part = -1
        self._offset = 0
        self._bytes = 0
        self._held = ""  # a high surrogate that waits for its other half
        self._closed = False

    @property
    def text(self) -> str:
        """What was written so far, without the reasoning."""
        return text_of(self._fold.parts())

    async def write(self, delta: str) -> None:
        """Text; buffered."""
        await self._delta(e.MessageDelta, delta)

    async def think(self, delta: str) -> None:
        """Reasoning; buffered."""
        await self._delta(e.AgentThinking, delta)

    async def part(self, value: dict[str, Json]) -> None:
        """A whole part: `{"type": "file" | "data" | "source" | "action", …}`."""
        if value.get("type") not in {"file", "data", "source", "action"}:
            raise Invalid.at("type", "a whole part is a file, data, source or action")
        await self._end_part()
        self._part += 1
        data = e.MessagePart(message_id=self.message_id, part=self._part, value=sized("part", value))
        self._fold.feed(data)
        await self._outbox().append(self._attempt.draft(data))

    async def close(self, reason: PartialReason | None) -> None:
        """Completes the message; with a reason it stays partial. A barrier; safe twice."""
        if self._closed:
            return
        await self._end_part()
        self._closed = True
        self._on_close(self)
        data = e.MessageCompleted(
            message_id=self.message_id,
            status="completed" if reason is None else "partial",
            reason=UNSET if reason is None else reason,
            length=self._fold.length,
        )
        await self._outbox().append(self._attempt.draft(data, content=self._fold.encoded()))

    async def _delta(self, kind: type[e.AgentThinking | e.MessageDelta], delta: str) -> None:
        if not isinstance(delta, str):
            raise TypeError(f"a delta is text, not {type(delta).__name__}")
        if self._closed:
            raise RuntimeError("the message is complete; open another with run.message()")
        if kind is self._kind and not self._held and delta.isascii() and len(delta) <= e.DELTA_CHARS_MAX:
            if self._put(kind, delta, len(delta)):  # the way of nearly every token, and so the short one
                await self._outbox().pause()
            return
        if kind is not self._kind:
            await self._end_part()
            self._kind, self._part, self._offset = kind, self._part + 1, 0
        if self._held or not delta.isascii():
            delta = self._whole(delta)
            if self._held and not delta:
                return
        await self._send(kind, delta)

    def _whole(self, delta: str) -> str:
        """The text up to a trailing high surrogate, mended."""
        text, self._held = self._held + delta, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        return values.mend(text)

    async def _send(self, kind: type[e.AgentThinking | e.MessageDelta], text: str) -> None:
        for start in range(0, len(text) or 1, e.DELTA_CHARS_MAX):
            piece = text[start : start + e.DELTA_CHARS_MAX] if len(text) > e.DELTA_CHARS_MAX else text
            if self._put(kind, piece, len(piece) if piece.isascii() else len(piece.encode())):
                await self._outbox().pause()

    def _put(self, kind: type[e.AgentThinking | e.MessageDelta], piece: str, size: int) -> bool:
        self._bytes += size
        if self._bytes > MESSAGE_BYTES_MAX:
            raise TooLarge(f"A message takes at most {MESSAGE_BYTES_MAX} bytes.", remedy="Begin another message.")
        offset, self._offset = self._offset, self._offset + len(piece)
        self._fold.add(kind, self._part, piece)
        return self._outbox().put(kind, self.message_id, self._part, offset, piece)

    async def _end_part(self) -> None:
        if self._held and self._kind is not None:
            self._held = ""
            await self._send(self._kind, "\ufffd")  # type: ignore[arg-type]
        self._kind = None

    def _outbox(self) -> Outbox:
        return self._attempt.outbox
