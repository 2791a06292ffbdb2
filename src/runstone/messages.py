"""A message as the fold of its events: the same fold while it streams, when it ends and when it is checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from runstone import values
from runstone.events import AgentThinking, Data, Delta, MessagePart
from runstone.values import Json

_DELTA_PART = {True: "reasoning", False: "text"}


class MessageFold:
    """The parts of one message, fed with its events in order."""

    def __init__(self, events: Iterable[Data] = ()) -> None:
        self._parts: list[tuple[str, list[str]] | values.Json] = []
        self.length = 0  # code points of all text parts
        for data in events:
            self.feed(data)

    def feed(self, data: Data) -> None:
        if isinstance(data, Delta):
            kind = _DELTA_PART[isinstance(data, AgentThinking)]
            if data.part == len(self._parts):
                self._parts.append((kind, []))
            part = self._parts[data.part]
            assert isinstance(part, tuple) and part[0] == kind, f"part {data.part} of {data.message_id} is not {kind}"
            part[1].append(data.delta)
            if kind == "text":
                self.length += len(data.delta)
        elif isinstance(data, MessagePart):
            assert data.part == len(self._parts), f"part {data.part} of {data.message_id} came out of order"
            self._parts.append(values.decode(data.value))

    def parts(self) -> list[dict[str, Json]]:
        """The message's parts, as resources show them."""
        return [
            {"type": part[0], "text": "".join(part[1])} if isinstance(part, tuple) else cast("dict[str, Json]", part)
            for part in self._parts
        ]

    def encoded(self) -> bytes:
        """The parts as a row keeps them."""
        return values.encode(self.parts())


def user_parts(message: object) -> list[dict[str, Any]]:
    """The parts of a message given as a string, or as a list of parts."""
    return [{"type": "text", "text": message}] if isinstance(message, str) else cast("list[dict[str, Any]]", message)


def text_of(parts: Iterable[dict[str, Json]]) -> str:
    """The text parts, joined: a message's `content`."""
    return "".join(str(part["text"]) for part in parts if part.get("type") == "text")
