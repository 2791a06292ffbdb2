"""What a kill leaves behind, for every instant of a run: the files of its store right after each commit."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runstone import failpoints


class Snapshots:
    """Copies of a store's files, in the order of its commits, and how much had been done outside by then."""

    def __init__(self, store: Path, effects: list[str]) -> None:
        self._store = store
        self._effects = effects
        self._lock = threading.Lock()
        self.taken: list[int] = []  # lengths of `effects`

    def __len__(self) -> int:
        return len(self.taken)

    def restore(self, number: int, store: Path) -> None:
        """Makes `store` what a process that was killed after that commit would leave; undoes what came later."""
        store.mkdir()
        for file in (self._store / f"after-{number}").iterdir():
            shutil.copy(file, store)
        del self._effects[self.taken[number] :]

    def take(self) -> None:
        folder = self._store / f"after-{len(self.taken)}"
        folder.mkdir()
        self.taken.append(len(self._effects))
        for name in ("runs.db", "runs.db-wal"):
            file = self._store / name
            if file.exists():
                shutil.copy(file, folder)


@contextmanager
def snapshots(store: Path, effects: list[str]) -> Iterator[Snapshots]:
    """Of the store in that folder, as long as the block lasts."""
    store.mkdir(exist_ok=True)
    found = Snapshots(store, effects)
    failpoints.arm("after_commit", found.take)
    try:
        yield found
    finally:
        failpoints.disarm_all()
