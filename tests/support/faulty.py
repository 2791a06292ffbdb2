"""SQLite on a disk that fails when it is told to, in this process: for errors that no real disk gives on call."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw


class FaultyDisk(apsw.VFS):
    """All files of the process that SQLite opens from now on are here, until it is `removed`."""

    def __init__(self) -> None:
        super().__init__("faulty", "unix", makedefault=True)
        self.on_write: Callable[[apsw.VFSFile, bytes, int], None] = lambda file, data, offset: None
        self.on_sync: Callable[[], None] = lambda: None
        self.on_read: Callable[[], None] = lambda: None

    def mend(self) -> None:
        self.on_write, self.on_sync, self.on_read = lambda file, data, offset: None, lambda: None, lambda: None

    def fail_writes(self, error: Exception, *, torn: bool = False) -> None:
        """Every write fails; a torn one after its first half."""

        def fail(file: apsw.VFSFile, data: bytes, offset: int) -> None:
            if torn:
                apsw.VFSFile.xWrite(file, data[: len(data) // 2], offset)
            raise error

        self.on_write = fail

    def fail_syncs(self, error: Exception) -> None:
        self.on_sync = _raiser(error)

    def fail_reads(self, error: Exception) -> None:
        self.on_read = _raiser(error)

    def xOpen(self, name: Any, flags: Any) -> _File:  # noqa: N802 - SQLite's names
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: FaultyDisk, name: Any, flags: Any) -> None:
        super().__init__("unix", name, flags)
        self._disk = disk

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        self._disk.on_read()
        return super().xRead(amount, offset)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        self._disk.on_write(self, data, offset)
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._disk.on_sync()
        super().xSync(flags)


def _raiser(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@contextmanager
def faulty_disk() -> Iterator[FaultyDisk]:
    disk = FaultyDisk()
    try:
        yield disk
    finally:
        disk.mend()
        disk.unregister()
