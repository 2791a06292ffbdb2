"""JSON schemas of answers: who asks writes them, anybody's answer is held against them, at a cost that is bounded.

Nothing that a schema refers to is ever fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime, time, timedelta
from graphlib import CycleError, TopologicalSorter
from itertools import islice
from typing import Any, NamedTuple

from jsonschema_rs import Draft202012Validator, ValidationError
from pydantic import TypeAdapter
from pydantic import ValidationError as NotOfType

from runstone import values
from runstone.errors import Invalid
from runstone.values import Json

EXPLAINED_BYTES_MAX = 4_096  # of an answer: all faults are looked for before the first is told, in up to 50 ms
FAULTS_MAX = 20  # told of one answer: whoever reads them mends these first
DETAIL_CHARS_MAX = 300  # of one of them


class Fault(NamedTuple):
    """What is wrong with a value, and where: the names and numbers that lead there."""

    path: tuple[str | int, ...]
    detail: str


def check(schema: Json) -> None:
    """Raises Invalid for what is no schema, or refers to something outside itself."""
    try:
        _validator(schema)
    except ValidationError as error:
        raise Invalid.at("schema", f"nobody could answer this: {error.message[:DETAIL_CHARS_MAX]}") from None


def faults(schema: Json, value: Json) -> list[Fault]:
    """Why the value is none that the schema asks for; empty where it is."""
    validator = _validator(schema)
    if validator.is_valid(value):
        return []
    # every item may be wrong, and every level of a schema within itself doubles the ways in which it is
    if len(values.encode(value)) > EXPLAINED_BYTES_MAX or _refers_to_itself(schema):
        return [Fault((), "is not of the form that was asked for")]
    return [
        Fault(tuple(error.instance_path), error.message[:DETAIL_CHARS_MAX])
        for error in islice(validator.iter_errors(value), FAULTS_MAX)
    ]


def _validator(schema: Any) -> Draft202012Validator:
    return Draft202012Validator(schema, formats=_FORMATS, validate_formats=True, offline=True, mask="this")


def _read_as(kind: type) -> Callable[[str], bool]:
    """A format is what the agent will be able to read."""
    adapter = TypeAdapter[object](kind)

    def readable(text: str) -> bool:
        try:
            adapter.validate_strings(text)
        except NotOfType:
            return False
        return True

    return readable


_FORMATS = {
    "date": _read_as(date),
    "date-time": _read_as(datetime),
    "duration": _read_as(timedelta),
    "time": _read_as(time),
}


def _refers_to_itself(schema: Json) -> bool:
    """Whether it may: what cannot be told counts as yes."""
    assert isinstance(schema, dict | bool), "a schema is an object or a boolean"
    if isinstance(schema, bool):
        return False
    given = schema.get("$defs")
    definitions = given if isinstance(given, dict) else {}
    references = {f"#/$defs/{name}": set(_references(definition)) for name, definition in definitions.items()}
    references["#"] = set(_references({name: part for name, part in schema.items() if name != "$defs"}))
    try:
        TopologicalSorter(references).prepare()
    except CycleError:
        return True
    return not set().union(*references.values()) <= references.keys()


def _references(schema: Json) -> Iterator[str]:
    if isinstance(schema, dict):
        for name, part in schema.items():
            if name in {"$ref", "$dynamicRef"} and isinstance(part, str):
                yield part
            yield from _references(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from _references(part)
