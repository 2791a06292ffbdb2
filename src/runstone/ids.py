"""Ids: a prefix that says what it names, and a UUIDv7, so that ids sort roughly by birth."""

from __future__ import annotations

from typing import Literal

import uuid_utils

Prefix = Literal["thr", "run", "msg", "act", "apr", "art", "err", "wrk", "gen"]


def new_key() -> str:
    """A key for one request: the bare UUID, since a key is not an id."""
    return str(uuid_utils.uuid7())


def new_id(prefix: Prefix) -> str:
    return f"{prefix}_{uuid_utils.uuid7()}"
