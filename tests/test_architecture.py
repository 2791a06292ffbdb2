"""What import contracts cannot see: look-ups carry their owner, and the protocol's page says what the code does."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import msgspec
import pytest

from runstone import errors
from runstone.clock import SystemClock
from runstone.errors import NotFound, RunstoneError
from runstone.events import TYPES
from runstone.stores.sqlite import SqliteRows
from runstone.stores.sqlite.reader import Reader
from runstone.views import ListQuery, Rows, ThreadRef
from tests.stores.making import Shop, append, asking, executing, said, started
from tests.stores.sqlite_database import SqliteDatabase

ROOT = Path(__file__).parents[1]
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()

# Reads of the runtime itself: what they return reaches no user.
RUNTIME_READS = {"run_row", "to_stop", "statuses", "record", "resolved", "beats"}
NOT_READS = {"close"}
OWNERS = {"user_id", "user_ids", "thread", "threads"}


def public(kind: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in vars(kind).items()
        if inspect.isfunction(member) and not name.startswith("_")
    }


# --- every look-up has its owner in the query -----------------------------------------------------------------


def test_every_read_of_rows_names_its_user() -> None:
    for kind in (Rows, SqliteRows):
        for name, signature in public(kind).items():
            if name not in RUNTIME_READS:
                assert list(signature.parameters)[1] == "user_id", f"{kind.__name__}.{name}"


@pytest.mark.anyio
async def test_every_statement_of_a_read_for_a_user_binds_that_user(tmp_path: Path) -> None:
    database = SqliteDatabase(tmp_path)
    store = database.store(SystemClock())
    await store.open()
    shop = Shop(store)
    run = await shop.running(message="hello")
    await shop.commit(append(run, started("msg_1"), said("msg_1", "x"), executing("act_1"), asking("apr_1")))
    thread = run.thread
    sample: dict[str, Any] = {
        "user_id": "alice",
        "user_ids": ["alice"],
        "thread": thread,
        "threads": [thread],
        "thread_id": run.thread_id,
        "run_id": run.run_id,
        "message_id": "msg_1",
        "approval_id": "apr_1",
        "query": ListQuery(limit=10, descending=False, thread_id=run.thread_id, run_id=run.run_id, children=True),
        "after": 0,
        "deleted_after": 0,
        "before": 9,
        "limit": 10,
        "bytes_max": 1 << 20,
        "private": True,
    }
    connection = apsw.Connection(str(database.path))
    statements: list[tuple[str, Any]] = []

    def trace(_cursor: object, sql: str, bindings: object) -> bool:
        if not re.match(r"\s*(BEGIN|COMMIT|ROLLBACK|PRAGMA)", sql):
            statements.append((sql, bindings))
        return True

    connection.exec_trace = trace
    reader = Reader(connection)
    checked = set()
    for name, signature in public(Reader).items():
        parameters = list(signature.parameters)[1:]
        if name in RUNTIME_READS | NOT_READS:
            assert not OWNERS & set(parameters)
            continue
        assert OWNERS & set(parameters), f"Reader.{name} takes no owner"
        statements.clear()
        found = getattr(reader, name)(**{parameter: sample[parameter] for parameter in parameters})
        assert statements, f"Reader.{name} read nothing"
        assert found, f"Reader.{name} found nothing, so this shows nothing"
        for sql, bindings in statements:
            assert "alice" in (bindings or ()), f"Reader.{name}: {sql}"
            assert "user_id" in sql
        checked.add(name)
        foreign = dict(sample, user_id="bob", user_ids=["bob"], thread=ThreadRef(run.thread_id, "bob"))
        foreign["threads"] = [foreign["thread"]]
        try:
            answer = getattr(reader, name)(**{parameter: foreign[parameter] for parameter in parameters})
        except NotFound:
            continue
        assert "hello" not in repr(answer)
        assert run.run_id not in repr(answer)
    assert len(checked) >= 10
    reader.close()
    await store.close()


# --- PROTOCOL.md ------------------------------------------------------------------------------------------------


def section(number: int) -> str:
    return PROTOCOL.split(f"\n## {number}. ")[1].split("\n## ")[0]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of a page's table rows."""
    for line in text.splitlines():
        if line.startswith("|") and not re.match(r"\|[-| ]+\|$", line):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def documented_types() -> dict[str, tuple[list[str], str]]:
    """Per event type: the types that share its row, and what the row says of their data."""
    table = section(2).split("| type | data |")[1].split("\n\n")[0]
    found = {}
    for names, data in rows(table):
        types = re.findall(r"`(\w+)`", names)
        for name in types:
            found[name] = types, data
    return found


def test_every_event_type_has_a_row_in_the_protocol_and_every_row_a_type() -> None:
    assert set(documented_types()) == set(TYPES)


@pytest.mark.parametrize("name", TYPES)
def test_the_protocol_names_the_data_of_every_event_type(name: str) -> None:
    types, data = documented_types()[name]
    said_names = {word.rstrip("?") for word in re.findall(r"`(\w+\??)`", data)}
    optional = {word.rstrip("?") for word in re.findall(r"`(\w+\?)`", data)}
    fields = {field.encode_name: field.required for kind in types for field in msgspec.structs.fields(TYPES[kind])}
    assert said_names == set(fields)
    if len(types) == 1:
        either = {"message_id"} if name == "run_queued" else set()
        either |= {"output", "error"} if name == "tool_completed" else set()
        always_written = {"projection_version"} & set(fields)
        assert optional == {field for field, required in fields.items() if not required} - either - always_written


def wire_errors(root: type[RunstoneError] = RunstoneError) -> Iterator[type[RunstoneError]]:
    """Errors that a client may be answered with."""
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__ and kind.status != 500:
            yield kind
        yield from wire_errors(kind)


def test_every_code_in_the_protocol_exists_with_its_status_and_every_code_is_in_it() -> None:
    table = section(3).split("| code | status | |")[1].split("\n\n")[0]
    said_codes: dict[str, int] = {}
    for codes, statuses, *_ in rows(table):
        names, numbers = re.findall(r"`(\w+)`", codes), [int(number) for number in re.findall(r"\d+", statuses)]
        said_codes |= dict(zip(names, numbers * len(names) if len(numbers) == 1 else numbers, strict=False))
    assert said_codes == {kind.code: kind.status for kind in wire_errors()}
