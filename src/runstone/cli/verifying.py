"""`runstone verify`: the checks of a store, with a bar for people and lines for everything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from runstone import server, verify
from runstone.cli.session import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, AsJson, fail, say, usage
from runstone.clock import Clock, SystemClock
from runstone.config import load
from runstone.errors import NotFound, RunstoneError
from runstone.terminal import clean

FINDINGS_SHOWN = 100  # more are counted
HOLD_S = 5.0  # in WAL no commit waits, but the log beside the file grows
HOLD_DELAYING_S = 0.5  # a pause in people's streams
LINE_EVERY_S = 10.0  # between two signs of life where there is no terminal


def check(
    store: Annotated[
        str | None, typer.Option(help="The store's URL; default RUNSTONE_STORE, else sqlite:///.runstone/runstone.db.")
    ] = None,
    hold_s: Annotated[
        float | None,
        typer.Option(
            "--hold-s",
            min=0,
            help="Seconds that one check of SQLite's own may hold the file, else it is left out; default 5, and 0.5 "
            "in delete mode, where commits wait for it. 0: no bound, for a store that nobody serves.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every promise that a store can show. Reads only; a server may go on beside it.

    Exits with 0 when all is as promised, 1 when it is not, 2 when there is no such store.
    """
    clock = SystemClock()
    report = _Report(as_json)
    try:
        url = load({"store": store}, {}).store
        with server.audit(url) as audit, _progress(clock) as progress:
            started = clock.monotonic()
            if hold_s is None:
                hold_s = HOLD_DELAYING_S if audit.delays_commits else HOLD_S
            checked = verify.verify(audit, report.finding, progress, hold_s=hold_s or None)
        report.end(checked, clock.monotonic() - started)
    except NotFound as error:
        usage(f"{error.detail} {error.remedy}")
    except RunstoneError as error:
        fail(error)
    except KeyboardInterrupt:
        say("Interrupted; what was not checked yet may be as promised or not.")
        raise typer.Exit(EXIT_INTERRUPTED) from None
    raise typer.Exit(EXIT_FAILED if checked.findings else EXIT_OK)


class _Report:
    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = 0

    def finding(self, finding: verify.Finding) -> None:
        self._shown += 1
        if self._shown > FINDINGS_SHOWN:
            return
        if self._as_json:
            typer.echo(msgspec.json.encode({"finding": finding}).decode())
        else:
            typer.echo(clean(finding.line()).replace("\n", " "))

    def end(self, checked: verify.Checked, seconds: float) -> None:
        if self._as_json:
            typer.echo(msgspec.json.encode({"checked": checked, "seconds": round(seconds, 3)}).decode())
            return
        if self._shown > FINDINGS_SHOWN:
            typer.echo(f"… and {self._shown - FINDINGS_SHOWN:,} more findings")
        for what, how in _checks(checked):
            typer.echo(f"{what:10} {how}")
        for left_out in checked.left_out:
            typer.echo(f"left out   {left_out}; stop the server and give --hold-s 0")
        found = f"{checked.findings:,} findings" if checked.findings != 1 else "1 finding"
        typer.echo(f"{found if checked.findings else 'All is as promised'} ({seconds:.1f} s)")


def _checks(checked: verify.Checked) -> Iterator[tuple[str, str]]:
    """What was looked at, and for what."""
    runs = checked.runs_ended + checked.runs_unfinished
    yield (
        "store",
        f"schema {checked.schema}, generation {checked.generation}; {len(checked.structure)} checks of SQLite's own",
    )
    yield "order", f"{checked.events:,} events: pos without a gap, times that never fall"
    yield "threads", f"{checked.threads:,}: seq without a gap, every event its owner's, nothing after a thread's end"
    yield "payloads", f"{checked.events:,}: canonical JSON of their type"
    ended = f"{checked.runs_ended:,} ended, each once and with nothing after it"
    yield "runs", f"{ended}; {checked.runs_unfinished:,} unfinished"
    attempts = f"{checked.attempts:,}: numbered 1, 2, 3, each supersedes the words of the one before, by name"
    yield "attempts", f"{attempts}; nothing of an older one after it"
    children = f"{checked.children:,}: begin, go on and end within their callers"
    yield "children", f"{children}, in the same attempt of their root"
    yield "messages", f"{checked.messages:,}: pieces that follow each other, lengths that are right"
    yield "actions", f"{checked.actions:,}: end once, are made again only where interrupted, and once"
    yield "steps", f"{checked.steps:,}: once per run and key, around what their run has said and done"
    yield "approvals", f"{checked.approvals:,}: resolved once and while they are open, each for one call with its input"
    rows = [(checked.threads, "threads"), (runs, "runs"), (checked.messages, "messages")]
    rows += [(checked.actions, "actions"), (checked.approvals, "approvals"), (checked.steps, "steps")]
    rows += [(checked.state, "state keys")]
    yield "rows", f"equal to the fold of the log: {', '.join(f'{count:,} {name}' for count, name in rows)}"


@contextmanager
def _progress(clock: Clock) -> Iterator[verify.Progress]:
    err = Console(stderr=True, markup=False, highlight=False)
    if not err.is_terminal:
        yield _lines(clock)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, redirect_stdout=True) as bar:
        task = bar.add_task("", total=None)

        def draw(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total or None)

        yield draw


def _lines(clock: Clock) -> verify.Progress:
    last = clock.monotonic()

    def line(what: str, done: int, total: int) -> None:
        nonlocal last
        if clock.monotonic() - last >= LINE_EVERY_S:
            last = clock.monotonic()
            say(f"{what}: {done:,}" + (f" of {total:,}" if total else ""))

    return line
