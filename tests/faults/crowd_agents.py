"""Agents of the crowd test: some wait for people, some hold a slot until their worker dies."""

from __future__ import annotations

import asyncio

from runstone import Run, Runstone

app = Runstone()


@app.agent
async def asks(run: Run) -> str:
    return "yes" if await run.approve("May I?") else "no"


@app.agent
async def holds(run: Run) -> int:
    if run.attempt == 1:
        await asyncio.sleep(3600)
    return run.attempt


@app.agent
async def quick(run: Run) -> str:
    return "done"
