"""The bounds of what an agent may say, checked where it says it."""

from __future__ import annotations

from msgspec import Raw
from pydantic_core import to_jsonable_python

from runstone import values
from runstone.errors import Invalid, TooLarge
from runstone.limits import INPUT_BYTES_MAX, OUTPUT_BYTES_MAX, TOKENS_MAX


def bounded(what: str, text: str, chars_max: int) -> None:
    if not 1 <= len(text) <= chars_max:
        raise Invalid.at(what, f"must be text of 1 to {chars_max} characters")


def counted(what: str, count: object) -> None:
    if not isinstance(count, int) or not 0 <= count <= TOKENS_MAX:
        raise Invalid.at(what, f"must be a whole number from 0 to {TOKENS_MAX}")


def sized(what: str, value: object, bytes_max: int = OUTPUT_BYTES_MAX) -> Raw:
    encoded = values.encode(value)
    if len(encoded) > bytes_max:
        raise TooLarge(f"The {what} is {len(encoded)} bytes; the most is {bytes_max}.")
    return Raw(encoded)


def called_with(value: object) -> Raw:
    """What a tool or an agent is called with, models and dataclasses included, as it is recorded.

    Raises TooLarge, and Invalid for what is not JSON.
    """
    try:
        plain = to_jsonable_python(value, inf_nan_mode="constants")
    except ValueError as error:
        raise Invalid.at("input", str(error)) from None
    return sized("input", plain, INPUT_BYTES_MAX)
