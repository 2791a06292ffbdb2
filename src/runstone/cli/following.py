"""The commands that start a run, follow it, and stop it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from msgspec import UNSET

from runstone import values
from runstone.cli.session import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    AsJson,
    Token,
    Url,
    console,
    say,
    session,
    usage,
)
from runstone.client import Client, EventStream, RunHandle
from runstone.clock import SystemClock
from runstone.errors import BadJson
from runstone.events import OnBusy
from runstone.terminal import View, show


def run(
    agent: Annotated[str, typer.Argument(help="The agent's name.")],
    input: Annotated[
        str | None, typer.Argument(help="A text, @file for a file's text, or - for standard input.")
    ] = None,
    json_input: Annotated[bool, typer.Option("--json-input", help="INPUT is JSON, not text.")] = False,
    thread: Annotated[str | None, typer.Option("--thread", help="A thread to go on in; default a new one.")] = None,
    on_busy: Annotated[
        OnBusy | None,
        typer.Option("--on-busy", help="What to do in a thread with an unfinished run."),
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Start only; do not follow.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Start a run and follow it. Ctrl-C leaves; the run goes on.

    Exits with 0 when the run completed, 1 when it failed or was cancelled, 130 after Ctrl-C.
    """
    body = _input(input, json_input)
    following = Following(as_json, url)

    async def work(client: Client) -> int:
        handle = await client.start(agent, body, thread_id=thread, on_busy=on_busy)
        if detach:
            assert handle.latest is not None
            if as_json:
                typer.echo(handle.latest.model_dump_json())
            else:
                typer.echo(handle.run_id)
                following.say_how_to_return(handle.run_id)
            return EXIT_OK
        after = handle.latest.first_seq - 1 if handle.latest else 0
        return await following.follow_run(handle, after)

    try:
        session(url, token, work)
    except KeyboardInterrupt:
        following.leave()


def tail(
    id: Annotated[str, typer.Argument(metavar="THREAD_OR_RUN", help="A thread's or a run's id.")],
    after: Annotated[int, typer.Option("--after", min=0, help="Go on after this event; 0 is the beginning.")] = 0,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Follow a thread, or a run to its end, from any event on, without gap or repeat.

    A run's tail exits with 0 when the run completed, and 1 when it failed or was cancelled.
    """
    following = Following(as_json, url)

    async def work(client: Client) -> int:
        if id.startswith("run_"):
            return await following.follow_run(client.run(id), after)
        return await following.follow_thread(client, id, after)

    if not id.startswith(("run_", "thr_")):
        usage(f"{id!r} is no thread (thr_…) and no run (run_…); `runstone threads` and `runs` list them.")
    try:
        session(url, token, work)
    except KeyboardInterrupt:
        following.leave()


def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help="The run's id.")],
    reason: Annotated[str | None, typer.Option("--reason", help="Why; kept with the run.")] = None,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Stop a run, wherever it runs. Safe to repeat; what it said is kept."""

    async def work(client: Client) -> int:
        state = await client.run(run).cancel(reason)
        if as_json:
            typer.echo(state.model_dump_json())
        elif state.ended:
            typer.echo(f"{run} is {state.status}.")
        else:
            typer.echo(f"{run} was asked to stop.")
        return EXIT_OK

    session(url, token, work)


class Following:
    """What is being followed, and how far: so that whoever leaves can be told how to come back."""

    def __init__(self, as_json: bool, url: str | None) -> None:
        self._as_json = as_json
        self._where = f" --url {url}" if url else ""
        self._id: str | None = None
        self._view = View(self._where)

    async def follow_run(self, handle: RunHandle, after: int) -> int:
        async with handle.events(after=after) as events:
            await self._show(handle.run_id, events, after)
        ended = self._view.ended
        if ended is not None and ended.run_id == handle.run_id:
            return EXIT_OK if ended.type == "agent_completed" else EXIT_FAILED
        status = (await handle.refresh()).status  # its end is not after `after`
        if not self._as_json:
            say(f"{handle.run_id} is {status}; there is nothing after {after}.")
        return EXIT_OK if status == "completed" else EXIT_FAILED

    async def follow_thread(self, client: Client, thread_id: str, after: int) -> int:
        async with client.events(thread_id, after) as events:
            await self._show(thread_id, events, after)
        return EXIT_OK

    async def _show(self, id: str, events: EventStream, after: int) -> None:
        self._id, self._view.seq = id, after
        if not self._as_json:
            await show(events, self._view, console(), SystemClock(), lambda: events.connected, events.when_caught_up)
            return
        async for event in events:
            self._view.fold(event)
            sys.stdout.write(event.encode().decode() + "\n")
            sys.stdout.flush()

    def leave(self) -> NoReturn:
        """After Ctrl-C: nothing but the watching has ended."""
        if self._id is None:
            say("\nInterrupted. If the server had the request already, the run goes on: see `runstone runs`.")
        else:
            self.say_how_to_return(self._id)
        raise typer.Exit(EXIT_INTERRUPTED)

    def say_how_to_return(self, id: str) -> None:
        say("Left; what runs goes on.")
        say(f"  Come back:  runstone tail {id} --after {self._view.seq}{self._where}")
        if id.startswith("run_"):
            say(f"  Stop it:    runstone cancel {id}{self._where}")


def _input(value: str | None, as_json: bool) -> object:
    """The run's input; UNSET where none is given."""
    if value is None:
        return UNSET
    try:
        if value == "-":
            text = sys.stdin.buffer.read().decode()
        elif value.startswith("@"):
            text = Path(value[1:]).read_bytes().decode()
        else:
            text = value
        return values.parse(text) if as_json else text
    except OSError as error:
        usage(f"{value[1:]} cannot be read: {error.strerror}.")
    except UnicodeDecodeError:
        usage("INPUT is not UTF-8 text. Give the agent the file's name, or its text in another encoding.")
    except BadJson as error:
        usage(f"--json-input: {error.detail}")
