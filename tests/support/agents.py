"""Agents that tests run on a real server: `runstone serve tests.support.agents:app`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from runstone import AgentError, ApprovalDenied, Run, Runstone
from runstone.errors import Invalid

app = Runstone()


@app.tool
async def look_up(query: str) -> list[str]:
    return [query, query.upper()]


@app.agent
async def tokens(run: Run, count: int = 10, delay_s: float = 0.0, text: str = "tok", burst: int = 1) -> int:
    """Streams numbered tokens, so that a lost or doubled one shows; with a delay after each burst of them."""
    async with run.message() as message:
        for number in range(count):
            await message.write(f"{text}{number} ")
            if delay_s:
                if number % burst == 0:
                    await asyncio.sleep(delay_s)
            elif number % 10 == 0:
                await run.flush()
    return count


@app.agent
async def echo(run: Run, text: str) -> AsyncIterator[str]:
    for word in text.split(" "):
        yield word + " "


@app.agent
async def thinker(run: Run, question: str) -> str:
    await run.think("Let me see.")
    found = await look_up(query=question)
    return found[1]


@app.agent
async def fails(run: Run, message: str) -> None:
    await run.say("so far")
    raise AgentError(message)


@app.agent
async def asks(run: Run, prompt: str = "How many?") -> list[int]:
    """Waits for a person."""
    try:
        counts: list[int] = await run.ask(prompt, list[int])
    except (ApprovalDenied, Invalid):  # 1e20 is an integer to JSON Schema, and none to Python
        return []
    return counts


@app.agent
async def sleeper(run: Run, seconds: float = 3600) -> None:
    """Says that it is there, and waits."""
    await run.say("waiting")
    await asyncio.sleep(seconds)
