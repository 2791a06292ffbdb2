"""Walk a folder, and find a path in it, without ever leaving it."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, Literal

from runstone.agents.files.names import clip, shown, unshown

ENTRIES_MAX: Final = 200_000  # one walk looks at no more; about a second of directory reads
SKIPPED_NAMES: Final = frozenset({"node_modules", "bower_components", "__pycache__", "site-packages", "venv"})
CACHE_TAGS: Final = frozenset({"CACHEDIR.TAG", "pyvenv.cfg"})  # a folder that holds one is made by a tool


class FileError(Exception):
    """The caller asked for something that no folder could answer; the message says what to ask instead."""


def folder(root: str) -> Path:
    """The real, absolute path of a folder that can be read; otherwise `FileError` with what to do."""
    try:
        base = Path(root).expanduser().resolve()
        with os.scandir(base):
            return base
    except FileNotFoundError:
        reason = "does not exist"
    except NotADirectoryError:
        reason = "is not a folder"
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: `~name` of nobody
        reason = f"cannot be read ({reason_of(error)})"
    raise FileError(f"{clip(root, 200)!r} {reason}. Give the path of a folder that the server can read.")


def locate(base: Path, path: str) -> Path:
    """The real path of `path` under `base`; `FileError` when it leads elsewhere."""
    try:
        target = base / path
        if not os.path.lexists(target):
            target = base / unshown(path)
        target = target.resolve()
        if target.is_relative_to(base):
            return target
    except (OSError, RuntimeError, ValueError):
        pass
    raise FileError(f"{clip(path, 200)!r} is no path inside the folder. Use one that list_files returned.")


def reason_of(error: Exception) -> str:
    """What the system says is wrong, as the end of a sentence."""
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()


@dataclass(frozen=True, slots=True)
class Seen:
    inside: str
    what: Literal["file", "folder", "link", "special", "hidden", "skipped", "unreadable", "cut"]
    bytes: int = 0

    @property
    def path(self) -> str:
        return shown(self.inside)


def walk(base: Path) -> Iterator[Seen]:
    """Everything under `base` that is worth a look, level by level and sorted, without leaving it."""
    room = ENTRIES_MAX
    waiting = deque([""])
    while waiting:
        inside = waiting.popleft()
        try:
            with os.scandir(base / inside) as scan:
                entries = sorted(islice(scan, room), key=lambda entry: entry.name)
        except OSError:
            yield Seen(inside, "unreadable")
            continue
        if inside and not CACHE_TAGS.isdisjoint(entry.name for entry in entries):
            yield Seen(inside, "skipped")
            continue
        if inside:
            yield Seen(inside, "folder")
        for entry in entries:
            path = f"{inside}/{entry.name}" if inside else entry.name
            seen = _look(entry, path)
            if seen.what == "folder":
                waiting.append(path)  # reported once it could be read
            else:
                yield seen
        room -= len(entries)
        if room <= 0:
            yield Seen("", "cut")
            return


def cut_short() -> str:
    """What to say of a walk that was cut."""
    return f"stopped after {ENTRIES_MAX:,} names"


def _look(entry: os.DirEntry[str], path: str) -> Seen:
    if entry.name.startswith("."):
        return Seen(path, "hidden")
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:
        return Seen(path, "unreadable")
    if stat.S_ISLNK(status.st_mode):
        return Seen(path, "link")
    if stat.S_ISDIR(status.st_mode):
        return Seen(path, "skipped" if entry.name in SKIPPED_NAMES else "folder")
    if stat.S_ISREG(status.st_mode):
        return Seen(path, "file", status.st_size)
    return Seen(path, "special")
