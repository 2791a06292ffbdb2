"""A store that real runs have made, with one of everything that can stand in a log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

from runstone import AgentError, Run, Runstone
from runstone.client import Client

app = Runstone()
holding = asyncio.Event()  # an agent that will not end has said what it says


@app.tool
async def look_up(query: str) -> list[str]:
    return [query, "übel \ud83d\ude00 \x00"]


@app.tool(private=True)
async def secret(pin: int) -> int:
    return pin + 1


@app.tool
async def broken(value: str) -> str:
    raise ValueError(value)


@app.agent
async def busy(run: Run, question: str) -> str:
    """All that an agent can say and do."""
    await run.set_title("Über alles")
    await run.think("Let me ")
    await run.flush()
    await run.think("see.")
    await look_up(query=question)
    await secret(pin=1)
    try:
        await broken(value="no")
    except Exception:  # noqa: BLE001 - its record is what matters here
        await run.emit("went wrong", {"deep": [1, 2.5, None, True, "ü"]})
    async with run.message(metadata={"tone": "calm"}) as message:
        for word in ("one ", "zwölf ", "\U0001f600 ", "", "end"):
            await message.write(word)
            await run.flush()
        await message.think("hm")
        await message.part({"type": "source", "url": "https://example.org", "title": "S"})
        await message.write("after")
    await run.usage("m", input_tokens=3, output_tokens=4, cost=0.1, raw={"id": "x"})
    await run.usage("m", input_tokens=3, output_tokens=4, cost=0.2, reasoning_tokens=2)
    await run.state.set("plan", {"step": 1})
    await run.state.set("plan", {"step": 2}, public=True)
    await run.state.set("gone", 1)
    await run.state.set("gone", None)
    await run.state.set("kept", "private")
    return "done"


@app.agent
async def words(run: Run, text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word + " "


@app.agent
async def fails(run: Run, message: str) -> None:
    async with run.message() as said:
        await said.write("so far")
        raise AgentError(message)


@app.agent(timeout_s=0.2)
async def late(run: Run) -> None:
    await run.say("soon")
    await asyncio.sleep(60)


@app.agent
async def holds(run: Run) -> None:
    """Is in the middle of a message and of an action until it is stopped."""
    await run.say("I hold.")
    async with run.message() as message:
        await message.write("half a ")
        await run.flush()
        await message.write("sentence")
        async with run.action("wait", {"for": "ever"}):
            holding.set()
            await asyncio.sleep(3600)


def make(path: Path) -> None:
    """Runs everything, and leaves two runs unfinished: one in the middle, one in the queue."""
    asyncio.run(_make(path))


async def _make(path: Path) -> None:
    async with app.running(store=f"sqlite:///{path}") as alice, app.client(user_id="bob") as bob:
        await _everything(alice)
        await _cancelled(alice)
        await _others(bob)
        await _deleted(alice)
        await _unfinished(alice)


async def _everything(client: Client) -> None:
    history = [
        {"role": "user", "parts": [{"type": "text", "text": "earlier"}]},
        {"role": "assistant", "parts": [{"type": "reasoning", "text": "r"}, {"type": "text", "text": "t"}]},
    ]
    thread = await client.create_thread(title="T", metadata={"a": 1}, key="thread-1", messages=history)
    for agent, input in (("busy", "why?"), ("words", "a b c"), ("fails", "sorry"), ("late", {})):
        run = await client.start(agent, input, thread_id=thread.thread_id, metadata={"n": agent}, key=f"key-{agent}")
        await run.result(timeout_s=20)
    await client.update_thread(thread.thread_id, title=None, metadata={})


async def _cancelled(client: Client) -> None:
    holding.clear()
    first = await client.start("holds", {})
    await holding.wait()
    queued = await client.start("words", "never", thread_id=first.thread_id)
    await queued.cancel("not needed")
    last = await client.start("words", "in the end", thread_id=first.thread_id, on_busy="interrupt")
    await last.result(timeout_s=20)
    assert (await first.refresh()).status == "cancelled"


async def _others(client: Client) -> None:
    for number in range(3):
        await (await client.start("words", f"bob {number}", thread_key="one of bob's")).result(timeout_s=20)
    await client.create_thread()


async def _deleted(client: Client) -> None:
    run = await client.start("holds", {})
    holding.clear()
    await holding.wait()
    await client.delete_thread(run.thread_id)


async def _unfinished(client: Client) -> None:
    holding.clear()
    run = await client.start("holds", {})
    await holding.wait()
    await client.start("words", "later", thread_id=run.thread_id)
