"""The contract of stores, kept by every one we have."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stores.contract import StoreContract
from tests.stores.sqlite_database import SqliteDatabase


class TestSqliteWal(StoreContract):
    @pytest.fixture
    def database(self, tmp_path: Path) -> SqliteDatabase:
        return SqliteDatabase(tmp_path, "wal")


class TestSqliteDelete(StoreContract):
    @pytest.fixture
    def database(self, tmp_path: Path) -> SqliteDatabase:
        return SqliteDatabase(tmp_path, "delete")
