"""Profile JSON: what items a document or its lines hold, with which keys."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from runstone.agents.files.bounds import DISTINCT_MAX, NAME_CHARS_MAX
from runstone.agents.files.names import clip
from runstone.agents.files.text import whole_lines

KEYS_MAX: Final = 100  # described

_DECODER: Final = json.JSONDecoder()
_SPACE: Final = re.compile(r"[ \t\n\r]*")
_TYPE_NAMES: Final[dict[type, str]] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    type(None): "null",
}


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    count: int
    types: dict[str, int]


@dataclass(frozen=True, slots=True)
class Json:
    """The top of a JSON document, or of JSON lines: how many items, of which types, with which keys."""

    type: str
    items: int
    types: dict[str, int]
    keys: list[Key]
    keys_left_out: int
    broken: int
    problem: str | None


@dataclass(slots=True)
class _Items:
    """What was seen so far of the values at the top."""

    count: int = 0
    types: Counter[str] = field(default_factory=Counter)
    keys: dict[str, Counter[str]] = field(default_factory=dict)
    keys_left_out: set[int] = field(default_factory=set)

    def item(self, value: object) -> None:
        self.count += 1
        self.types[_TYPE_NAMES[type(value)]] += 1
        if isinstance(value, dict):
            for key, inner in value.items():
                self.key(key, inner)

    def member(self, key: str, value: object) -> None:
        self.count += 1
        self.key(key, value)

    def key(self, key: str, value: object) -> None:
        name = clip(key, NAME_CHARS_MAX)
        if name in self.keys or len(self.keys) < KEYS_MAX:
            self.keys.setdefault(name, Counter())[_TYPE_NAMES[type(value)]] += 1
        elif len(self.keys_left_out) < DISTINCT_MAX:
            self.keys_left_out.add(hash(key))

    def done(self, type_name: str, *, broken: int = 0, problem: str | None = None) -> Json:
        return Json(
            type=type_name,
            items=self.count,
            types=dict(sorted(self.types.items())),
            keys=[Key(name, types.total(), dict(sorted(types.items()))) for name, types in self.keys.items()],
            keys_left_out=len(self.keys_left_out),
            broken=broken,
            problem=problem,
        )


def profile_json(text: str, *, cut: bool = False) -> Json:
    """Describe a JSON document item by item, so that a cut or broken one still tells what came before."""
    items = _Items()
    at = _skip(text, 0)
    opening = text[at : at + 1]
    type_name = {"[": "array", "{": "object"}.get(opening, "value")
    try:
        if type_name == "array":
            end = _members(text, at, "]", lambda start: _array_item(text, start, items))
        elif type_name == "object":
            end = _members(text, at, "}", lambda start: _object_member(text, start, items))
        else:
            value, end = _DECODER.raw_decode(text, at)
            type_name = _TYPE_NAMES[type(value)]
            items.item(value)
        if _skip(text, end) < len(text):
            raise json.JSONDecodeError("Extra data", text, _skip(text, end))
    except (ValueError, RecursionError) as error:
        # Whatever is wrong near a cut is the cut.
        return items.done(type_name, broken=not cut, problem=None if cut else _json_problem(error))
    return items.done(type_name)


def profile_json_lines(text: str, *, cut: bool = False) -> Json:
    """Describe JSON lines: each line a document; lines that are none are counted."""
    items, broken, problem = _Items(), 0, None
    for number, line in enumerate(io.StringIO(whole_lines(text, cut=cut)), 1):
        if not line.strip():
            continue
        try:
            items.item(json.loads(line))
        except (ValueError, RecursionError) as error:
            broken += 1
            problem = problem or f"line {number}: {_json_problem(error)}"
    return items.done("lines", broken=broken, problem=problem)


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _members(text: str, at: int, closing: str, member: Callable[[int], int]) -> int:
    """Walk from an opening bracket to its closing one; `member` reads one and returns where it ended."""
    at = _skip(text, at + 1)
    if text[at : at + 1] == closing:
        return at + 1
    while True:
        at = _skip(text, member(_skip(text, at)))
        if text[at : at + 1] == closing:
            return at + 1
        at = _expect(text, at, ",")


def _array_item(text: str, at: int, items: _Items) -> int:
    value, end = _DECODER.raw_decode(text, at)
    items.item(value)
    return end


def _object_member(text: str, at: int, items: _Items) -> int:
    if text[at : at + 1] != '"':
        raise json.JSONDecodeError("Expecting a property name in double quotes", text, at)
    key, end = _DECODER.raw_decode(text, at)
    value, end = _DECODER.raw_decode(text, _skip(text, _expect(text, _skip(text, end), ":")))
    items.member(key, value)
    return end


def _expect(text: str, at: int, char: str) -> int:
    if text[at : at + 1] != char:
        raise json.JSONDecodeError(f"Expecting {char!r}", text, at)
    return at + 1


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at line {error.lineno}, column {error.colno}"
    return "nested too deeply" if isinstance(error, RecursionError) else "a number with too many digits"
