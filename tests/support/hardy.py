"""Agents for tests that kill: what they say follows from their input, so that what is left of it can be checked."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import suppress
from itertools import count

from runstone import Run, Runstone

app = Runstone()


@app.tool(idempotent=True)
async def pause(number: int, seconds: float) -> str:
    await asyncio.sleep(seconds)
    return f"done {number}"


@app.tool(private=True, idempotent=True)
async def secret(number: int) -> int:
    return number * number


def word(tag: str, number: int) -> str:
    """The words that `worker` says: each with its number, some outside ASCII."""
    return f"{tag}{number}{'🪨é'[number % 3 : number % 3 + 1]} "


def said(tag: str, words: int) -> str:
    """All that `worker` says in one message."""
    return "".join(word(tag, number) for number in range(words))


@app.agent
async def worker(run: Run, tag: str, words: int = 200, messages: int = 2, pause_s: float = 0.0005) -> int:
    """Thinks, talks and uses tools, with a pause after each word; `words` a message."""
    for index in range(messages):
        await run.think(f"about {tag} {index}")
        async with run.message() as message:
            for number in range(words):
                await message.write(word(tag, number))
                await asyncio.sleep(pause_s)
                if number % 23 == 7:
                    await run.flush()
        await pause(index, pause_s * 20)
        await secret(index)
        await run.emit("progress", {"done": index})
    return words


@app.agent(on_crash="fail")
async def fragile(run: Run, tag: str, words: int, messages: int) -> int:
    """Does the same, and must not be begun again."""
    return await worker(run, tag, words, messages)


@app.agent
async def stubborn(run: Run, tag: str) -> None:
    """Talks for ever; a cancel is the only end."""
    async with run.message() as message:
        for number in count():
            await message.write(word(tag, number))
            await asyncio.sleep(0.002)


@app.agent(on_crash="fail")
async def blocker(run: Run, seconds: float) -> None:
    """Holds the event loop, as code does that was not written for one."""
    await run.say("before")
    time.sleep(seconds)


@app.agent
async def mule(run: Run) -> None:
    """Does not stop when it is told to."""
    await run.say("before")
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


@app.tool
def slow(seconds: float) -> None:
    time.sleep(seconds)


@app.agent
async def patient(run: Run, seconds: float) -> None:
    """Waits for a tool that runs in a thread, and cannot be stopped there."""
    await run.say("before")
    await slow(seconds)


@app.agent
async def asker(run: Run) -> str:
    """Waits for a person."""
    return (await run.approve("Go on?")).status


@app.agent
async def deadly(run: Run) -> None:
    """Takes its worker along, each time."""
    await run.say(f"attempt {run.attempt}")
    await run.flush()
    os.kill(os.getpid(), signal.SIGKILL)


@app.agent(max_attempts=1000)
async def steady(run: Run, steps: int) -> int:
    """Gets further in every attempt."""
    for number in range(steps):
        await run.step(f"step {number}", asyncio.sleep, 0.02)
    return steps
