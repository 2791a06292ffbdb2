"""Other people's names and lines, as they can be shown and are JSON."""

from __future__ import annotations

import re


def shown(path: str) -> str:
    """A path as valid Unicode: a byte that is not UTF-8 becomes `\\xNN`."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def unshown(path: str) -> str:
    """The path that `shown` wrote, where it holds an escaped byte that could not have been text."""
    raw = re.sub(rb"\\x([89a-f][0-9a-f])", lambda match: bytes.fromhex(match[1].decode()), path.encode("utf-8"))
    return raw.decode("utf-8", "surrogateescape")


def clip(text: str, chars_max: int) -> str:
    """One printable line of at most `chars_max` characters; what does not print becomes U+FFFD."""
    head = text[: 4 * chars_max]  # enough after white space is folded, and never a whole huge line
    line = "".join(char if char.isprintable() else "\ufffd" for char in " ".join(head.split()))
    return line if len(line) <= chars_max else line[: chars_max - 1] + "…"
