"""Lists that people look at often are read off an index, however much there is beside what they show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import apsw
import pytest

from runstone.clock import SystemClock
from runstone.stores.sqlite.reader import Reader
from tests.stores.making import Shop, append, asking, query
from tests.stores.sqlite_database import SqliteDatabase

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("filters", [{}, {"status": "open"}, {"status": "approved"}])
@pytest.mark.parametrize("descending", [False, True])
async def test_approvals_are_read_in_order_and_without_a_look_at_others(
    tmp_path: Path, filters: dict[str, Any], descending: bool
) -> None:
    database = SqliteDatabase(tmp_path)
    store = database.store(SystemClock())
    await store.open()
    shop = Shop(store)
    await shop.commit(append(await shop.running(), asking("apr_1")))
    await store.close()

    connection = apsw.Connection(str(database.path))
    asked: list[tuple[str, Any]] = []

    def trace(_cursor: object, sql: str, bindings: object) -> bool:
        asked.append((sql, bindings))
        return True

    connection.exec_trace = trace
    Reader(connection).approvals("alice", query(descending=descending, **filters))
    connection.exec_trace = None
    ((sql, bindings),) = [(sql, bindings) for sql, bindings in asked if "FROM approvals" in sql]
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]
    connection.close()
    index, terms = ("_by_status", " AND status=?") if filters else ("", "")
    assert f"SEARCH approvals USING INDEX approvals_of_user{index} (user_id=?{terms})" in plan
    assert not [step for step in plan if "TEMP B-TREE" in step]
