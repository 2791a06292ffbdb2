"""The built-in agents in a whole app: what their tools do is in the log, and what they say is for all to read."""

from __future__ import annotations

import pytest

from runstone import Runstone
from runstone.agents import report, shell
from runstone.agents.report.saving import MARKER
from tests.support.folders import put

pytestmark = pytest.mark.anyio


async def test_report_writes_the_file_that_its_message_holds_and_every_look_is_an_action(tmp_path):
    folder = tmp_path / "shop"
    put(folder, "sales.csv", "id,price\n" + "".join(f"{at},\n" for at in range(30)) + "30,TODO\n")
    put(folder, "shop.py", "def sell(): ...  # TODO: taxes\n")
    app = Runstone()
    report.register(app)
    async with app.running(store=f"sqlite:///{tmp_path}/runs.db") as client:
        run = await client.start("report", {"folder": str(folder)})
        ended = await run.result(timeout_s=30)
        actions = await client.actions(run.thread_id)
        messages = await client.messages(run.thread_id)
    assert (ended.status, ended.output) == (
        "completed",
        {"files": 2, "bytes": sum(each.stat().st_size for each in folder.glob("s*")), "findings": 1}
        | {"report": "report.md"},
    )
    assert [(action.tool, action.status) for action in actions] == [
        ("list_files", "success"),
        ("profile_file", "success"),
        ("profile_file", "success"),
        ("search_files", "success"),
        ("write_report", "success"),
    ]
    (said,) = [message.content for message in messages if message.role == "assistant"]
    assert "1 line with TODO" in said  # in prose and code; in data the word is a value
    assert "`shop.py:1`" in said
    written = (folder / "report.md").read_text(encoding="utf-8")
    assert said == written.removeprefix(MARKER + "\n\n") + "Written to `report.md`.\n\n"


async def test_report_on_what_is_no_folder_fails_with_what_to_give(tmp_path):
    app = Runstone()
    report.register(app)
    async with app.running(store=f"sqlite:///{tmp_path}/runs.db") as client:
        run = await client.start("report", {"folder": str(tmp_path / "missing")})
        ended = await run.result(timeout_s=30)
    assert ended.status == "failed"
    assert ended.error is not None
    assert "Give the path of a folder" in ended.error.message


async def test_a_commands_output_is_live_output_of_its_action_and_its_exit_code_is_the_runs_output(tmp_path):
    app = Runstone()
    shell.register(app)
    async with app.running(store=f"sqlite:///{tmp_path}/runs.db") as client:
        run = await client.start("shell", {"command": "echo one; echo two >&2; exit 3", "cwd": str(tmp_path)})
        ended = await run.result(timeout_s=30)
        (action,) = await client.actions(run.thread_id)
        page = await client.event_page(run.thread_id, types={"tool_output"})
    assert ended.status == "completed"
    assert isinstance(ended.output, dict)
    assert (ended.output["exit_code"], ended.output["output_bytes"]) == (3, 8)
    assert (action.tool, action.status) == ("execute", "success")
    assert "".join(str(event.data["delta"]) for event in page.events) == "one\ntwo\n"


async def test_a_command_at_its_time_limit_fails_its_run_with_what_happened(tmp_path):
    app = Runstone()
    shell.register(app)
    async with app.running(store=f"sqlite:///{tmp_path}/runs.db") as client:
        run = await client.start("shell", {"command": "sleep 60", "timeout_s": 0.2})
        ended = await run.result(timeout_s=30)
    assert ended.status == "failed"
    assert ended.error is not None
    assert ended.error.message.startswith("Killed at its time limit after")
