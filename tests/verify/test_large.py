"""A store may grow: the memory that a check needs does not, and its time grows no faster than the store."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from runstone import commands as c
from runstone import events as e
from runstone.clock import SystemClock
from runstone.errors import RunstoneError
from runstone.events import Draft
from runstone.ids import new_id
from runstone.messages import MessageFold
from runstone.store import Command, Decision, Entry, Need
from runstone.stores.migrations import migrate, plan
from runstone.stores.sqlite.connection import SqliteSchema, SqliteUrl, connect, prepare
from runstone.stores.sqlite.schema import MIGRATIONS
from runstone.stores.sqlite.writer import Writer
from runstone.values import raw
from runstone.views import ThreadRef

pytestmark = pytest.mark.slow

SMALL, LARGE = 30_000, 300_000  # events
TIME_EACH_MAX = 3  # it is below 1, as starting takes its time; what grows with the square would be 10
GROWTH_KIB_MAX = 16 * 1024  # 10 times the store may need so much more memory
RUNS_A_COMMIT = 100
DELTAS = 30  # a message; many small runs leave most behind, were anything kept of them


class Large:
    """Fills a store through the product's own writer, as fast as it goes."""

    def __init__(self, path: Path) -> None:
        url = SqliteUrl.parse(f"sqlite:///{path}")
        prepare(url.path)
        self.connection = connect(url, write=True)
        schema = SqliteSchema(self.connection)
        migrate(schema, plan(MIGRATIONS, schema.applied()))
        self.connection.execute("INSERT INTO meta VALUES ('generation', 'gen_large')")
        self.connection.execute("PRAGMA synchronous = OFF")
        self._writer = Writer(self.connection, SystemClock())

    def fill(self, events: int) -> None:
        """One thread of runs that stream, act and keep state."""
        made = self._commit(c.create_thread("local", c.NewThread()))
        thread = ThreadRef(made.id, "local")
        left = events - 1
        while left > 0:
            drafts = [draft for _ in range(RUNS_A_COMMIT) for draft in _run()]
            self._commit(_writing(Decision(appends=[(thread, drafts)])))
            left -= len(drafts)

    def _commit(self, entry: Entry) -> Any:
        (outcome,) = self._writer.commit([entry]).outcomes
        assert not isinstance(outcome, RunstoneError), outcome
        return outcome


def _writing(decision: Decision) -> Command:
    return Command(need=Need(), decide=lambda _facts: decision)


def _run() -> list[Draft]:
    """All events of one run."""
    run_id, message_id, action_id = new_id("run"), new_id("msg"), new_id("act")
    deltas = [
        e.MessageDelta(message_id=message_id, part=0, offset=number * 10, delta=f"{number:9} ")
        for number in range(DELTAS)
    ]
    content = MessageFold(deltas)
    queued = e.RunQueued(
        agent="a",
        input=raw("hi"),
        on_busy="enqueue",
        root_run_id=run_id,
        by="local",
        on_crash="fail",
        max_attempts=1,
        timeout_s=60,
    )
    said = [
        Draft(data=e.AgentStarted(agent="a", worker="wrk_1")),
        Draft(data=e.MessageStarted(message_id=message_id, role="assistant")),
        *[Draft(data=delta) for delta in deltas],
        Draft(
            data=e.MessageCompleted(message_id=message_id, status="completed", length=content.length),
            content=content.encoded(),
        ),
        Draft(data=e.ToolExecuting(action_id=action_id, tool="t", input=raw({"q": "x" * 200}), executor="server")),
        Draft(data=e.ToolCompleted(action_id=action_id, status="success", output=raw("y" * 500), duration_ms=3)),
        Draft(data=e.StateChanged(key="plan", value=raw({"of": run_id})), private=True),
        Draft(data=e.AgentCompleted(output=raw("done"), usage=raw({}))),
    ]
    for draft in said:
        draft.run_id, draft.attempt = run_id, 1
    return [Draft(data=queued, run_id=run_id), *said]


class Cost(NamedTuple):
    events: int
    peak_kib: int
    seconds: float


# Runs a command and prints its output, then the most memory that it had. A small process between: what it is
# forked from counts as memory of a child, too.
_MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE)
sys.stdout.buffer.write(done.stdout)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(done.returncode)
"""


def _check(path: Path) -> Cost:
    """One check in a process of its own."""
    started = time.monotonic()
    command = [sys.executable, "-m", "runstone", "verify", "--store", f"sqlite:///{path}", "--json"]
    done = subprocess.run([sys.executable, "-c", _MEASURED, *command], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    *_, line, peak = done.stdout.splitlines()
    checked = json.loads(line)["checked"]
    peak_kib = int(peak) // (1024 if sys.platform == "darwin" else 1)
    return Cost(checked["events"], peak_kib, time.monotonic() - started)


def test_ten_times_the_events_in_one_thread_need_no_more_memory_and_no_more_time_each(tmp_path: Path) -> None:
    costs = []
    for name, events in (("small.db", SMALL), ("large.db", LARGE)):
        store = Large(tmp_path / name)
        store.fill(events)
        store.connection.close()
        costs.append(_check(tmp_path / name))
    small, large = costs
    assert large.events >= 10 * SMALL
    assert large.peak_kib - small.peak_kib < GROWTH_KIB_MAX, costs
    assert large.seconds / large.events < TIME_EACH_MAX * small.seconds / small.events, costs
