"""Canonical JSON: the one encoding of every value that is stored, hashed or compared.

Sorted keys, no spaces, non-ASCII raw, exact integers of at most 64 bits, no NaN or Infinity; a lone
surrogate becomes U+FFFD, so that every text is UTF-8 in every store.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import NoReturn, TypeAlias, cast

import msgspec

from runstone.errors import BadJson, Invalid
from runstone.limits import JSON_DEPTH_MAX

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

_encoder = msgspec.json.Encoder(order="sorted")
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1


def encode(value: object) -> bytes:
    """Canonical bytes of a JSON value (tuples count as lists).

    Raises `Invalid` with the path of what is not JSON.
    """
    return _encoder.encode(_checked(value, "", 0))


def encode_record(record: msgspec.Struct) -> bytes:
    """Canonical bytes of one of our own records, whose free values are encoded already."""
    try:
        return _encoder.encode(record)
    except UnicodeEncodeError:  # rare, so the common case pays nothing for it
        return encode(msgspec.to_builtins(record, builtin_types=(msgspec.Raw,)))


def encode_plain(value: object) -> bytes:
    """JSON bytes in the order given, for what is said and never compared; a lone surrogate is mended here too."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return msgspec.json.encode(_checked(value, "", 0))


def raw(value: object) -> msgspec.Raw:
    """A value, encoded, to stand inside a record."""
    return msgspec.Raw(encode(value))


def decode(data: bytes | msgspec.Raw) -> Json:
    """The value of canonical bytes."""
    return cast(Json, msgspec.json.decode(data))


def parse(text: bytes | str) -> Json:
    """The value of JSON that came from outside; raises `BadJson`."""
    try:
        return cast(Json, json.loads(text, parse_constant=_refuse_constant))
    except (ValueError, RecursionError) as error:
        raise BadJson(f"The body is not JSON: {error}") from None


def digest(data: bytes) -> str:
    """SHA-256 of canonical bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def mend(text: str) -> str:
    """The text with surrogate pairs joined and lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _checked(value: object, path: str, depth: int) -> object:
    if value is None or isinstance(value, bool | msgspec.Raw):
        return value
    if isinstance(value, str):
        return mend(value)
    if isinstance(value, int):
        if not _INT_MIN <= value <= _INT_MAX:
            raise Invalid.at(path or ".", "an integer of more than 64 bits; send it as a string")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Invalid.at(path or ".", f"{value} is not JSON")
        return float(value)
    if depth >= JSON_DEPTH_MAX:
        raise Invalid.at(path or ".", f"nested deeper than {JSON_DEPTH_MAX} levels")
    if isinstance(value, Mapping):
        return {
            _key(key, path): _checked(item, f"{path}.{key}" if path else str(key), depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [_checked(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    raise Invalid.at(path or ".", f"{type(value).__name__} is not a JSON value")


def _key(key: object, path: str) -> str:
    if not isinstance(key, str):
        raise Invalid.at(path or ".", f"a key is {type(key).__name__}, not a string")
    return mend(key)
