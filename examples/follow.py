"""Starts a run on a server and follows it, however often the connection breaks.

Run it with `python examples/follow.py "why is the sky blue?"`, beside `runstone serve examples.quickstart:app`.
"""

from __future__ import annotations

import asyncio
import sys

from runstone.client import Client


async def main(question: str) -> None:
    async with Client() as client:  # RUNSTONE_URL, else http://127.0.0.1:8700
        run = await client.start("researcher", question)
        async for event in run.events():  # reconnects and resumes by itself; each event once
            if event.type in {"agent_thinking", "message_delta"}:
                print(event.data["delta"], end="", flush=True)
            elif event.type == "tool_executing":
                print(f"\n[{event.data['tool']} {event.data['input']}]")
            elif event.type == "attempt_superseded":  # its process died; `ThreadView` takes such text back by itself
                print("\n[what it said so far is superseded; the next attempt goes on]")
        ended = await run.result()
        print(f"\n{ended.status} at seq {ended.last_seq}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "why is the sky blue?"))
