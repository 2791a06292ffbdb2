"""Frames that are made once: the viewers of one thread ask for the same ones, one right after the other."""

from __future__ import annotations

from collections.abc import Sequence

from runstone.events import Event
from runstone.gateway.connection import text_frame
from runstone.protocol import events_frames


class RecentFrames:
    """Remembers what it made last. It knows its input by identity: the log gives all who ask the same page."""

    def __init__(self) -> None:
        self._events: Sequence[Event] | None = None
        self._frames: Sequence[bytes] = ()
        self._payload: bytes | None = None
        self._frame = b""

    def of(self, thread_id: str, events: Sequence[Event]) -> Sequence[bytes]:
        """The payloads that the events become."""
        if events is not self._events:
            self._frames = events_frames(thread_id, events)
            self._events = events
        return self._frames

    def text(self, payload: bytes) -> bytes:
        """The whole frame, as bytes for the socket."""
        if payload is not self._payload:
            self._frame = text_frame(payload)
            self._payload = payload
        return self._frame
