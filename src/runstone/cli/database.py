"""`runstone db`: the schema of a store, and the way from one version to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

import typer

from runstone import server
from runstone.cli.session import EXIT_FAILED, fail
from runstone.config import load
from runstone.errors import RunstoneError
from runstone.stores.migrations import Step

Store = Annotated[
    str | None,
    typer.Option(help="The store's URL; default RUNSTONE_STORE, else sqlite:///.runstone/runstone.db."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")]
R = TypeVar("R")

app = typer.Typer(help="Look after a store's schema.", no_args_is_help=True)


@app.command()
def current(store: Store = None) -> None:
    """Say which migrations made the store."""
    for row in _told(lambda: server.migrations_applied(_url(store))):
        typer.echo(f"{row.version:4}  {row.name}")


@app.command()
def check(store: Store = None) -> None:
    """Exit 0 if the store has this version's schema, else 1."""
    todo = _told(lambda: server.migration_steps(_url(store), None))
    if todo:
        _show(todo, "to do")
        raise typer.Exit(EXIT_FAILED)
    typer.echo("The store has the newest schema.")


@app.command()
def upgrade(store: Store = None, dry_run: DryRun = False) -> None:
    """Bring the store to this version's schema; makes a new one where there is none."""
    _move(store, None, dry_run)


@app.command()
def downgrade(
    version: Annotated[int, typer.Argument(help="The version to go back to; 0 removes everything.")],
    store: Store = None,
    dry_run: DryRun = False,
) -> None:
    """Take the store back to an older schema. What only a newer one can hold is lost."""
    _move(store, version, dry_run)


def _move(store: str | None, target: int | None, dry_run: bool) -> None:
    if dry_run:
        _show(_told(lambda: server.migration_steps(_url(store), target)), "would do")
    else:
        _show(_told(lambda: server.migrate(_url(store), target)), "done")


def _show(steps: Sequence[Step], word: str) -> None:
    for step in steps:
        typer.echo(f"{word}: {step.direction} {step.migration.version} {step.migration.name}")
    if not steps:
        typer.echo("Nothing to do.")


def _url(store: str | None) -> str:
    return load({"store": store}, {}).store


def _told(work: Callable[[], R]) -> R:
    try:
        return work()
    except RunstoneError as error:
        fail(error)
