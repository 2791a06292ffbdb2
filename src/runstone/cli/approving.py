"""The command that shows what people are asked, and answers it."""

from __future__ import annotations

from collections.abc import Awaitable
from datetime import datetime
from typing import Annotated

import typer
from msgspec import UNSET
from rich.text import Text

from runstone import values
from runstone.cli.lists import LIMIT_DEFAULT, id_text, print_json, print_table
from runstone.cli.session import EXIT_OK, AsJson, Token, Url, session, usage
from runstone.client import Client
from runstone.clock import SystemClock, to_datetime
from runstone.errors import BadJson
from runstone.resources import Approval
from runstone.terminal import clean, duration


def approve(
    approval: Annotated[
        str | None, typer.Argument(metavar="[APPROVAL]", help="Its id; without one what is open is listed.")
    ] = None,
    deny: Annotated[bool, typer.Option("--deny", help="Say no.")] = False,
    answer: Annotated[str | None, typer.Option("--answer", help="Answer a question with this text.")] = None,
    json_answer: Annotated[str | None, typer.Option("--json-answer", help="Answer a question with this JSON.")] = None,
    comment: Annotated[str | None, typer.Option("--comment", help="A word about it; kept with the answer.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many to list, oldest first.")] = LIMIT_DEFAULT,
    as_json: AsJson = False,
    url: Url = None,
    token: Token = None,
) -> None:
    """Approve what a run asks for, deny it, or answer its question; without an id, list what is open.

    The run goes on at once, wherever it runs. Safe to repeat; a decision that was taken stays.
    """
    if deny + (answer is not None) + (json_answer is not None) > 1:
        usage("--deny, --answer and --json-answer exclude each other.")
    if approval is None and (deny or comment is not None or answer is not None or json_answer is not None):
        usage("Say which one: `runstone approve` lists what is open.")
    value = UNSET if answer is None and json_answer is None else _value(answer, json_answer)

    async def work(client: Client) -> int:
        if approval is None:
            _show(await client.approvals(status="open", limit=limit), as_json)
            return EXIT_OK
        decided = await _decide(client, approval, value, deny=deny, comment=comment)
        typer.echo(decided.model_dump_json() if as_json else f"{approval} is {decided.status}.")
        return EXIT_OK

    session(url, token, work)


def _decide(client: Client, id: str, value: object, *, deny: bool, comment: str | None) -> Awaitable[Approval]:
    if value is not UNSET:
        return client.answer(id, value, comment)
    return client.deny(id, comment) if deny else client.approve(id, comment)


def _value(text: str | None, json_text: str | None) -> object:
    if json_text is None:
        return text
    try:
        return values.parse(json_text)
    except BadJson as error:
        usage(f"--json-answer: {error.detail}")


def _show(found: list[Approval], as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    now = to_datetime(SystemClock().now_us())
    rows = [[id_text(a.approval_id), id_text(a.run_id), _left(a.expires_at, now), _asks(a)] for a in found]
    print_table(["approval", "run", "expires in", "asks"], rows, "Nothing is open.")


def _left(until: datetime, now: datetime) -> Text:
    return Text(duration((until - now).total_seconds()), "dim", no_wrap=True)


def _asks(approval: Approval) -> Text:
    about = "" if approval.input is None else f" {values.encode(approval.input).decode()}"
    return Text(" ".join(clean(approval.prompt + about).split()), no_wrap=True, overflow="ellipsis")
