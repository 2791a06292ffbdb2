"""Agents whose runs change a thread in every way a list can show: `runstone serve tests.support.lively:app`."""

from __future__ import annotations

import asyncio

from runstone import AgentError, Run, Runstone

app = Runstone()


@app.agent
async def echo(run: Run, text: str) -> str:
    return text


@app.agent
async def fails(run: Run) -> None:
    await run.say("so far")
    raise AgentError("no further")


@app.agent
async def sleeper(run: Run) -> None:
    await run.say("waiting")
    await asyncio.sleep(3600)


@app.agent
async def asker(run: Run) -> bool:
    return bool(await run.approve("May I?", input={"what": "go on"}))


@app.agent
async def caller(run: Run, text: str) -> object:
    """What it called waits for a person, and so does it."""
    said = await run.call("echo", text)
    await run.call("asker")
    return said


@app.agent
async def titles(run: Run, count: int) -> int:
    """Renames its thread again and again."""
    for number in range(count):
        await run.set_title(f"{number} of {count}")
    return count
