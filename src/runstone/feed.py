"""The feed on the wire: its cursors, and what changed threads become. The spec is PROTOCOL.md, section 7."""

from __future__ import annotations

import base64
import binascii

import msgspec

from runstone.errors import GenerationChanged, Invalid
from runstone.views import FeedPage

_SHARD = 1  # the only one of a store so far; a cursor names it, so that it stays good when there are more
_CURSOR_CHARS_MAX = 1_000
_POS_MAX = 2**63 - 1


class _Place(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """What is in a cursor: where a reader is in each shard, in one history of the store."""

    generation: str
    positions: list[tuple[int, int]]  # shard and pos


def cursor_at(generation: str, pos: int) -> str:
    """The cursor of a pos: opaque to clients, and safe in a URL, a header and an event stream's `id`."""
    place = msgspec.json.encode(_Place(generation, [(_SHARD, pos)]))
    return base64.urlsafe_b64encode(place).decode().rstrip("=")


def pos_of(cursor: object, generation: str, where: str = "after") -> int:
    """The pos of a cursor; raises Invalid, and GenerationChanged for one of another history."""
    try:
        if not isinstance(cursor, str) or len(cursor) > _CURSOR_CHARS_MAX:
            raise ValueError
        encoded = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = msgspec.json.decode(encoded, type=_Place)
        [(shard, pos)] = place.positions
        if shard != _SHARD or not 0 <= pos <= _POS_MAX:
            raise ValueError
    except (ValueError, binascii.Error, msgspec.DecodeError):
        raise Invalid.at(where, "is no cursor of a feed; leave it away to begin anew") from None
    if place.generation != generation:
        raise GenerationChanged("The store has been restored: its history is another one.")
    return pos


class Shown(msgspec.Struct, frozen=True):
    """A changed thread as its reader gets it; the resource is encoded, and null where the thread is deleted."""

    cursor: str
    thread_id: str
    resource: bytes | None

    def event(self) -> bytes:
        """As a server-sent event."""
        said = self.resource
        if said is None:
            said = msgspec.json.encode({"thread_id": self.thread_id, "deleted": True})
        return b"id: %b\ndata: %b\n\n" % (self.cursor.encode(), said)

    def frame(self) -> bytes:
        """As a frame of a WebSocket."""
        head = {"op": "thread", "cursor": self.cursor}
        if self.resource is None:
            return msgspec.json.encode(head | {"thread_id": self.thread_id, "deleted": True})
        return msgspec.json.encode(head | {"thread": msgspec.Raw(self.resource)})


class Feed:
    """One reader's place in a feed: what is shown of a page, and when it has caught up."""

    __slots__ = ("_generation", "_goal")

    def __init__(self, generation: str, *, head: int) -> None:
        self._generation = generation
        self._goal: int | None = head

    def take(self, page: FeedPage) -> tuple[list[Shown], str | None]:
        """The threads to show, and the cursor to announce when this page has caught up, once."""
        shown = [
            Shown(
                cursor_at(self._generation, item.pos),
                item.thread_id,
                None if item.thread is None else item.thread.model_dump_json().encode(),
            )
            for item in page.items
        ]
        if self._goal is None or page.last < self._goal:
            return shown, None
        self._goal = None
        return shown, cursor_at(self._generation, page.last)
