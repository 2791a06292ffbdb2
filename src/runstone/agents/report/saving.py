"""Write the report into its folder, whole or not at all, and over nobody else's file."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runstone.agents import files
from runstone.agents.files import FileError

MARKER: Final = "<!-- Written by `runstone run report`, which replaces this file. Rename it to keep it. -->"
REPORTS_MAX: Final = 99  # report-99.md is the last name tried


@dataclass(frozen=True, slots=True)
class Written:
    """Where the report is, or why it is nowhere."""

    path: str | None
    bytes: int
    problem: str | None


def save_report(folder: str, text: str) -> Written:
    """Write `text` to `report.md` in `folder`, whole or not at all, and safe from a power cut.

    Only a report that begins with our marker is replaced; where somebody else's file has the name, it is
    `report-2.md`, and so on. Safe to repeat.
    """
    base = files.folder(folder)
    data = text.encode("utf-8", "replace")
    try:
        descriptor, temporary = tempfile.mkstemp(dir=base, prefix=".report-", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchmod(descriptor, 0o644)  # it was made for its owner alone, as temporary files are
                os.fsync(descriptor)
            name = _take_name(base)
            Path(temporary).replace(base / name)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _sync_folder(base)
    except OSError as error:
        return Written(None, 0, files.reason_of(error))
    return Written(name, len(data), None)


def _take_name(base: Path) -> str:
    """The first name that is free, and then is ours, or that holds a report of ours."""
    for name in ("report.md", *(f"report-{at}.md" for at in range(2, REPORTS_MAX + 1))):
        # Taken in one step: nobody's file can come between the look and the rename.
        with suppress(FileExistsError):
            os.close(os.open(base / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            return name
        with suppress(FileError):
            if files.read_file(str(base), name).text.startswith(MARKER) and not (base / name).is_symlink():
                return name
    raise OSError(f"report.md to report-{REPORTS_MAX}.md are all somebody else's")


def _sync_folder(base: Path) -> None:
    # Without it the rename may be lost with the power, though the file's bytes are not.
    descriptor = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
