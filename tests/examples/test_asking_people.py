"""What the page and the example say about asking people is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from typer.testing import CliRunner

from runstone import Runstone
from runstone.cli import app as commands
from runstone.client import Client
from tests.support.server import ServerProcess

ROOT = Path(__file__).parents[2]
REFUND = "order 1042 came broken"


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[ServerProcess]:
    server = ServerProcess(tmp_path, target="examples.approvals:app").start()
    yield server
    server.kill()


def cli(server: ServerProcess, *arguments: str, code: int = 0) -> str:
    """What a command says on both of its outputs."""
    done = CliRunner().invoke(commands, arguments, env={"RUNSTONE_URL": server.url})
    assert done.exit_code == code, done.output
    return done.output


def started(server: ServerProcess, complaint: str) -> str:
    run = re.search(r"run_[0-9a-f-]{36}", cli(server, "run", "refund", complaint, "--detach"))
    assert run is not None
    return run[0]


def listed(server: ServerProcess, run_id: str) -> str:
    """The id that the list of what is open shows for a run."""
    (line,) = [line for line in cli(server, "approve").splitlines() if run_id in line]
    return line.split()[0]


@pytest.mark.slow
def test_a_refund_is_walked_through_in_a_terminal_as_the_example_says(serving: ServerProcess) -> None:
    following = [sys.executable, "-m", "runstone", "run", "refund", REFUND]
    environment = os.environ | {"RUNSTONE_URL": serving.url}
    with subprocess.Popen(following, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout is not None
        _walk_through(serving, shown, shown.stdout)


def _walk_through(serving: ServerProcess, shown: subprocess.Popen[str], screen: IO[str]) -> None:
    lines = [screen.readline() for _ in range(4)]
    assert lines[0] == f"> {REFUND}\n"
    assert lines[2] == '? Run pay_back?  cents=3900, order="1042"\n'
    command = re.search(r"runstone approve (apr_\S+)  or --deny  \(until \S+ \S+ UTC\)", lines[3])
    assert command is not None, lines
    listing = cli(serving, "approve")
    assert command[1] in listing
    assert "23 h" in listing
    assert "Run pay_back?" in listing

    serving.kill()
    serving.start()

    assert cli(serving, "approve", command[1], "--comment", "a good customer") == f"{command[1]} is approved.\n"
    rest = screen.read()
    assert shown.wait(30) == 0
    assert "✓ Run pay_back?  approved by local (a good customer)" in rest
    assert "Done: refund of order 1042: 39.00." in rest
    assert "Nothing is open." in cli(serving, "approve")


@pytest.mark.slow
def test_a_question_is_answered_denied_and_refused_from_the_command_line(serving: ServerProcess) -> None:
    run_id = started(serving, "it never came")
    question = listed(serving, run_id)
    wrong = cli(serving, "approve", question, "--json-answer", "7", code=2)
    assert 'value: this is not of type "string"' in wrong
    assert "takes answer or deny" in cli(serving, "approve", question, code=2)
    assert "exclude each other" in cli(serving, "approve", question, "--deny", "--answer", "x", code=2)
    assert "lists what is open" in cli(serving, "approve", "--deny", code=2)
    assert cli(serving, "approve", question, "--answer", "1043") == f"{question} is answered.\n"
    assert cli(serving, "approve", question, "--answer", "1043") == f"{question} is answered.\n"
    assert "is answered" in cli(serving, "approve", question, "--answer", "1042", code=1)
    assert '"status":"denied"' in cli(serving, "approve", listed(serving, run_id), "--deny", "--json")
    ended = cli(serving, "tail", run_id)
    assert "✓ Which order is this about?  answered by local: 1043" in ended
    assert "■ Run pay_back?  denied by local" in ended
    assert "We are sorry" in ended
    assert "runstone approve" not in ended, "what is answered needs no command"


@pytest.mark.anyio
async def test_the_agent_of_the_page_asks_as_the_page_says(store_url: str) -> None:
    section = (ROOT / "docs" / "agents.md").read_text().split("## Asking people")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    page: dict[str, Any] = {"__name__": "page"}
    exec(compile(code, "docs/agents.md", "exec"), page)  # the page is ours
    app = page["app"]
    assert isinstance(app, Runstone)

    async def asked(client: Client, run_id: str) -> str:
        async for event in client.run(run_id).events(types=["approval_requested"]):
            (approval,) = await client.approvals(run_id=run_id, status="open")
            assert event.data["prompt"]
            return approval.approval_id
        raise AssertionError("nothing is asked")

    async with app.running(store=store_url) as client:
        run = await client.start("tidy", "/tmp/a")
        await client.approve(await asked(client, run.run_id))
        for decide in (lambda id: client.answer(id, 30), client.approve):
            while not (left := await client.approvals(run_id=run.run_id, status="open")):
                await run.refresh()
            await decide(left[0].approval_id)
        ended = await run.result(timeout_s=30)
    assert ended.output == "deleted /tmp/a/older-than-30-days"
