"""Payloads as they are stored: JSON of their type, in canonical bytes."""

from __future__ import annotations

import msgspec

from runstone import events as e
from runstone import values
from runstone.errors import Invalid
from runstone.verify.findings import quoted

_NOT_JSON = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class NotOfItsType(Exception):
    """The payload is not JSON, or not that of its type."""


class _Text(msgspec.Struct, frozen=True, gc=False):
    data: e.MessageDelta


class _Reasoning(msgspec.Struct, frozen=True, gc=False):
    data: e.AgentThinking


_deltas: dict[str, msgspec.json.Decoder[_Text] | msgspec.json.Decoder[_Reasoning]] = {
    "message_delta": msgspec.json.Decoder(_Text),
    "agent_thinking": msgspec.json.Decoder(_Reasoning),
}
_free = msgspec.json.Decoder(e.Payload)
_encode = msgspec.json.Encoder(order="sorted").encode  # not the one that has written what is checked here

DELTAS = frozenset(_deltas)


def delta(kind: str, payload: bytes) -> tuple[e.Delta, bool]:
    """The data of a delta, and whether its bytes are plainly canonical; else `canonical` has to look closer."""
    try:
        data: e.Delta = _deltas[kind].decode(payload).data
    except _NOT_JSON as error:
        raise NotOfItsType(f"it is no {kind}: {error}") from None
    return data, b'{"data":%b}' % _encode(data) == payload


def draft(kind: str, payload: bytes) -> e.Draft:
    """The event as it was before it was stored, as far as its payload says."""
    if kind not in e.TYPES:
        raise NotOfItsType(f"there is no event type {quoted(kind)}")
    try:
        parts = _free.decode(payload)
        return e.Draft(data=e.data_of(kind, payload), metadata=parts.metadata, raw=parts.raw)
    except _NOT_JSON as error:
        raise NotOfItsType(f"it is no {kind}: {error}") from None


def canonical(payload: bytes) -> str | None:
    """What is wrong with the bytes of a JSON payload; None where they are the only ones that say the same."""
    try:
        value = values.decode(payload)
        values.encode(value)  # refuses what is JSON and no value of ours
        expected = _encode(value)
    except (*_NOT_JSON, Invalid) as error:
        return f"it is not canonical JSON: {error}"
    return None if expected == payload else f"expected the canonical bytes {quoted(expected)}, found {quoted(payload)}"
