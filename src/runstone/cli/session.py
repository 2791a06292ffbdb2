"""What every command that asks a server has in common: where it is, how errors are told, how it exits."""

from __future__ import annotations

import asyncio
import io
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, NoReturn, TypeAlias

import typer
from rich.console import Console

from runstone.client import Client
from runstone.errors import Invalid, RunstoneError
from runstone.terminal import clean

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

Url: TypeAlias = Annotated[
    str | None,
    typer.Option("--url", help="Where the server is; default RUNSTONE_URL, else http://127.0.0.1:8700."),
]
Token: TypeAlias = Annotated[str | None, typer.Option("--token", help="A JWT or key; default RUNSTONE_TOKEN.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="One JSON object per line, for pipes.")]


def session(url: str | None, token: str | None, work: Callable[[Client], Awaitable[int]]) -> NoReturn:
    """Does the work with a client and exits with the code that it returns.

    A KeyboardInterrupt passes through. RUNSTONE_DEBUG shows where an error came from.
    """

    async def connected() -> int:
        async with Client(url, token=token) as client:
            await client.health()  # a server that is not there is said at once, not after 45 s of trying again
            return await work(client)

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows ? for what it lacks
    try:
        code = asyncio.run(connected())
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        code = EXIT_OK
    except RunstoneError as error:
        if os.environ.get("RUNSTONE_DEBUG"):
            raise
        fail(error)
    raise typer.Exit(code)


def fail(error: RunstoneError) -> NoReturn:
    """Says what is wrong and what to do about it."""
    say(f"Error: {error.detail}")
    if isinstance(error, Invalid):
        for place in error.errors:
            say(f"  {place.get('path', '')}: {place.get('detail', '')}")
    say(error.remedy)
    raise typer.Exit(error.exit_code)


def usage(message: str) -> NoReturn:
    say(f"Error: {message}")
    raise typer.Exit(EXIT_USAGE)


def say(line: str) -> None:
    """A line for the person, beside what the command prints."""
    typer.echo(clean(line), err=True)


def console() -> Console:
    """Standard output; text is printed as it is, without markup, emoji codes or guessed colours."""
    return Console(markup=False, emoji=False, highlight=False)
