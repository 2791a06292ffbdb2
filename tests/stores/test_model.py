"""Random commands, batches and crashes against a simple model: the store must always be the fold of its log."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.errors import KeyReused, NotFound, RunstoneError, StaleAttempt, ThreadBusy
from runstone.messages import MessageFold
from runstone.store import Append, Command
from tests.stores import dump
from tests.stores.making import (
    AGENTS,
    append,
    broken,
    custom,
    executing,
    key,
    new_run,
    said,
    started,
    thought,
    usage,
)
from tests.stores.sqlite_database import SqliteDatabase
from tests.support.clocks import ManualClock

USERS = st.sampled_from(["alice", "bob"])
TEXTS = st.sampled_from(["", "a", "so far ", "🗿", "\0", "\ud83d", '"\\', "x" * 5_000])
OUTCOMES: st.SearchStrategy[c.Outcome] = st.sampled_from(
    [
        c.Completed(values.raw({"answer": 42})),
        c.Failed("Boom", "boom", retryable=True),
        c.Failed("Timeout", "too long", reason="timeout"),
        c.Cancelled(),
    ]
)


class Thread(msgspec.Struct):
    """What the model knows of a thread."""

    user: str
    id: str = ""
    deleted: bool = False
    runs: list[Run] = []


class Run(msgspec.Struct):
    """What the model knows of a run; `open` are the messages that its agent is writing."""

    thread: Thread
    run_id: str = ""
    status: str = "queued"
    attempt: int = 0
    cancelled: bool = False
    open: dict[str, MessageFold] = {}
    made: int = 0

    @property
    def ended(self) -> bool:
        return self.status not in {"queued", "running"}


class StoreModel(RuleBasedStateMachine):
    """Each rule puts one entry into the next batch and says what has to come of it; `commit` checks."""

    threads = Bundle("threads")
    runs = Bundle("runs")

    @initialize(mode=st.sampled_from(["wal", "delete"]))
    def open_store(self, mode: str) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.database = SqliteDatabase(Path(self.folder.name), mode)
        self.clock = ManualClock()
        self.runner = asyncio.Runner()
        self.all_runs: list[Run] = []
        self.keys: dict[tuple[str, str], tuple[str, Run]] = {}
        self.batch: list[Append | Command] = []
        self.expected: list[Any] = []
        self.names = 0
        self._open()

    def _open(self) -> None:
        self.store = self.database.store(self.clock)
        self.runner.run(self.store.open())

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                self._commit()
            finally:
                self.runner.run(self.store.close())
                self.runner.close()
                self.folder.cleanup()

    def _put(self, entry: Append | Command, expected: Any) -> None:
        self.batch.append(entry)
        self.expected.append(expected)

    def _name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}_{self.names}"

    # --- what people do -----------------------------------------------------------------------------------

    @rule(target=threads, user=USERS, title=TEXTS)
    def create_thread(self, user: str, title: str) -> Thread:
        parts = values.raw([{"type": "text", "text": "earlier " + title}, {"type": "reasoning", "text": "hm"}])
        imported = [c.ImportedMessage(role, parts, None) for role in ("user", "assistant")]
        self._put(c.create_thread(user, c.NewThread(title=title, messages=imported)), c.Made)
        made = self._commit()
        return Thread(user, made.id, runs=[])

    @rule(
        target=runs,
        thread=threads,
        user=USERS,
        on_busy=st.sampled_from(e.ON_BUSY),
        name=st.sampled_from([None, None, "k1", "k2"]),
        digest=st.sampled_from(["one", "two"]),
    )
    def start(self, thread: Thread, user: str, on_busy: e.OnBusy, name: str | None, digest: str) -> Any:
        self._commit()
        used = self.keys.get((user, name)) if name is not None else None
        unfinished = [run for run in thread.runs if not run.ended]
        if used is not None:
            expected: type = c.Made if used[0] == digest else KeyReused
        elif thread.deleted or thread.user != user:
            expected = NotFound
        elif on_busy == "reject" and unfinished:
            expected = ThreadBusy
        else:
            expected = c.Made
        new = new_run("in", message="hi 🗿", on_busy=on_busy, key=None if name is None else key(name, digest))
        self._put(c.start_run(user, new, thread_id=thread.id), expected)
        made = self._commit()
        if expected is not c.Made:
            return multiple()
        assert made.new == (used is None)
        if used is not None:
            assert made.id == used[1].run_id
            return multiple()
        if on_busy == "interrupt":
            assert list(made.interrupted) == [run.run_id for run in unfinished]
            for run in unfinished:
                self._cancel(run)
        run = Run(thread, made.id, open={})
        thread.runs.append(run)
        self.all_runs.append(run)
        if name is not None:
            self.keys[user, name] = digest, run
        return run

    @rule(run=runs, user=USERS)
    def cancel(self, run: Run, user: str) -> None:
        there = run.thread.user == user and not run.thread.deleted
        self._put(c.cancel_run(user, run.run_id, "why"), (not run.ended) if there else NotFound)
        if there:
            self._cancel(run)

    def _cancel(self, run: Run) -> None:
        if not run.ended:
            run.cancelled = True
            if run.status == "queued":
                run.status = "cancelled"

    @rule(thread=threads, user=USERS)
    def delete(self, thread: Thread, user: str) -> None:
        there = thread.user == user and not thread.deleted
        unfinished = [run for run in thread.runs if not run.ended]
        self._put(c.delete_thread(user, thread.id), [run.run_id for run in unfinished] if there else NotFound)
        if there:
            thread.deleted = True
            for run in unfinished:
                run.status, run.open = "cancelled", {}
            self.keys = {name: (digest, run) for name, (digest, run) in self.keys.items() if run.thread is not thread}

    @rule(thread=threads, title=TEXTS)
    def update(self, thread: Thread, title: str) -> None:
        command = c.update_thread(thread.user, thread.id, title=title, metadata=values.raw({"t": title}))
        self._put(command, NotFound if thread.deleted else None)

    # --- what the runtime does --------------------------------------------------------------------------------

    @rule(limit=st.integers(1, 3))
    def claim(self, limit: int) -> None:
        heads = []
        for run in self.all_runs:
            before = run.thread.runs[: run.thread.runs.index(run)]
            if run.status == "queued" and all(other.ended for other in before):
                heads.append(run)
        claimed = heads[:limit]
        for run in claimed:
            run.status, run.attempt = "running", run.attempt + 1
        self._put(c.claim_runs(AGENTS, limit, "worker"), [run.run_id for run in claimed])

    @rule(run=runs, text=TEXTS, what=st.integers(0, 7))
    def say(self, run: Run, text: str, what: int) -> None:
        """One thing after another that an agent may say; refused unless the run is under way."""
        datas: list[e.Data] = []
        content = None
        if what == 0 or not run.open:
            name = self._name("msg")
            datas = [started(name)]
            if run.status == "running":
                run.open[name] = MessageFold()
        elif what <= 3:
            name = sorted(run.open)[what % len(run.open)]
            fold = run.open[name]
            parts = fold.parts()
            kind = "reasoning" if what == 3 else "text"
            same = bool(parts) and parts[-1]["type"] == kind
            number = len(parts) - same
            offset = len(str(parts[-1]["text"])) if same else 0
            make = thought if what == 3 else said
            datas = [make(name, values.mend(text), offset=offset, part=number)]
            fold.feed(datas[0])
        elif what == 4:
            name = min(run.open)
            fold = run.open.pop(name)
            datas = [e.MessageCompleted(message_id=name, status="completed", length=fold.length)]
            content = fold.encoded()
        elif what == 5:
            name = self._name("act")
            datas = [executing(name, input=text)]
            if run.made % 2:
                error = values.raw({"type": "X"})
                datas.append(e.ToolCompleted(action_id=name, status="error", error=error, duration_ms=3))
        elif what == 6:
            datas = [usage(input_tokens=run.made, cost=0.5), e.ThreadUpdated(title=text, by="agent")]
        else:
            value = values.raw(None if run.made % 3 == 0 else text)
            datas = [e.StateChanged(key=f"k{run.made % 2}{text[:3]}", value=value), custom("c", text)]
        run.made += 1
        entry = append(run, *datas, content=content)  # type: ignore[arg-type] # a run has what `append` looks at
        self._put(entry, None if run.status == "running" else StaleAttempt)

    @rule(run=runs, stale=st.sampled_from([-1, 1]))
    def say_as_another_attempt(self, run: Run, stale: int) -> None:
        drafts = [e.Draft(data=custom("stale"), run_id=run.run_id, attempt=run.attempt + stale)]
        self._put(Append(run.run_id, run.attempt + stale, drafts), StaleAttempt)

    @rule(run=runs, outcome=OUTCOMES, over_its_head=st.booleans())
    def end(self, run: Run, outcome: c.Outcome, over_its_head: bool) -> None:
        refused = run.ended or (run.status == "queued" and not over_its_head and run.attempt != 0)
        if run.cancelled or isinstance(outcome, c.Cancelled):
            status = "cancelled"
        else:
            status = "failed" if isinstance(outcome, c.Failed) else "completed"
        if run.status == "queued" and status == "completed":
            return  # no runtime does that
        command = c.end_run(run.run_id, outcome, attempt=None if over_its_head else run.attempt)
        self._put(command, StaleAttempt if refused else f"agent_{status}")
        if not refused:
            run.status, run.open = status, {}

    @rule(refusal=st.booleans())
    def break_something(self, refusal: bool) -> None:
        fault = ThreadBusy("no") if refusal else ZeroDivisionError("a bug")
        self._put(broken(fault), ThreadBusy if refusal else RunstoneError)

    @precondition(lambda self: self.all_runs)
    @rule(data=st.data())
    def contradict_the_rows(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.all_runs))
        done = e.ToolCompleted(action_id="act_unknown", status="success", duration_ms=0)
        entry = append(run, custom("lost"), done)  # type: ignore[arg-type]
        refused = StaleAttempt if run.status != "running" else RunstoneError
        self._put(entry, refused)

    # --- time, commits and crashes ---------------------------------------------------------------------------------

    @rule(us=st.integers(-10_000_000, 10_000_000))
    def pass_time(self, us: int) -> None:
        self.clock.time_us += us

    @rule()
    def commit(self) -> None:
        self._commit()

    @rule()
    def crash(self) -> None:
        """What is not committed is gone; what was under way is ended by the next start."""
        self._commit()
        self.runner.run(self.store.close())
        self._open()
        orphans = [run for run in self.all_runs if run.status == "running"]
        while True:
            self._put(c.end_orphans(2), list)
            ended = self._commit()
            if not ended:
                break
            assert ended == [run.run_id for run in orphans[: len(ended)]]
            orphans = orphans[len(ended) :]
        assert not orphans
        for run in self.all_runs:
            if run.status == "running":
                run.status, run.open = "cancelled" if run.cancelled else "failed", {}

    def _commit(self) -> Any:
        """Commits the batch and checks every outcome; returns the last."""
        if not self.batch:
            return None
        batch, expected = self.batch, self.expected
        self.batch, self.expected = [], []
        outcomes = self.runner.run(self.store.commit(batch)).outcomes
        for outcome, wanted in zip(outcomes, expected, strict=True):
            if isinstance(wanted, type):
                assert type(outcome) is wanted, f"{outcome!r} is not {wanted}"
            elif isinstance(outcome, list) and outcome and not isinstance(outcome[0], str):
                assert [row.run_id for row in outcome] == wanted
            else:
                assert outcome == wanted
        return outcomes[-1]

    @invariant()
    def the_store_is_the_fold_of_its_log(self) -> None:
        if not hasattr(self, "store") or self.batch:
            return
        found = self.database.dump()
        dump.check(found)
        statuses = {key[0]: row["status"] for key, row in found.tables["runs"].items()}
        assert statuses == {run.run_id: run.status for run in self.all_runs}
        for run in self.all_runs:
            kept = found.tables["runs"][run.run_id,]
            assert (kept["cancel_deadline"] is not None) == run.cancelled or run.thread.deleted
        for row in found.tables["messages"].values():
            run_status = statuses.get(row["run_id"])
            assert row["status"] != "streaming" or run_status == "running"


class LongStoreModel(StoreModel):
    """The same, for longer."""


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLongStoreModel = pytest.mark.torture(LongStoreModel.TestCase)
TestLongStoreModel.settings = settings(
    max_examples=500, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
