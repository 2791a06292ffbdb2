"""A finding: one place in a store that is not as promised."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

Check = Literal[
    "store",  # the file, its tables and indexes, its references
    "generation",
    "pos",
    "time",
    "seq",
    "owner",
    "payload",
    "run",
    "attempt",
    "superseded",
    "message",
    "action",
    "step",
    "approval",
    "thread",
    "rows",
]
VALUE_CHARS_MAX = 80  # of a value that a finding quotes


class Problem(NamedTuple):
    """What is wrong with an event; where it is void, it changes nothing: it speaks of what is not there."""

    check: Check
    detail: str
    void: bool = False


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was found, where, and what was expected instead."""

    check: Check
    detail: str
    thread_id: str | None = None
    seq: int | None = None
    pos: int | None = None
    run_id: str | None = None

    def line(self) -> str:
        named = {"thread_id": "", "seq": "seq ", "pos": "pos ", "run_id": ""}
        where = [f"{word}{value}" for name, word in named.items() if (value := getattr(self, name)) is not None]
        return ": ".join([self.check, *([" ".join(where)] if where else []), self.detail])


def quoted(value: object) -> str:
    """A value in a finding, cut."""
    text = repr(value)
    return text if len(text) <= VALUE_CHARS_MAX else f"{text[: VALUE_CHARS_MAX - 1]}…"
