"""The commands that list what is there."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, TypeAlias

import msgspec
import typer
from rich import box
from rich.table import Table
from rich.text import Text

from runstone.cli.session import EXIT_INTERRUPTED, EXIT_OK, AsJson, Token, Url, console, session
from runstone.client import Client, FeedItem
from runstone.resources import Resource, Thread
from runstone.terminal import clean

LIMIT_DEFAULT = 20  # about a screen
PIPE_WIDTH_CHARS = 200  # a pipe has no width: wide enough that no row is broken

Limit: TypeAlias = Annotated[int, typer.Option("--limit", min=1, help="How many, newest activity first.")]

_THREAD = ["thread", "status", "active", "about"]

STYLES = {"running": "cyan", "queued": "cyan", "waiting": "yellow", "failed": "red", "cancelled": "yellow"}


def threads(
    limit: Limit = LIMIT_DEFAULT,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Stay, and show what changes.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List threads; Ctrl-C ends following them."""

    async def work(client: Client) -> int:
        found = await client.threads(limit=limit)
        if as_json:
            print_json(found)
        else:
            print_table(_THREAD, [_row(t) for t in found], "No threads yet: `runstone run AGENT INPUT`.")
        if follow:
            async with client.feed(after=found.feed) as feed:
                async for change in feed:
                    _print_change(change, as_json)
        return EXIT_OK

    try:
        session(url, token, work)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def runs(
    status: Annotated[str | None, typer.Option("--status", help="Only these: queued, running, waiting, …")] = None,
    agent: Annotated[str | None, typer.Option("--agent", help="Only of this agent.")] = None,
    thread: Annotated[str | None, typer.Option("--thread", help="Only in this thread.")] = None,
    limit: Limit = LIMIT_DEFAULT,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """List runs."""

    async def work(client: Client) -> int:
        found = await client.runs(status=status, agent=agent, thread_id=thread, limit=limit)
        if as_json:
            print_json(found)
        else:
            rows = [
                [
                    id_text(r.run_id),
                    Text(clean(r.agent)),
                    _status(r.status),
                    _time(r.created_at),
                    id_text(r.thread_id),
                ]
                for r in found
            ]
            print_table(["run", "agent", "status", "started", "thread"], rows, "No runs: `runstone run AGENT INPUT`.")
        return EXIT_OK

    session(url, token, work)


def _print_change(change: FeedItem, as_json: bool) -> None:
    """A line, and as JSON the same object as in the feed."""
    if as_json and change.thread is not None:
        print_json([change.thread])
    elif as_json:
        typer.echo(msgspec.json.encode({"thread_id": change.thread_id, "deleted": True}))
    else:
        row = [id_text(change.thread_id), Text("deleted", "dim")] if change.thread is None else _row(change.thread)
        console().print(Text("  ").join(row), soft_wrap=True)


def _row(thread: Thread) -> list[Text]:
    return [id_text(thread.thread_id), _status(thread.status), _time(thread.updated_at), _title(thread)]


def print_json(found: Sequence[Resource]) -> None:
    for resource in found:
        typer.echo(resource.model_dump_json())


def print_table(columns: list[str], rows: list[list[Text]], nothing: str) -> None:
    out = console()
    if not rows:
        typer.echo(nothing, err=True)
        return
    table = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    if not out.is_terminal:
        out.width = PIPE_WIDTH_CHARS
    out.print(table)


def id_text(id: str) -> Text:
    return Text(id, no_wrap=True)  # to be copied whole


def _status(status: str) -> Text:
    return Text(status, STYLES.get(status, ""))


def _time(time: datetime) -> Text:
    return Text(f"{time.astimezone():%Y-%m-%d %H:%M:%S}", "dim", no_wrap=True)


def _title(thread: Thread) -> Text:
    said = thread.last_message.content if thread.last_message else ""
    return Text(" ".join(clean(thread.title or said).split()), no_wrap=True, overflow="ellipsis")
