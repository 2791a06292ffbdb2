"""A message as the fold of its events: the same fold while it streams, when it ends and when it is checked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from runstone import values
from runstone.events import AgentThinking, Data, Delta, MessageDelta, MessagePart
from runstone.values import Json

_PART_TYPE: dict[type[Delta], str] = {AgentThinking: "reasoning", MessageDelta: "text"}


class MessageFold:
    """The parts of one message, fed with its events in order."""

    def __init__(self, events: Iterable[Data] = ()) -> None:
        self._parts: list[tuple[str, list[str]] | values.Json] = []
        self.length = 0  # code points of all text parts
        for data in events:
            self.feed(data)

    def feed(self, data: Data) -> None:
        if isinstance(data, Delta):
            self.add(type(data), data.part, data.delta)
        elif isinstance(data, MessagePart):
            self.put(data.part, values.decode(data.value))

    def add(self, kind: type[Delta], number: int, delta: str) -> None:
        """What feeding a delta does, without a record of it: this is done once a token."""
        if number == len(self._parts):
            self._parts.append((_PART_TYPE[kind], []))
        part = self._parts[number]
        assert isinstance(part, tuple) and part[0] == _PART_TYPE[kind], f"part {number} is not {_PART_TYPE[kind]}"
        part[1].append(delta)
        if kind is MessageDelta:
            self.length += len(delta)

    def put(self, number: int, value: Json) -> None:
        """A whole part."""
        assert number == len(self._parts), f"part {number} came out of order"
        self._parts.append(value)

    def parts(self) -> list[dict[str, Json]]:
        """The message's parts, as resources show them."""
        return [
            {"type": part[0], "text": "".join(part[1])} if isinstance(part, tuple) else cast("dict[str, Json]", part)
            for part in self._parts
        ]

    def encoded(self) -> bytes:
        """The parts as a row keeps them."""
        return values.encode(self.parts())


def text_of(parts: Iterable[dict[str, Json]]) -> str:
    """The text parts, joined: a message's `content`."""
    return "".join(str(part["text"]) for part in parts if part.get("type") == "text")
