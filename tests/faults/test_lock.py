"""One writer a file, and a file that is refused is refused with words: what is wrong, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import apsw
import pytest

from runstone import Runstone
from runstone.client import Client
from runstone.errors import StoreLocked
from runstone.stores.sqlite.schema import MIGRATIONS
from tests.support.agents import app
from tests.support.ordeal import check_store
from tests.support.server import ServerProcess
from tests.support.zygote import Done, Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

NEWEST = MIGRATIONS[-1].version


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote("runstone.cli", "runstone.server", "tests.support.agents")
    yield found
    found.close()


Command: TypeAlias = Callable[..., Done]


@pytest.fixture
def runstone(zygote: Zygote) -> Command:
    """The command, to its end; whatever it says, it says it without a traceback."""

    def run(*arguments: str) -> Done:
        done = zygote.run("runstone.cli:main", *arguments)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def serve(runstone: Command) -> Command:
    """A server that is expected not to start, on the store of that URL."""

    def run(url: str) -> Done:
        return runstone("serve", "tests.support.agents:app", "--port", "0", "--store", url)

    return run


def change(path: Path, *statements: str) -> None:
    connection = apsw.Connection(str(path))
    try:
        for statement in statements:
            connection.execute(statement)
    finally:
        connection.close()


# --- one writer a file -----------------------------------------------------------------------------------


async def test_a_second_server_is_refused_while_the_first_goes_on(server: ServerProcess, serve: Command) -> None:
    server.start()
    refused = serve(server.store_url)
    assert refused.returncode == 1
    assert "Error: Another process serves this store" in refused.stderr
    assert "Stop the other process, or give this one a store of its own with --store." in refused.stderr
    assert not refused.stdout
    async with Client(server.url) as client:
        run = await client.start("tokens", {"count": 3})
        assert (await run.result(timeout_s=10)).status == "completed"


async def test_another_name_of_the_same_file_does_not_get_around_the_lock(
    server: ServerProcess, tmp_path: Path, serve: Command
) -> None:
    server.start()
    (tmp_path / "other").symlink_to(tmp_path, target_is_directory=True)
    assert serve(f"sqlite:///{tmp_path}/other/runs.db").returncode == 1
    (tmp_path / "alias.db").symlink_to(server.database)
    refused = serve(f"sqlite:///{tmp_path}/alias.db")
    assert refused.returncode == 1
    assert "Another process serves this store" in refused.stderr


async def test_a_killed_server_leaves_no_lock(server: ServerProcess) -> None:
    server.start()
    server.kill()
    assert server.database.with_name("runs.db.lock").exists()
    server.start()
    async with Client(server.url) as client:
        assert await client.agents()


async def test_an_app_that_runs_takes_the_lock_and_gives_it_back(store_url: str, serve: Command) -> None:
    async with app.running(store=store_url):
        refused = serve(store_url)
        assert refused.returncode == 1
        assert "Another process serves this store" in refused.stderr
        with pytest.raises(StoreLocked):
            async with Runstone().running(store=store_url):
                pytest.fail("two apps write one file")
    async with Runstone().running(store=store_url):
        pass


async def test_who_only_reads_may_stand_beside_a_server(server: ServerProcess, runstone: Command) -> None:
    server.start()
    async with Client(server.url) as client:
        run = await client.start("tokens", {"count": 2_000, "delay_s": 0.001})
        check_store(server.store_url)
        assert runstone("db", "check", "--store", server.store_url).returncode == 0
        assert runstone("db", "current", "--store", server.store_url).returncode == 0
        assert (await run.result(timeout_s=30)).status == "completed"
    assert runstone("db", "upgrade", "--store", server.store_url).returncode == 1
    assert runstone("db", "downgrade", "0", "--store", server.store_url).returncode == 1
    assert runstone("db", "downgrade", "0", "--dry-run", "--store", server.store_url).returncode == 0


# --- schemas -----------------------------------------------------------------------------------------------


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(
    store_url: str, tmp_path: Path, serve: Command, runstone: Command
) -> None:
    path = tmp_path / "runs.db"
    assert runstone("db", "upgrade", "--store", store_url).returncode == 0
    change(path, f"INSERT INTO migrations (version, name, checksum) VALUES ({NEWEST + 1}, 'of the future', 'x')")
    before = path.read_bytes()
    for refused in (
        serve(store_url),
        runstone("db", "upgrade", "--store", store_url),
        runstone("db", "downgrade", "0", "--store", store_url),
        runstone("db", "check", "--store", store_url),
        runstone("verify", "--store", store_url),
    ):
        assert refused.returncode == 1
        assert f"The store has schema {NEWEST + 1} (of the future)" in refused.stderr
        assert "Install that version or a newer one." in refused.stderr
    assert path.read_bytes() == before


def test_a_migration_that_was_edited_since_is_refused(
    store_url: str, tmp_path: Path, serve: Command, runstone: Command
) -> None:
    assert runstone("db", "upgrade", "--store", store_url).returncode == 0
    change(tmp_path / "runs.db", "UPDATE migrations SET checksum = 'x' WHERE version = 1")
    refused = serve(store_url)
    assert refused.returncode == 1
    assert "is not the one that made this store" in refused.stderr
    assert "Install the version of Runstone that made the store." in refused.stderr


def test_the_schema_goes_up_and_down_and_a_dry_run_changes_nothing(
    store_url: str, tmp_path: Path, runstone: Command
) -> None:
    path = tmp_path / "runs.db"
    missing = runstone("db", "check", "--store", store_url)
    assert missing.returncode == 1
    assert "There is no store at" in missing.stderr
    assert not path.exists()

    up = runstone("db", "upgrade", "--store", store_url)
    assert up.returncode == 0
    assert f"done: up {NEWEST}" in up.stdout
    assert "Nothing to do." in runstone("db", "upgrade", "--store", store_url).stdout
    assert runstone("db", "check", "--store", store_url).stdout == "The store has the newest schema.\n"
    assert str(NEWEST) in runstone("db", "current", "--store", store_url).stdout

    before = path.read_bytes()
    dry = runstone("db", "downgrade", "0", "--dry-run", "--store", store_url)
    assert dry.returncode == 0
    assert f"would do: down {NEWEST}" in dry.stdout
    assert path.read_bytes() == before

    assert f"done: down {NEWEST}" in runstone("db", "downgrade", "0", "--store", store_url).stdout
    assert runstone("db", "current", "--store", store_url).stdout == ""
    assert runstone("db", "check", "--store", store_url).returncode == 1
    would = runstone("db", "upgrade", "--dry-run", "--store", store_url)
    assert f"would do: up {NEWEST}" in would.stdout
    assert runstone("db", "check", "--store", store_url).returncode == 1
    assert runstone("db", "upgrade", "--store", store_url).returncode == 0
    check_store(store_url)


def test_a_dry_run_where_there_is_no_store_makes_none(store_url: str, tmp_path: Path, runstone: Command) -> None:
    done = runstone("db", "upgrade", "--dry-run", "--store", store_url)
    assert "There is no store at" in done.stderr or "would do: up" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("first", ["wal", "delete"])
async def test_a_store_goes_from_one_journal_mode_to_the_other(tmp_path: Path, first: str) -> None:
    runs = []
    for mode in (first, {"wal": "delete", "delete": "wal"}[first], first):
        server = ServerProcess(tmp_path, journal_mode=mode)
        server.start()
        try:
            async with Client(server.url) as client:
                run = await client.start("thinker", {"question": "why?"})
                assert (await run.result(timeout_s=20)).output == "WHY?"
                runs.append(run.run_id)
                assert {found.run_id for found in await client.runs()} == {*runs}
            found = apsw.Connection(str(server.database), flags=apsw.SQLITE_OPEN_READONLY)
            try:
                assert found.execute("PRAGMA journal_mode").get == mode
            finally:
                found.close()
        finally:
            server.kill()
    check_store(f"sqlite:///{tmp_path}/runs.db")


# --- files that are none ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "code"),
    [("file/runs.db", 2), ("folder", 2), ("/dev/null/runs.db", 2), ("/proc/runstone/runs.db", 2), ("x" * 300, 2)],
)
def test_a_store_that_cannot_be_made_is_refused(tmp_path: Path, where: str, code: int, serve: Command) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    refused = serve(f"sqlite:///{tmp_path / where}")
    assert refused.returncode == code, refused.stderr
    assert "Error: " in refused.stderr
    assert "cannot be made" in refused.stderr
    assert "Give a folder you can write to." in refused.stderr


def test_a_lock_file_that_cannot_be_made_is_refused(tmp_path: Path, serve: Command) -> None:
    (tmp_path / "runs.db.lock").mkdir()
    refused = serve(f"sqlite:///{tmp_path}/runs.db")
    assert refused.returncode == 2, refused.stderr
    assert "Error: " in refused.stderr


@pytest.mark.parametrize("damage", ["text", "zeros", "cut", "header"])
def test_a_damaged_file_is_refused_with_words(
    store_url: str, tmp_path: Path, damage: str, serve: Command, runstone: Command
) -> None:
    path = tmp_path / "runs.db"
    assert runstone("db", "upgrade", "--store", store_url).returncode == 0
    whole = path.read_bytes()
    path.write_bytes(
        {
            "text": b"this is a letter to my aunt " * 1000,
            "zeros": bytes(len(whole)),
            "cut": whole[: len(whole) // 2 + 100],
            "header": b"SQLite format 3\0" + b"\xff" * (len(whole) - 16),
        }[damage]
    )
    damaged = path.read_bytes()
    refused = serve(store_url)
    assert refused.returncode == 1, refused.stderr
    assert "Error: " in refused.stderr
    verified = runstone("verify", "--store", store_url)
    assert verified.returncode in {1, 2}, verified.stderr
    assert path.read_bytes() == damaged
