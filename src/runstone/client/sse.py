"""Reads Server-Sent Events: bytes in, frames out, wherever the network cuts the bytes.

Follows the WHATWG's event stream: lines end in LF, CR or CRLF; comments and unknown fields are skipped; a
frame without data, or without its blank line, is not a frame.
"""

from __future__ import annotations

from typing import NamedTuple

from runstone.limits import MIB

FRAME_BYTES_MAX = 2 * MIB  # an event has at most 768 KiB; more is not from Runstone, and must not fill memory

_BOM = b"\xef\xbb\xbf"


class Frame(NamedTuple):
    event: str  # "message" where the stream names none
    data: str
    id: str  # of this frame or the last one before it that had an id


class FrameTooLarge(ValueError):
    """A frame passed `FRAME_BYTES_MAX`."""


class SseParser:
    """One stream's parser; a new connection needs a new one."""

    def __init__(self) -> None:
        self._line: list[bytes] = []  # pieces of a line that has not ended
        self._first = True
        self._after_cr = False  # an LF now would belong to a CR that has ended a line already
        self._size = 0  # bytes of the frame so far
        self._event = ""
        self._data: list[str] = []
        self._id = ""

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that end in this chunk; raises `FrameTooLarge`."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if not chunk:
            return []
        self._after_cr = chunk.endswith(b"\r")
        *ends, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        frames = []
        for end in ends:
            self._grow(end)
            line = b"".join(self._line)
            self._line.clear()
            if (frame := self._end_line(line)) is not None:
                frames.append(frame)
        self._grow(rest)
        return frames

    def _grow(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > FRAME_BYTES_MAX:
            raise FrameTooLarge(f"A frame of more than {FRAME_BYTES_MAX} bytes.")
        if piece:
            self._line.append(piece)

    def _end_line(self, line: bytes) -> Frame | None:
        if self._first:
            line = line.removeprefix(_BOM)
            self._first = False
        if not line:
            return self._end_frame()
        name, _, value = line.decode(errors="replace").partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "":  # a comment; a stream of nothing else must not look like one growing frame
                self._size -= len(line)
        return None

    def _end_frame(self) -> Frame | None:
        frame = Frame(self._event or "message", "\n".join(self._data), self._id) if self._data else None
        self._event = ""
        self._data = []
        self._size = 0
        return frame
