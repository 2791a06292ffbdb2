"""Read the head of a file, and tell text from binary."""

from __future__ import annotations

import codecs
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runstone.agents.files.folders import folder, locate, reason_of
from runstone.limits import KIB, MIB

EXCERPT_BYTES_MAX: Final = 64 * KIB  # of `read_file`: a long README, not a book
SNIFF_BYTES: Final = 8 * KIB  # of the head decide whether a file is text


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The head of a text file; `text` is empty when there is a `problem`."""

    path: str
    bytes: int
    text: str
    cut: bool
    problem: str | None


def read_file(root: str, path: str) -> Excerpt:
    """Read the head of a text file, at most 64 KiB."""
    target = locate(folder(root), path)
    try:
        head = head_of(target, EXCERPT_BYTES_MAX)
    except OSError as error:
        return Excerpt(path, 0, "", False, reason_of(error))
    decoded = decode(head.data, cut=head.cut)
    if decoded is None:
        return Excerpt(path, head.bytes, "", head.cut, "binary")
    return Excerpt(path, head.bytes, decoded[0], head.cut, None)


@dataclass(frozen=True, slots=True)
class Head:
    data: bytes
    bytes: int
    cut: bool


def head_of(target: Path, bytes_max: int) -> Head:
    """The first bytes of a regular file. Anything else is refused unopened: a FIFO would wait for ever."""
    if not stat.S_ISREG(target.lstat().st_mode):
        raise OSError("not a regular file")
    # Asked again after opening, since the name may mean another file by now; without O_NONBLOCK that open
    # itself could wait.
    descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        data = bytearray()
        while len(data) <= bytes_max:
            chunk = os.read(descriptor, min(1 * MIB, bytes_max + 1 - len(data)))
            if not chunk:
                break
            data += chunk
    finally:
        os.close(descriptor)
    return Head(bytes(data[:bytes_max]), max(status.st_size, len(data)), len(data) > bytes_max)


def decode(data: bytes, *, cut: bool = False) -> tuple[str, str] | None:
    """Text and the name of its encoding, or None for binary. Bytes that are no text become U+FFFD."""
    for mark, codec in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
        (codecs.BOM_UTF8, "utf-8-sig"),
    ):
        if data.startswith(mark):
            return _decode_as(codec, "replace", data, cut), codec
    head = data[:SNIFF_BYTES]
    if 0 in head:
        return None
    try:
        return _decode_as("utf-8", "strict", data, cut), "utf-8"
    except UnicodeDecodeError:
        control = len(head) - len(head.translate(None, bytes([*range(9), *range(14, 32), 127])))
        if control * 10 > len(head):
            return None
        return _decode_as("utf-8", "replace", data, cut), "not UTF-8"


def _decode_as(codec: str, errors: str, data: bytes, cut: bool) -> str:
    # A character that the cut went through is left away, instead of being called invalid.
    return codecs.getincrementaldecoder(codec)(errors).decode(data, final=not cut)
