"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from runstone import failpoints
from tests.support.disk import NOT_TESTED
from tests.support.server import ServerProcess


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store_url(tmp_path: Path) -> str:
    """A store of the test's own, that does not exist yet."""
    return f"sqlite:///{tmp_path}/runs.db"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    """A real server in a process of its own, with the agents of tests/support/agents.py; not started yet."""
    process = ServerProcess(tmp_path)
    yield process
    process.kill()


@pytest.fixture(scope="session", autouse=True)
def _plain_logs() -> None:
    """Stacks without the values of variables: those cost a second each."""
    plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    structlog.configure(processors=[structlog.processors.add_log_level, plain])


@pytest.fixture(autouse=True)
def _no_failpoints() -> Iterator[None]:
    yield
    failpoints.disarm_all()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What this machine cannot test is said where nobody overlooks it."""
    skipped = terminalreporter.stats.get("skipped", [])
    for reason in sorted({str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple)}):
        if NOT_TESTED in reason:
            terminalreporter.write_line(reason.removeprefix("Skipped: "), red=True, bold=True)
