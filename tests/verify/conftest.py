"""A healthy store, made once, and copies of it to damage."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import apsw
import pytest

from runstone import server
from runstone.verify import Checked, Finding, verify
from tests.verify.healthy import make


class Store:
    """A copy of a store that a test may damage and check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"
        self.checked: Checked | None = None

    def sql(self, statement: str, *bindings: object) -> list[Any]:
        """Runs what no Runstone would: without references, without a lock."""
        connection = apsw.Connection(str(self.path))
        try:
            connection.execute("PRAGMA foreign_keys = OFF")
            return connection.execute(statement, bindings).fetchall()
        finally:
            connection.close()

    def change(self, statement: str, *bindings: object) -> None:
        """A damage that must hit one row."""
        connection = apsw.Connection(str(self.path))
        try:
            connection.execute("PRAGMA foreign_keys = OFF")
            connection.execute(statement, bindings)
            assert connection.changes() == 1, f"{connection.changes()} rows were hit"
        finally:
            connection.close()

    def event(self, type: str, more: str = "") -> tuple[str, int, int, str | None]:
        """The thread_id, seq, pos and run_id of the first event of a type."""
        joined = "events JOIN threads USING (thread_no) LEFT JOIN runs USING (run_no)"
        sql = f"SELECT threads.thread_id, seq, pos, run_id FROM {joined} WHERE type = ? {more} ORDER BY pos"
        rows = self.sql(sql, type)
        assert rows, f"the healthy store has no {type} {more}"
        found: tuple[str, int, int, str | None] = rows[0]
        return found

    def findings(self) -> list[Finding]:
        found: list[Finding] = []
        with server.audit(self.url) as audit:
            self.checked = verify(audit, found.append, lambda _what, _done, _all: None, hold_s=None)
        assert self.checked.findings == len(found)
        return found

    def lines(self) -> list[str]:
        return [finding.line() for finding in self.findings()]


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("healthy") / "runs.db"
    make(path)
    return path


@pytest.fixture
def store(healthy: Path, tmp_path: Path) -> Store:
    """A copy of the healthy store."""
    return Store(Path(shutil.copy(healthy, tmp_path / "runs.db")))
