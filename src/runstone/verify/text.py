"""A message that streams: its pieces follow each other, and together are its content."""

from __future__ import annotations

from runstone.events import AgentThinking, Delta, MessageDelta, MessagePart
from runstone.messages import MessageFold

_PIECES_MAX = 512  # small strings kept before they are joined: each takes ten times its text


class Streaming:
    """Feed it every delta and part of one message; each answers what is wrong with it, or None."""

    def __init__(self, message_id: str, run_no: int | None) -> None:
        self.run_no = run_no
        self._message_id = message_id
        self._fold = MessageFold()
        self._part = -1
        self._kind: type[AgentThinking | MessageDelta] | None = None
        self._offset = 0
        self._joined = 0  # code points of the part that the fold has
        self._pieces: list[str] = []
        self._broken = False

    def delta(self, data: Delta) -> str | None:
        if data.offset != self._offset or data.part != self._part or type(data) is not self._kind:
            problem = self._turn(data)
            if problem is not None:
                return problem
        self._pieces.append(data.delta)
        self._offset += len(data.delta)
        if len(self._pieces) >= _PIECES_MAX:
            self._join()
        return None

    def whole(self, data: MessagePart) -> str | None:
        """A part that is no text."""
        self._join()
        self._kind = None
        before, self._part = self._part, data.part
        if data.part != before + 1:
            self._broken = True
            return f"part {data.part} of {self._message_id} begins, expected part {before + 1}"
        if not self._broken:
            self._fold.feed(data)
        return None

    def content(self) -> tuple[bytes, int] | None:
        """The parts as a row keeps them, and the length of the text; None where a piece was wrong."""
        self._join()
        return None if self._broken else (self._fold.encoded(), self._fold.length)

    def _turn(self, data: Delta) -> str | None:
        """The delta does not go on where the last one ended: it begins the next part, or something is missing."""
        self._join()
        part, offset, kind = self._part, self._offset, self._kind
        self._part, self._offset, self._joined = data.part, data.offset, data.offset
        self._kind = AgentThinking if isinstance(data, AgentThinking) else MessageDelta
        if data.part == part + 1 and data.offset == 0:
            return None
        self._offset += len(data.delta)
        self._broken = True
        if data.part == part and kind is self._kind:
            return f"offset {data.offset} in part {part} of {self._message_id}, expected {offset}"
        if data.part == part + 1:
            return f"part {data.part} of {self._message_id} begins at offset {data.offset}, expected 0"
        return f"a delta of part {data.part} of {self._message_id}, expected one of part {max(part, 0)} or the next"

    def _join(self) -> None:
        if self._pieces and self._kind is not None and not self._broken:
            text = "".join(self._pieces)
            self._fold.feed(self._kind(message_id=self._message_id, part=self._part, offset=self._joined, delta=text))
            self._joined += len(text)
        self._pieces.clear()
