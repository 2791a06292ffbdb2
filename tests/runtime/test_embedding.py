"""Runstone inside other people's programs: in a test, in an app of one's own, on the command line, as an import."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

import runstone
from runstone import Run, Runstone
from runstone.client import AsgiTransport
from runstone.errors import BadConfig, StoreLocked
from tests.runtime.support import running

pytestmark = pytest.mark.anyio


def make() -> Runstone:
    app = Runstone()

    @app.agent
    async def hello(run: Run, name: str = "you") -> str:
        return f"hello {name}"

    @app.agent
    async def waits(run: Run) -> None:
        await run.say("waiting")
        await asyncio.sleep(3600)

    return app


async def test_an_app_may_run_again_and_finds_what_it_left(tmp_path: Path) -> None:
    app = make()
    async with running(app, tmp_path) as place:
        first = await place.finished("hello")
    async with running(app, tmp_path) as place:
        assert (await place.client.run(first.run_id).result()).output == "hello you"
        assert (await place.finished("hello", "again", thread_id=first.thread_id)).output == "hello again"


async def test_an_app_runs_once_at_a_time(tmp_path: Path) -> None:
    app = make()
    async with running(app, tmp_path):
        with pytest.raises(BadConfig, match="running already"):
            async with app.running(store=f"sqlite:///{tmp_path}/other.db"):
                pass


async def test_one_store_is_held_by_one_app(tmp_path: Path) -> None:
    async with running(make(), tmp_path):
        with pytest.raises(StoreLocked):
            async with running(make(), tmp_path):
                pass
    async with running(make(), tmp_path) as place:
        assert (await place.finished("hello")).status == "completed"


async def test_two_apps_in_one_process_do_not_mix(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with running(make(), tmp_path / "a") as a, running(make(), tmp_path / "b") as b:
        run = await a.finished("hello", "a")
        assert [thread.thread_id for thread in await a.client.threads()] == [run.thread_id]
        assert await b.client.threads() == []
        assert b"runstone_events_appended_total 0.0" in await b.client._http.request("GET", "/metrics")


async def test_a_wrong_setting_is_refused_with_its_name_and_nothing_is_left_running(tmp_path: Path) -> None:
    app = make()
    for settings in ({"slots": 0}, {"no_such_setting": 1}, {"store": "mysql://x"}):
        with pytest.raises(BadConfig) as caught:
            async with app.running(**({"store": f"sqlite:///{tmp_path}/x.db"} | settings)):
                pass
        assert next(iter(settings)) in str(caught.value) or "mysql" in str(caught.value)
    async with running(app, tmp_path) as place:
        assert (await place.finished("hello")).status == "completed"


async def test_stopping_while_a_run_is_being_started_does_not_wait_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make()
    reading, go_on = asyncio.Event(), asyncio.Event()
    async with running(app, tmp_path) as place:
        rows = place.system.log.rows
        message = rows.message

        async def slow(user_id: str, message_id: str) -> object:
            reading.set()
            await go_on.wait()
            return await message(user_id, message_id)

        monkeypatch.setattr(rows, "message", slow)
        await place.start("waits", message="go")
        await reading.wait()
        asyncio.get_running_loop().call_later(0.1, go_on.set)
        stopping = asyncio.create_task(place.system.worker.stop())
        await asyncio.wait_for(stopping, 10)


async def test_a_mounted_app_answers_under_its_path_when_its_lifespan_runs(tmp_path: Path) -> None:
    app = make()
    app.settings["store"] = f"sqlite:///{tmp_path}/runs.db"
    api = FastAPI(lifespan=app.lifespan)
    api.mount("/agents", app.asgi)
    async with (
        api.router.lifespan_context(api),
        httpx2.AsyncClient(base_url="http://127.0.0.1", transport=AsgiTransport(api, user_id="local")) as http,
    ):
        run = (await http.post("/agents/v1/runs", json={"agent": "hello", "input": "mounted"})).json()
        ended = (await http.get(f"/agents/v1/runs/{run['run_id']}", params={"wait_s": 30})).json()
        assert (ended["status"], ended["output"]) == ("completed", "hello mounted")


async def test_an_app_that_is_mounted_and_not_started_says_the_line_to_write() -> None:
    api = FastAPI()
    api.mount("/agents", make().asgi)
    async with httpx2.AsyncClient(base_url="http://127.0.0.1", transport=AsgiTransport(api, user_id="local")) as http:
        answer = await http.get("/agents/v1/agents")
    assert answer.status_code == 503
    problem = answer.json()
    assert problem["code"] == "unavailable"
    assert "FastAPI(lifespan=app.lifespan)" in problem["remedy"]


async def test_clients_of_two_users_see_only_their_own(tmp_path: Path) -> None:
    app = make()
    async with running(app, tmp_path), app.client("alice") as alice, app.client("bob") as bob:
        run = await alice.start("hello", thread_key="chat")
        await bob.start("hello", thread_key="chat")
        assert (await run.result(timeout_s=10)).status == "completed"
        assert len(await alice.threads()) == len(await bob.threads()) == 1
        with pytest.raises(runstone.RunstoneError, match="no thread"):
            await bob.thread(run.thread_id)


def test_importing_runstone_is_light() -> None:
    heavy = ("fastapi", "uvicorn", "pydantic", "apsw", "starlette", "httpx2", "typer", "rich", "asyncio")
    code = f"import runstone, sys; print(*[name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []


def test_every_public_name_is_there() -> None:
    assert runstone.__all__ == sorted(runstone.__all__)
    for name in runstone.__all__:
        assert getattr(runstone, name).__name__ == name
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = runstone.nothing_like_it


def test_python_m_runstone_is_the_command() -> None:
    command = [sys.executable, "-m", "runstone", "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    for name in ("demo", "serve", "run", "tail", "db"):
        assert name in found.stdout
