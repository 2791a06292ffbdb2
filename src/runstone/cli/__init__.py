"""The command line: one command a function, one theme a module; errors say what to do next."""

from __future__ import annotations

import stamina.instrumentation
import typer

from runstone.cli import approving, database, following, lists, serving, verifying

app = typer.Typer(
    name="runstone",
    help="Agent runs, written in stone: start them, watch them, leave, and come back.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # what a person can do about an error is said by `session`
    rich_markup_mode=None,
)
app.command("demo")(serving.demo)
app.command("serve")(serving.serve)
app.command("run")(following.run)
app.command("tail")(following.tail)
app.command("cancel")(following.cancel)
app.command("approve")(approving.approve)
app.command("threads")(lists.threads)
app.command("runs")(lists.runs)
app.command("verify")(verifying.check)
app.add_typer(database.app, name="db")


def main() -> None:
    stamina.instrumentation.set_on_retry_hooks([])  # its log lines would go between ours, into people's pipes
    app()
