"""How a report is said: word by word into a message, and remembered for the file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol


class Writing(Protocol):
    async def write(self, delta: str, /) -> object: ...


class Voice(Protocol):
    """The part of a run that the survey uses."""

    async def think(self, text: str, /) -> object: ...

    def message(self) -> AbstractAsyncContextManager[Writing]: ...


@dataclass(slots=True)
class Teller:
    """Says a text in small pieces, and remembers it: what was said is what the file holds."""

    writing: Writing
    said: list[str] = field(default_factory=list)

    async def say(self, *paragraphs: str) -> None:
        for paragraph in paragraphs:
            text = paragraph + "\n\n"
            self.said.append(text)
            for piece in pieces(text):
                await self.writing.write(piece)


def pieces(text: str) -> Iterator[str]:
    """A text word by word, but its table rows whole: half a row is no table. Joined, they are the text."""
    for line in text.splitlines(keepends=True):
        yield from [line] if line.startswith("|") else re.findall(r"\s*\S+\s*|\s+", line)
