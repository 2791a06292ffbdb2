"""A disk of a test's own, whose power can be cut: ext4 in an image file, through a loop device. Linux and root only."""

from __future__ import annotations

import functools
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN
NOLOGFLUSH = struct.pack("I", 2)  # nothing more reaches the disk: not the journal, not a page

NOT_TESTED = "NOT TESTED"  # how a skip begins that a person should know of


class Disk:
    """Mounted while the context is open; what happens to it, it is unmounted at the end."""

    def __init__(self, folder: Path, size_mib: int = 64) -> None:
        self.root = folder / "disk"
        self._image = folder / "disk.img"
        self._size = size_mib * 1024 * 1024

    def __enter__(self) -> Disk:
        self.root.mkdir(parents=True)
        with self._image.open("wb") as image:
            image.truncate(self._size)
        _run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", str(self._image))
        self._mount()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        done = subprocess.run(["umount", str(self.root)], capture_output=True, check=False)
        if done.returncode:
            subprocess.run(["umount", "-l", str(self.root)], capture_output=True, check=False)
        self._image.unlink()

    def cut(self) -> None:
        """The power goes: what is not on the disk by now never will be, and every write fails."""
        import fcntl

        descriptor = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, NOLOGFLUSH)
        finally:
            os.close(descriptor)

    def come_back(self) -> None:
        """The power returns. Nobody may hold a file on it."""
        _run("umount", str(self.root))
        self._mount()

    def _mount(self) -> None:
        _run("mount", "-o", "loop", str(self._image), str(self.root))


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


@functools.cache
def why_none() -> str | None:
    """Why there is no such disk here; None if there is."""
    if sys.platform != "linux":
        return f"{NOT_TESTED}: a disk whose power can be cut needs Linux"
    if os.geteuid() != 0:
        return f"{NOT_TESTED}: a disk whose power can be cut needs root; run the tests marked root with sudo"
    missing = [name for name in ("mkfs.ext4", "mount", "umount") if shutil.which(name) is None]
    if missing:
        return f"{NOT_TESTED}: a disk whose power can be cut needs {', '.join(missing)}"
    folder = Path(tempfile.mkdtemp())
    try:
        with Disk(folder, size_mib=16) as disk:
            disk.cut()
    except OSError as error:
        return f"{NOT_TESTED}: a disk whose power can be cut cannot be made here: {error}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return None
