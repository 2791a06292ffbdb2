"""`runstone threads --follow` stays, and prints a line for what changes."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path

import pytest

from runstone.client import Client
from tests.support.server import ServerProcess

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


async def started(server: ServerProcess, *options: str) -> Process:
    command = [sys.executable, "-m", "runstone", "threads", "--follow", "--url", server.url, *options]
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, cwd=ROOT)


async def line(process: Process) -> str:
    assert process.stdout is not None
    while not (text := (await process.stdout.readline()).decode()).strip():
        assert text, "it ended"
    return text.strip()


async def left(process: Process) -> None:
    """Ctrl-C."""
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in said, said.decode()


async def test_it_prints_the_list_then_a_line_for_each_change(server: ServerProcess) -> None:
    server.start()
    async with Client(server.url) as client, asyncio.timeout(60):
        kept = await client.create_thread(title="kept")
        for as_json in (False, True):
            process = await started(server, *(["--json"] if as_json else []))
            while kept.thread_id not in (text := await line(process)):
                pass  # the table's head
            gone = await client.create_thread(title="to go")
            text = await line(process)
            assert gone.thread_id in text
            assert "to go" in text
            await client.delete_thread(gone.thread_id)
            text = await line(process)
            if as_json:
                assert json.loads(text) == {"thread_id": gone.thread_id, "deleted": True}
            else:
                assert text.split() == [gone.thread_id, "deleted"]
            await left(process)
