"""Runstone inside a FastAPI app of one's own: `uvicorn examples.embedded:api --port 8700`."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import FastAPI

from runstone import Run, Runstone

app = Runstone(store="sqlite:///.runstone/embedded.db")
api = FastAPI(lifespan=app.lifespan)  # a mounted app's own lifespan is not run: this line starts Runstone
api.mount("/agents", app.asgi)  # streams, commands and resources under /agents/v1/…


@app.agent
async def greeter(run: Run, name: str) -> AsyncIterator[str]:
    """Greets."""
    yield "Hello, "
    yield f"{name}!"


@api.post("/welcome/{name}")
async def welcome(name: str) -> dict[str, object]:
    """A route of one's own that starts a run for a user and waits for its end, in the same process."""
    async with app.client(user_id=name) as client:
        run = await client.start("greeter", name)
        ended = await run.result(timeout_s=10)
        return {"run_id": run.run_id, "said": ended.output}
