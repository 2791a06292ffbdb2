"""Two agents: `runstone serve examples.quickstart:app`, then `runstone run researcher "why is the sky blue?"`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from runstone import Run, Runstone

app = Runstone()

SHELF = {
    "sky": "Air scatters blue light more than red, so the sky is blue wherever the sun is not.",
    "sea": "Water absorbs red light first; what comes back from the depth is blue.",
}


@app.tool
async def search(query: str) -> list[str]:
    """Inside a run every call is recorded: committed before it begins, and before its result is used."""
    words = query.lower().replace("?", " ").split()
    return [text for word, text in SHELF.items() if word in words]


async def model(question: str, hits: list[str]) -> AsyncIterator[str]:
    """Stands for a language model: words, one after another."""
    for word in (" ".join(hits) or f"Nothing on the shelf answers {question!r}.").split():
        await asyncio.sleep(0.05)
        yield word + " "


@app.agent
async def researcher(run: Run, question: str) -> str:
    """Answers from a small shelf of books."""
    await run.think("Where would this be written down?")
    hits = await search(query=question)
    async with run.message() as message:
        async for word in model(question, hits):
            await message.write(word)
    return message.text


@app.agent
async def shout(run: Run, text: str) -> AsyncIterator[str]:
    """The short form: yield what to say."""
    for word in text.split():
        yield word.upper() + " "
