"""Agents that carry out plans and change a world outside: each effect is a line of a ledger.

What is left of them after a kill can be checked, because all that they say, do, ask and return follows from the plan
and from what the tools returned.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable
from itertools import count
from typing import Any
from uuid import uuid4

from runstone import Action, ActionInterrupted, AgentError, ApprovalDenied, Run, RunFailed, Runstone, ToolError
from tests.support import ledger

LEDGER = "CREW_LEDGER"  # the variable that names the ledger's file
DIES_AT = "CREW_DIES_AT"  # and the one that says at which of their results the agents kill their worker
ATTEMPTS = 1_000_000  # these runs are to end, however often they are killed
PAUSE_S = 0.002  # before and after an effect, for a kill to land in

Item = dict[str, Any]
Plan = list[Item]

app = Runstone()


def effect(name: str, item: str, action: Action) -> str:
    """What cannot be taken back."""
    run = Run.current()
    assert run is not None
    receipt = uuid4().hex
    entry = ledger.Entry(run.id, run.attempt, name, item, receipt, action.action_id, action.idempotency_key)
    ledger.note(os.environ[LEDGER], entry)
    return receipt


async def _effect(name: str, item: str, action: Action) -> str:
    await asyncio.sleep(PAUSE_S)
    receipt = effect(name, item, action)
    await asyncio.sleep(PAUSE_S)
    return receipt


@app.tool
async def pay(item: str, action: Action) -> str:
    """Must not be done twice."""
    return await _effect("pay", item, action)


@app.tool(idempotent=True)
async def put(item: str, action: Action) -> str:
    """May be done twice, with the same key."""
    return await _effect("put", item, action)


@app.tool
def saw(item: str, action: Action) -> str:
    """Must not be done twice, and is done in a thread."""
    time.sleep(PAUSE_S)
    receipt = effect("saw", item, action)
    time.sleep(PAUSE_S)
    return receipt


@app.tool(idempotent=True)
def sand(item: str, action: Action) -> str:
    """May be done twice, in a thread."""
    return effect("sand", item, action)


@app.tool
async def trip(item: str, action: Action) -> str:
    """Has its effect, and fails."""
    raise AgentError(await _effect("trip", item, action))


@app.tool(idempotent=True)
async def pack(item: str, action: Action) -> str:
    """Calls another tool, one that must not be called twice."""
    inner = await _tried(pay(f"{item} in a box"))  # type: ignore[call-arg] # the same as below
    await _effect("pack", item, action)
    return f"{inner}"


@app.tool(approval="always")
async def sign(item: str, action: Action) -> str:
    """Needs somebody's word, and must not be done twice."""
    return await _effect("sign", item, action)


TOOLS = {"pay": pay, "put": put, "saw": saw, "sand": sand, "trip": trip, "pack": pack, "sign": sign}
UNSAFE = frozenset({"pay", "saw", "trip", "sign"})


@app.agent(max_attempts=ATTEMPTS)
async def chief(run: Run, plan: Plan) -> list[Any]:
    """Does one thing after the other; what it returns says what came of each."""
    return [await _do(run, item) for item in plan]


@app.agent(max_attempts=ATTEMPTS)
async def hand(run: Run, plan: Plan) -> list[Any]:
    """The same, called by another."""
    return [await _do(run, item) for item in plan]


async def _do(run: Run, item: Item) -> Any:
    match item["do"]:
        case "say":
            return await _say(run, item["item"])
        case "side":
            return await asyncio.gather(*[_do(run, one) for one in item["plan"]])
        case "fail":
            raise AgentError(item["item"])
        case kind:
            result = await _asked_for(run, kind, item)
            _given(ledger.Entry(run.id, run.attempt, ledger.SEEN, kind, json.dumps(result)))
            return result


_results = count(1)


def _given(seen: ledger.Entry) -> None:
    """At once, before anything else has its turn: what an agent was given, it was given."""
    ledger.note(os.environ[LEDGER], seen)
    if next(_results) == int(os.environ.get(DIES_AT, "0")):
        os.kill(os.getpid(), signal.SIGKILL)


async def _asked_for(run: Run, kind: str, item: Item) -> Any:
    """What is recorded before the agent gets it."""
    match kind:
        case "step":
            return await run.step(item["item"], _step, run, item)
        case "call":
            return await _tried(run.call("hand", {"plan": item["plan"]}))
        case "approve":
            return (await run.approve(item["item"])).status
        case "ask":
            return await run.ask(item["item"], int)
        case tool:
            return await _tried(TOOLS[tool](item["item"]))  # type: ignore[call-arg] # `action` is given by Runstone


async def _say(run: Run, text: str) -> None:
    async with run.message() as message:
        await message.think(f"about {text}")
        for word in text.split():
            await message.write(f"{word} ")
            await asyncio.sleep(PAUSE_S / 4)


async def _step(run: Run, item: Item) -> list[Any]:
    ledger.note(os.environ[LEDGER], ledger.Entry(run.id, run.attempt, ledger.STEP, item["item"], uuid4().hex))
    return [await _do(run, one) for one in item["plan"]]


async def _tried(call: Awaitable[Any]) -> dict[str, Any]:
    """What came of a call, as JSON."""
    try:
        return {"ok": await call}
    except (ActionInterrupted, ApprovalDenied, RunFailed, ToolError) as error:
        return {"error": error.type if isinstance(error, ToolError) else type(error).__name__}
