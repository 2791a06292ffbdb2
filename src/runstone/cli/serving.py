"""The commands that run a server: `serve` and `demo`."""

from __future__ import annotations

import importlib
import os
import sys
import threading
from typing import Annotated

import structlog
import typer

from runstone import failpoints, logs
from runstone.app import Runstone
from runstone.cli.session import EXIT_FAILED, fail, usage
from runstone.config import Config, load
from runstone.errors import BadConfig, RunstoneError
from runstone.server import serve as serve_system

Store = Annotated[
    str | None, typer.Option(help="Where runs are kept, as a URL; default sqlite:///.runstone/runstone.db.")
]
Host = Annotated[str | None, typer.Option(help="Address to listen on; default 127.0.0.1.")]
Port = Annotated[int | None, typer.Option(help="Port to listen on; default 8700, 0 takes any free one.")]
Slots = Annotated[int | None, typer.Option(help="Runs under way at once; default 1000.")]
Origins = Annotated[str | None, typer.Option(help="Exact origins, comma-separated, whose pages may send commands.")]
Hosts = Annotated[str | None, typer.Option(help="Host names, comma-separated, that requests may ask for.")]
Debug = Annotated[bool | None, typer.Option("--debug", help="Show the messages of all exceptions to clients.")]

LEAVE_S = 2.0  # for threads and tasks to end by themselves once everything is closed

logger = structlog.get_logger(__name__)

DEMO_HINTS = """
Try, in another terminal:

  {runstone} run report .          look through a folder, with reasoning, tools and a report.md
  {runstone} run shell 'ls -l'     run a command, with its output as it comes
  {runstone} run chat hello        talk to a model (set OPENAI_API_KEY, or OPENAI_BASE_URL, before the demo)

Press Ctrl-C there: the run goes on, and you are told how to come back.
Kill this server in the middle, start it again: the run goes on, and everything that anyone saw is still there.
"""


def serve(
    target: Annotated[str, typer.Argument(metavar="MODULE:APP", help="Where your Runstone() is, e.g. agents:app.")],
    store: Store = None,
    host: Host = None,
    port: Port = None,
    slots: Slots = None,
    origins: Origins = None,
    hosts: Hosts = None,
    debug: Debug = None,
) -> None:
    """Serve the agents of a module."""
    flags = {
        "store": store,
        "host": host,
        "port": port,
        "slots": slots,
        "origins": origins,
        "hosts": hosts,
        "debug": debug,
    }
    try:
        app = find(target)
        _serve(app, load(flags, app.settings), "")
    except RunstoneError as error:
        fail(error)


def demo(store: Store = None, port: Port = None) -> None:
    """Serve the built-in agents: nothing to configure, nothing to install beside it."""
    from runstone.agents import chat, report, shell

    app = Runstone(debug=True)
    for agent in (report, shell, chat):
        agent.register(app)
    try:
        _serve(app, load({"store": store, "port": port, "host": "127.0.0.1"}, app.settings), DEMO_HINTS)
    except RunstoneError as error:
        fail(error)


def find(target: str) -> Runstone:
    """The Runstone app that `module:name` says; raises BadConfig."""
    module_name, _, name = target.partition(":")
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 - sys.path holds strings
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name != module_name and not module_name.startswith(f"{error.name}."):
            raise
        raise BadConfig(
            f"There is no module {module_name!r}.",
            remedy="Start in its folder, as: runstone serve module:app.",
        ) from None
    app = getattr(module, name or "app", None)
    if not isinstance(app, Runstone):
        raise BadConfig(
            f"{module_name!r} has no Runstone app named {name or 'app'!r}.",
            remedy="Write app = Runstone() in it.",
        )
    return app


def _serve(app: Runstone, config: Config, hints: str) -> None:
    logs.configure(debug=config.debug)
    try:
        failpoints.arm_from(os.environ.get("RUNSTONE_FAILPOINTS", ""))
    except ValueError as error:
        usage(str(error))

    def ready(host: str, port: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        names = ", ".join(sorted(app.agents.names())) or "no agents yet"
        typer.echo(f"Runstone serves {names} at http://{shown}:{port} (store {config.store}); Ctrl-C stops it.")
        if hints:
            runstone = "runstone" if port == 8700 else f"RUNSTONE_URL=http://{shown}:{port} runstone"
            typer.echo(hints.format(runstone=_command(runstone)))
        sys.stdout.flush()

    code = EXIT_FAILED
    try:
        serve_system(config, app.agents, ready=ready)
        code = 0
    except OSError as error:
        raise BadConfig(
            f"{config.host}:{config.port} cannot be listened on: {error.strerror or error}.",
            remedy="Stop what listens there, or take another port with --port.",
        ) from None
    finally:
        _leave_within(LEAVE_S, code)


def _leave_within(seconds: float, code: int) -> None:
    """All is committed and closed: a tool that holds its thread, or an agent that does not stop, must not stay."""

    def leave() -> None:
        logger.warning("left while agents or their tools were still busy")
        os._exit(code)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()


def _command(runstone: str) -> str:
    """How a person calls this very program: by its path, if it is not on PATH."""
    program = sys.argv[0]
    return (
        runstone.replace("runstone", os.path.relpath(program), 1)
        if os.sep in program and runstone == "runstone"
        else runstone
    )
