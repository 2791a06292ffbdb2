"""Agents of the recovery tests, served in a process of their own."""

from __future__ import annotations

import asyncio
import time

from runstone import Run, Runstone

app = Runstone()


@app.tool
async def waits() -> None:
    await asyncio.sleep(3600)


@app.tool
def blocks_a_thread() -> None:
    time.sleep(3600)


@app.agent(on_crash="fail")
async def under_way(run: Run) -> None:
    """Leaves a message and an action open."""
    async with run.message() as message:
        await message.think("hm")
        await message.write("half a sen🗿")
        await waits()


@app.agent
async def resumes(run: Run) -> str:
    """Waits in its first attempt, and returns in its second."""
    await run.say(f"attempt {run.attempt}")
    if run.attempt == 1:
        await asyncio.sleep(3600)
    return f"attempt {run.attempt}"


@app.agent
async def in_thread(run: Run) -> None:
    await blocks_a_thread()


@app.agent
async def ignores(run: Run) -> None:
    await run.say("waiting")
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            await asyncio.sleep(0)


@app.agent
async def blocks_the_loop(run: Run, seconds: float) -> str:
    time.sleep(seconds)
    return "done"


@app.agent
async def quick(run: Run) -> str:
    return "done"
