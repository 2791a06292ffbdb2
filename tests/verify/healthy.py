"""A store that real runs have made, with one of everything that can stand in a log.

Its runs have three lives: a process that is killed, one that stops and lets go of them, and one that ends most of them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

from runstone import ActionInterrupted, AgentError, ApprovalDenied, Run, RunFailed, Runstone
from runstone.client import Client, RunHandle
from runstone.runtime.action import Action

app = Runstone()
holding = asyncio.Event()  # an agent that will not end has said what it says
stuck: asyncio.Queue[str] = asyncio.Queue()  # who waits for the end of its process
TIMEOUT_S = 20


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


# --- runs of several attempts ---------------------------------------------------------------------------


async def stick(what: str) -> None:
    """In its first two lives nobody comes further than here."""
    run = Run.current()
    assert run is not None
    if run.attempt <= 2:
        await stuck.put(what)
        await asyncio.sleep(3600)


@app.tool(idempotent=True)
async def again(value: int, action: Action) -> str:
    await action.write(f"{value}…")
    await stick("tool")
    return action.idempotency_key


@app.tool
async def once(value: int) -> int:
    await stick("unsafe tool")
    return value


@app.tool(approval="always")
async def guarded(command: str) -> str:
    return f"{command}: done"


@app.agent
async def survivor(run: Run, topic: str) -> str:
    """Says, does, asks and calls the same in each of its three attempts."""
    await run.say(f"attempt {run.attempt}")
    await run.step("first", _first, run)
    await look_up(query=topic)
    await run.usage("m", input_tokens=1, output_tokens=1)
    await asyncio.gather(
        again(value=1),  # type: ignore[call-arg] # the action is given by the run
        _unsafe(run),
        _half(run),
        run.call("helper", "first"),
        run.call("waits", "Across attempts?"),
    )
    return "survived"


async def _first(run: Run) -> str:
    """A step with all that stands across attempts inside, another step too."""
    await run.say("once and for all")
    await look_up(query="inside")
    inner = await run.step("inner", _inner, run)
    return f"{inner}, {await run.call('words', 'from inside')}"


async def _inner(run: Run) -> str:
    async with run.message() as message:
        await message.write("kept")
    return "inner"


async def _unsafe(run: Run) -> None:
    try:
        await once(value=1)
    except ActionInterrupted:
        await run.emit("not made again")


async def _half(run: Run) -> None:
    async with run.message() as message:
        await message.write("half ")
        await run.flush()
        await stick("message")
        await message.write("whole")


@app.agent
async def helper(run: Run, name: str) -> str:
    """A child across the attempts of its root, with a child of its own."""
    await run.say(f"{name} in attempt {run.attempt}")
    await run.step("kept", _inner, run)
    if name == "first":
        await run.call("helper", "second")
    await stick(name)
    return name


@app.agent(max_attempts=1)
async def dies_once(run: Run) -> None:
    await run.say("not again")
    await stick("dies_once")


@app.agent(on_crash="fail")
async def dies(run: Run) -> None:
    async with run.message() as message:
        await message.write("half")
        await stick("dies")


tries: list[int] = []


@app.tool(idempotent=True, retries=1)
async def flaky(value: int) -> int:
    tries.append(value)
    if len(tries) == 1:
        raise ConnectionError("not yet")
    return value


@app.agent
async def retries(run: Run) -> int:
    return await flaky(value=3)


@app.agent
async def asks(run: Run) -> dict[str, object]:
    """One approval of each end, and tools that need one."""
    return {
        "approved": bool(await run.approve("Approve this.", {"n": 1})),
        "denied": bool(await run.approve("Deny this.", key="second")),
        "answered": await run.ask("How many?", int),
        "expired": bool(await run.approve("Wait.", expires_in_s=0.01)),
        "guarded": await guarded(command="approve"),
        "refused": await _refused(),
    }


async def _refused() -> str:
    try:
        return await guarded(command="deny")
    except ApprovalDenied as denied:
        return str(denied)


@app.agent
async def supervisor(run: Run) -> str:
    """Waits for a child that waits for an answer; another one has failed."""
    try:
        await run.call("fails", "below")
    except RunFailed:
        await run.emit("a child failed")
    return str(await run.call("waits", "What is it to be?"))


@app.agent
async def waits(run: Run, question: str) -> str:
    await run.say("Somebody has to say so.")
    return str(await run.ask(question))


def make(path: Path) -> None:
    """Runs everything; leaves unfinished runs in the middle of something, in the queue, and waiting for people."""
    asyncio.run(_make(path))


async def _make(path: Path) -> None:
    async with app.running(store=f"sqlite:///{path}") as alice, app.client(user_id="bob") as bob:
        await _everything(alice)
        await _cancelled(alice)
        await _others(bob)
        await _deleted(alice)
        await _asked(alice)
    killed = await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.verify.healthy", path)
    assert await killed.wait() == -signal.SIGKILL
    async with app.running(store=f"sqlite:///{path}"):
        await _all_stuck({"tool", "message", "second"})
    async with app.running(store=f"sqlite:///{path}") as client:
        await _survived(client)
        await _unfinished(client)


async def _killed(path: Path) -> None:
    async with app.running(store=f"sqlite:///{path}") as client:
        for agent, input in (("survivor", "stone"), ("dies_once", {}), ("dies", {})):
            await client.start(agent, input, thread_key=agent)
        await _all_stuck({"tool", "unsafe tool", "message", "second", "dies_once", "dies"})
        os.kill(os.getpid(), signal.SIGKILL)


async def _survived(client: Client) -> None:
    await _decide(client, "Across attempts?", "yes")
    (run,) = await client.runs(agent="survivor")
    ended = await client.run(run.run_id).result(timeout_s=TIMEOUT_S)
    assert (ended.status, ended.attempt) == ("completed", 3)
    for agent in ("dies_once", "dies"):
        (run,) = await client.runs(agent=agent)
        assert run.status == "failed"


async def _all_stuck(names: set[str]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while names:
            names.discard(await stuck.get())


async def _decide(client: Client, prompt: str, decision: object) -> None:
    """Waits until it is asked, then decides it."""
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            for approval in await client.approvals(status="open"):
                if approval.prompt == prompt:
                    if decision == "approve":
                        await client.approve(approval.approval_id, comment="fine")
                    elif decision == "deny":
                        await client.deny(approval.approval_id)
                    else:
                        await client.answer(approval.approval_id, decision)
                    return
            await asyncio.sleep(0.01)


async def _asked(client: Client) -> None:
    await (await client.start("retries", {})).result(timeout_s=TIMEOUT_S)
    run = await client.start("asks", {})
    for prompt, decision in (
        ("Approve this.", "approve"),
        ("Deny this.", "deny"),
        ("How many?", 7),
        ("Run guarded?", "approve"),
        ("Run guarded?", "deny"),
    ):
        await _decide(client, prompt, decision)
    assert (await run.result(timeout_s=TIMEOUT_S)).status == "completed"
    below = await client.start("supervisor", {})
    await _waiting(below)
    await below.cancel("enough")
    assert (await below.result(timeout_s=TIMEOUT_S)).status == "cancelled"


async def _waiting(run: RunHandle) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while (await run.refresh()).status != "waiting":
            await asyncio.sleep(0.01)


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
    await _waiting(await client.start("supervisor", {}))


if __name__ == "__main__":
    asyncio.run(_killed(Path(sys.argv[1])))
