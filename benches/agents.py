"""What the measured server runs: agents that say much, fast, or nothing for long."""

from __future__ import annotations

import asyncio
import time

from runstone import Run, Runstone

app = Runstone()


async def _until(start_ns: int) -> None:
    """The same moment in every process of this machine; 0 is now."""
    await asyncio.sleep(max(0.0, (start_ns - time.monotonic_ns()) / 1e9))


@app.agent
async def paced(run: Run, count: int, rate: float, start_ns: int, phase_ns: int = 0) -> None:
    """Tokens at a rate; each is the time at which it was said."""
    async with run.message() as message:
        begin = start_ns + phase_ns
        for number in range(count):
            due = begin + int(number * 1e9 / rate)
            wait_ns = due - time.monotonic_ns()
            if wait_ns > 0:
                await asyncio.sleep(wait_ns / 1e9)
            await message.write(f"{time.monotonic_ns()} ")


@app.agent
async def flat_out(run: Run, count: int, start_ns: int, flush: bool = False) -> None:
    """Numbered tokens, as fast as they are taken."""
    async with run.message() as message:
        await _until(start_ns)
        for number in range(count):
            await message.write(f"{number} ")
            if flush:
                await run.flush()


@app.agent
async def rounds(run: Run, count: int, events: int, start_ns: int) -> None:
    """Rounds of so many events, each one commit, the next one when all viewers have been written to."""
    await _until(start_ns)
    for number in range(count):
        for index in range(events):
            await run.emit("tick", [number, index])
        await run.flush()
        for _ in range(4):  # a turn of the loop to wake the viewers, one to write to them, and two to spare
            await asyncio.sleep(0)


@app.agent
async def wordy(run: Run, events: int) -> None:
    """A log of about so many events, none of which can merge."""
    async with run.message() as message:
        for number in range(events - 6):  # the run's own: created, queued, started, opened, completed twice
            if number % 2:
                await message.think("perhaps ")
            else:
                await message.write("certainly ")


@app.agent
async def single(run: Run, count: int) -> list[int]:
    """Tokens that each wait for their own commit; returns how many nanoseconds each took."""
    took = []
    async with run.message() as message:
        for _ in range(count):
            begin = time.monotonic_ns()
            await message.write(f"{begin} ")
            await run.flush()
            took.append(time.monotonic_ns() - begin)
    return took


@app.agent
async def greet(run: Run) -> None:
    """Says one word, at once."""
    await run.say("hello ")


@app.agent
async def sleeper(run: Run) -> None:
    """Says that it is there, and stays."""
    async with run.message() as message:
        for number in range(10):
            await message.write(f"{number} ")
        await run.flush()
        await asyncio.sleep(86_400)
