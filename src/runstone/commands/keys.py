"""A caller's own ids for what requests make: the same request again makes nothing twice."""

from __future__ import annotations

import msgspec

from runstone.errors import KeyReused
from runstone.store import (
    KeyRow,
)


class Key(msgspec.Struct, frozen=True):
    """A caller's own id for what a request makes, and the digest of that request."""

    key: str
    digest: str


class Made(msgspec.Struct, frozen=True):
    """The id of what a command made, or of what an earlier one made with the same key."""

    id: str
    new: bool
    interrupted: tuple[str, ...] = ()


def key_of(kind: str, key: Key | None) -> tuple[str, str] | None:
    return None if key is None else (kind, key.key)


def key_rows(user_id: str, kind: str, key: Key | None, made: str, thread_id: str) -> list[KeyRow]:
    return [] if key is None else [KeyRow(user_id, kind, key.key, key.digest, made, thread_id)]


def made_before(row: KeyRow, key: Key) -> Made:
    if row.digest != key.digest:
        raise KeyReused(f"The key {key.key!r} was used with another body, and made {row.made}.")
    return Made(row.made, False)
