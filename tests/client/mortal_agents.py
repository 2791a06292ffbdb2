"""Agents whose process is killed while they speak, while a child of theirs speaks, and while they wait for a person."""

from __future__ import annotations

import asyncio

from runstone import Run, Runstone

app = Runstone()


@app.tool
async def look_up(query: str) -> list[str]:
    return [query, query.upper()]


@app.tool(private=True)
async def unlock(secret: str) -> str:
    return secret + "!"


@app.tool
async def slow_search() -> None:
    """Under way when the first attempt dies."""
    await asyncio.sleep(3600)


async def note(run: Run) -> str:
    await run.say("This is kept: it was said in a step.\n")
    return "noted"


@app.agent(max_attempts=10)
async def narrator(run: Run) -> str:
    await run.say(f"Attempt {run.attempt} begins.\n")
    await run.step("note", note, run)
    await look_up("sky")
    await unlock("sesame")
    await run.state.set("seen", run.attempt, public=True)
    async with run.message() as message:
        await message.think("Hm. ")
        for number in range(20):
            await message.write(f"{run.attempt}.{number} ")
        if run.attempt == 1:
            await slow_search()
        await message.write("and so on.\n")
    said = await run.call("helper", "help")
    allowed = await run.approve("Go on?")
    await run.say(f"Allowed: {bool(allowed)}.\n")
    return str(said)


@app.agent
async def helper(run: Run, text: str) -> str:
    async with run.message() as message:
        await message.write(f"Helper's attempt {run.attempt}.\n")
        if run.attempt == 1:
            await slow_search()
    return text
