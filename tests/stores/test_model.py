"""Random commands, batches and crashes against a simple model: the store must always be the fold of its log."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

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
from structlog.testing import capture_logs

from runstone import commands as c
from runstone import events as e
from runstone import server, values
from runstone.clock import to_rfc3339
from runstone.errors import KeyReused, NotFound, RunstoneError, StaleAttempt, StaleWorker, ThreadBusy
from runstone.messages import MessageFold
from runstone.store import Append, Command
from runstone.verify import Finding, verify
from tests.stores import dump
from tests.stores.making import (
    AGENT,
    AGENTS,
    asking,
    broken,
    completed,
    custom,
    executing,
    key,
    new_run,
    said,
    started,
    thought,
    usage,
)
from tests.stores.model import MAX_ATTEMPTS, Approval, Run, Thread
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
CHILD = c.NewChild(agent=AGENT, input=values.raw("below"), key=None, max_attempts=3, timeout_s=60)
WORK = st.lists(st.tuples(TEXTS, st.integers(0, 9)), min_size=3, max_size=10)
DEADLINE_US = round(c.CANCEL_DEADLINE_S * 1_000_000)
MANY = 1_000


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
        self.time_us = 0  # of the newest commit
        self.all_runs: list[Run] = []  # in the order they were queued
        self.beats: dict[str, int] = {}  # of the living workers
        self.workers: list[str] = []  # the dead ones too
        self.keys: dict[tuple[str, str], tuple[str, Run]] = {}
        self.batch: list[Append | Command] = []
        self.expected: list[Any] = []
        self.names = 0
        self._open()
        self._register()
        thread = self.create_thread("alice", "first")
        for _ in range(2):
            self.start(thread, "alice", "enqueue", None, "one")
            thread = self.create_thread("alice", "second")
        self._claim(self.workers[0], 2)

    def _open(self) -> None:
        self.store = self.database.store(self.clock)
        self.runner.run(self.store.open())

    def teardown(self) -> None:
        if hasattr(self, "store"):
            try:
                self._commit()
                self._verify()
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
        unfinished = thread.unfinished
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
        run = Run(thread=thread, run_id=made.id)
        thread.runs.append(run)
        self.all_runs.append(run)
        if name is not None:
            self.keys[user, name] = digest, run
        return run

    @rule(run=runs, user=USERS)
    def cancel(self, run: Run, user: str) -> None:
        there = run.thread.user == user and not run.thread.deleted
        self._now(c.cancel_run(user, run.run_id, "why"), (not run.ended) if there else NotFound)
        if there:
            self._cancel(run)

    def _cancel(self, run: Run) -> None:
        if run.ended or run.cancel_deadline is not None:
            return
        run.cancel_deadline = self.time_us + DEADLINE_US
        if run.root.owner not in self.beats:
            run.finish(c.Cancelled())

    @rule(thread=threads, user=USERS)
    def delete(self, thread: Thread, user: str) -> None:
        there = thread.user == user and not thread.deleted
        unfinished = thread.unfinished
        self._put(c.delete_thread(user, thread.id), [run.run_id for run in unfinished] if there else NotFound)
        if there:
            thread.deleted = True
            for run in unfinished:
                run.finish(c.Cancelled())
            self.keys = {name: (digest, run) for name, (digest, run) in self.keys.items() if run.thread is not thread}

    @rule(thread=threads, title=TEXTS)
    def update(self, thread: Thread, title: str) -> None:
        command = c.update_thread(thread.user, thread.id, title=title, metadata=values.raw({"t": title}))
        self._put(command, NotFound if thread.deleted else None)

    @precondition(lambda self: self._asked())
    @rule(data=st.data(), user=USERS, decision=st.sampled_from(["approved", "denied", "answered"]))
    def answer(self, data: st.DataObject, user: str, decision: Any) -> None:
        run, approval = data.draw(st.sampled_from(self._asked()))
        answer = c.Answer(decision=decision, value=values.raw(1) if decision == "answered" else None)
        self._commit()
        now = self._time()
        before = approval.status
        if run.thread.user != user or run.thread.deleted:
            expected: Any = NotFound
        elif before == "open" and approval.expires_at <= now:
            approval.status = "expired"
            expected = c.Answered("expired", False)
        else:
            approval.status = decision if before == "open" else before
            expected = c.Answered(approval.status, approval.status == decision)  # type: ignore[arg-type]
        self._now(c.resolve_approval(user, approval.approval_id, answer), expected)

    def _asked(self) -> list[tuple[Run, Approval]]:
        return [(run, approval) for run in self.all_runs for approval in run.approvals.values()]

    # --- workers ----------------------------------------------------------------------------------------------

    @rule(data=st.data(), what=st.sampled_from(["register", "beat", "bury", "mistake", "release", "claim"]))
    def worker(self, data: st.DataObject, what: str) -> None:
        """Rules are drawn alike: what each worker may do is one, so that its runs come to do something between."""
        worker = data.draw(st.sampled_from(list(self.beats) * 3 + self.workers))  # mostly one that lives
        if what == "register":
            self._register()
        elif what == "beat":
            self._put(c.beat(worker), None if worker in self.beats else StaleWorker)
            if worker in self.beats:
                self.beats[worker] += 1
        elif what == "release":
            self._release(worker)
        elif what == "claim":
            self._claim(worker, data.draw(st.integers(1, 3)))
        else:
            self._bury(worker, stood_still=what == "bury")

    def _register(self) -> None:
        if len(self.beats) < 3:
            worker = self._name("wrk")
            self.workers.append(worker)
            self.beats[worker] = 1
            self._put(c.beat(worker, first=True), None)

    def _bury(self, worker: str, *, stood_still: bool) -> None:
        seen = self.beats.get(worker, 0) - (not stood_still)
        dead = worker not in self.beats or stood_still
        self._put(c.bury(worker, seen), dead)
        if dead:
            self.beats.pop(worker, None)

    def _release(self, worker: str) -> None:
        owned = [run for run in self._roots() if run.attempt and not run.ended and run.owner == worker]
        self._put(c.release_runs(worker), [run.run_id for run in owned])
        self.beats.pop(worker, None)
        for run in owned:
            run.owner = None

    @rule(data=st.data(), how=st.sampled_from(["bury", "bury", "release", "crash"]))
    def hand_over(self, data: st.DataObject, how: str) -> None:
        """A worker goes, and another takes up its runs."""
        held = [run for run in self._roots() if run.holds]
        if held and how == "crash":
            self.crash()
        elif held:
            worker = data.draw(st.sampled_from(held)).owner
            assert worker is not None
            self._bury(worker, stood_still=True) if how == "bury" else self._release(worker)
        if not self.beats:
            self._register()
        self._claim(next(iter(self.beats)), 3)

    def _claim(self, worker: str, limit: int) -> None:
        if worker not in self.beats:
            self._put(c.claim_runs(AGENTS, limit, worker), StaleWorker)
            return
        found = self._claimable(limit)
        expected: list[tuple[str, int, str | None]] = []
        for run in found:
            reason = None if not run.attempt else "released" if run.owner is None else "lost"
            if run.cancel_deadline is not None:
                run.finish(c.Cancelled())
            elif run.attempt and run.lost + (reason == "lost") >= MAX_ATTEMPTS:
                run.finish(c.Failed("MaxAttempts", "no more"))
            else:
                run.begin(worker, reason)
                expected.append((run.run_id, run.attempt, reason))

        def check(result: tuple[list[c.Claimed], int]) -> None:
            started, number = result
            assert [(one.run.run_id, one.run.attempt, one.reason) for one in started] == expected
            assert number == len(found)

        self._put(c.claim_runs(AGENTS, limit, worker), check)

    def _claimable(self, limit: int) -> list[Run]:
        left = [
            run
            for run in self._roots()
            if not run.ended
            and run.attempt
            and (run.status == "running" or run.cancel_deadline is not None)
            and run.owner not in self.beats
        ][:limit]
        queued = [run for run in self._roots() if run.status == "queued" and run.thread.unfinished[0] is run]
        return left + queued[: limit - len(left)]

    def _roots(self) -> list[Run]:
        return [run for run in self.all_runs if run.parent is None]

    # --- what an attempt does ---------------------------------------------------------------------------------

    @rule(data=st.data(), several=WORK)
    def work_on(self, data: st.DataObject, several: list[tuple[str, int]]) -> None:
        """Half of what happens should be this."""
        self.work(data, several)

    @rule(data=st.data(), several=WORK)
    def work(self, data: st.DataObject, several: list[tuple[str, int]]) -> None:
        """One thing after another that an agent may say and do; refused unless its attempt owns the run."""
        run = self._run(data)
        for text, what in several:
            self._say(data, run, text, what)

    def _say(self, data: st.DataObject, run: Run, text: str, what: int) -> None:
        datas: list[e.Data] = []
        content = None
        if what in {0, 1, 2, 3, 4} and (what == 0 or not run.open):
            name = self._name("msg")
            datas = [started(name)]
            if run.holds:
                run.open[name], run.messages[name] = MessageFold(), "streaming"
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
            if run.holds:
                fold.feed(datas[0])
        elif what == 4:
            name = min(run.open)
            fold = run.open[name]
            datas = [e.MessageCompleted(message_id=name, status="completed", length=fold.length)]
            content = fold.encoded()
            if run.holds:
                del run.open[name]
                run.messages[name] = "completed"
        elif what == 5:
            datas = self._act(run, text)
        elif what == 6:
            datas = [usage(input_tokens=run.made, cost=0.5), e.ThreadUpdated(title=text, by="agent")]
        elif what == 7:
            datas, content = self._step(run, text), b"[]"
        elif what == 8 and text == "a":  # a run that waits is not taken up
            datas = self._ask(run, data.draw(st.sampled_from([3_000_000, 1_000_000_000])))
        else:
            value = values.raw(None if run.made % 3 == 0 else text)
            datas = [e.StateChanged(key=f"k{run.made % 2}{text[:3]}", value=value), custom("c", text)]
        run.made += 1
        self._put(self._append(run, *datas, content=content), None if run.holds else StaleAttempt)

    def _act(self, run: Run, text: str) -> list[e.Data]:
        name = self._name("act")
        interrupted = [action_id for action_id, status in run.actions.items() if status == "interrupted"]
        begun = executing(name, input=text)
        ends = run.made % 3 == 0
        if run.holds:
            run.actions[name] = "success" if ends else "pending"
            if interrupted:
                run.actions[interrupted[0]] = "interrupted, and made again"
        if interrupted:
            begun = e.ToolExecuting(
                action_id=name, tool="tool", input=values.raw(text), executor="server", retry_of=interrupted[0]
            )
        return [begun, completed(name)] if ends else [begun]

    def _step(self, run: Run, text: str) -> list[e.Data]:
        """A step that says something."""
        key, name = f"{text[:3]} {run.made}", self._name("msg")
        if run.holds:
            run.steps.add(values.mend(key))
            run.messages[name] = "completed"
            run.kept.add(name)
        whole = e.MessageCompleted(message_id=name, status="completed", length=0)
        return [started(name), whole, e.StepCompleted(key=key, output=values.raw(text), inner=(name,))]

    def _ask(self, run: Run, for_us: int) -> list[e.Data]:
        name = self._name("apr")
        expires_at = self.clock.time_us + for_us
        if run.holds:
            run.approvals[name] = Approval(name, expires_at)
        return [asking(name, to_rfc3339(expires_at))]

    def _run(self, data: st.DataObject) -> Run:
        """Mostly one that may write."""
        return data.draw(st.sampled_from([run for run in self.all_runs if run.holds] * 5 + self.all_runs))

    def _append(
        self, run: Run, *datas: e.Data, attempt: int = 0, epoch: int = 0, content: bytes | None = None
    ) -> Append:
        number = run.attempt + attempt
        drafts = [e.Draft(data=data, run_id=run.run_id, attempt=number, content=content) for data in datas]
        return Append(run.run_id, number, run.epoch + epoch, drafts)

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        """A new child, or one of an earlier attempt once more."""
        run = self._run(data)
        if len(run.children) > 2:
            run = run.root
        earlier = [child for child in run.children if not child.ended and child.epoch != run.root.attempt]
        child = earlier[0] if earlier else None
        command = c.call_agent(
            run,  # type: ignore[arg-type] # it has what is looked at
            run.epoch,
            CHILD,
            child=None if child is None else child.run_id,
            reason="lost",
        )
        outcome = self._now(command, StaleAttempt if not run.holds else lambda row: None)
        if not run.holds:
            return
        if child is None:
            child = Run(thread=run.thread, parent=run, run_id=outcome.run_id)
            run.children.append(child)
            self.all_runs.append(child)
            child.begin(None, None)
        else:
            child.begin(None, "lost")
        assert (outcome.run_id, outcome.attempt) == (child.run_id, child.attempt)

    @rule(data=st.data(), outcome=OUTCOMES, over_its_head=st.booleans())
    def end(self, data: st.DataObject, outcome: c.Outcome, over_its_head: bool) -> None:
        run = self._run(data)
        fence = c.Fence(run.attempt, run.epoch)
        holds = run.holds
        expected = run.finish(outcome) if holds else StaleAttempt
        self._put(c.end_run(run.run_id, outcome, fence, over_its_head=over_its_head), expected)

    @rule(data=st.data(), what=st.sampled_from(["stale", "stale", "contradiction", "refusal", "bug"]))
    def misbehave(self, data: st.DataObject, what: str) -> None:
        """What is refused, and hurts nobody else in its batch."""
        run = self._run(data)
        if what == "stale":
            attempt, epoch = data.draw(st.sampled_from([(-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1)]))
            self._put(self._append(run, custom("stale"), attempt=attempt, epoch=epoch), StaleAttempt)
        elif what == "contradiction":
            done = e.ToolCompleted(action_id="act_unknown", status="success", duration_ms=0)
            self._put(self._append(run, custom("lost"), done), RunstoneError if run.holds else StaleAttempt)
        elif what == "refusal":
            self._put(broken(ThreadBusy("no")), ThreadBusy)
        else:
            self._put(broken(ZeroDivisionError("a bug")), RunstoneError)

    # --- time, commits and crashes ---------------------------------------------------------------------------------

    @rule(us=st.integers(-10_000_000, 10_000_000), look=st.booleans())
    def pass_time(self, us: int, look: bool) -> None:
        self.clock.time_us += us
        if look:
            self._expire()
            self._stop_what_does_not_stop()

    def _expire(self) -> None:
        """What people did not decide in time."""
        self._commit()
        now = self._time()
        over = [approval for _, approval in self._asked() if approval.status == "open" and approval.expires_at <= now]
        for approval in over:
            approval.status = "expired"
        ids = {approval.approval_id for approval in over}
        self._now(c.expire_approvals(MANY), lambda found: _same(set(found), ids))

    def _stop_what_does_not_stop(self) -> None:
        """Cancels whose deadline is over."""
        self._commit()
        now = self._time()
        over = [run for run in self.all_runs if not run.ended and (run.cancel_deadline or now) < now]
        ids = {run.run_id for run in over}
        for run in over:
            if not run.ended:
                run.finish(c.Cancelled("parent" if run.parent in over else None))
        self._now(c.end_stopping(MANY), lambda found: _same(set(found), ids))

    @rule()
    def commit(self) -> None:
        self._commit()

    @rule()
    def crash(self) -> None:
        """What is not committed is gone; whatever was under way is nobody's."""
        self._commit()
        self.runner.run(self.store.close())
        self._verify()
        self._open()
        self.beats = {}

    def _time(self) -> int:
        """The time of a commit made now."""
        self.time_us = max(self.time_us, self.clock.time_us)
        return self.time_us

    def _now(self, entry: Append | Command, expected: Any) -> Any:
        """Commits what there is, then this."""
        self._commit()
        self._put(entry, expected)
        return self._commit()

    def _commit(self) -> Any:
        """Commits the batch and checks every outcome; returns the last."""
        if not self.batch:
            return None
        self._time()
        batch, expected = self.batch, self.expected
        self.batch, self.expected = [], []
        with capture_logs():  # to show what is broken on purpose takes longer than all else
            outcomes = self.runner.run(self.store.commit(batch)).outcomes
        for outcome, wanted in zip(outcomes, expected, strict=True):
            if isinstance(wanted, type):
                assert type(outcome) is wanted, f"{outcome!r} is not {wanted}"
            elif callable(wanted):
                assert not isinstance(outcome, RunstoneError), outcome
                wanted(outcome)
            else:
                assert outcome == wanted
        return outcomes[-1]

    @invariant()
    def the_store_is_the_fold_of_its_log(self) -> None:
        if not hasattr(self, "store") or self.batch:
            return
        found = self.database.dump()
        dump.check(found)
        tables = found.tables
        for run in self.all_runs:
            row = tables["runs"][run.run_id,]
            assert (row["status"], row["attempt"], row["lost"]) == (run.status, run.attempt, run.lost)
            assert (row["cancel_deadline"] is not None) == (run.cancel_deadline is not None)
        assert len(tables["runs"]) == len(self.all_runs)
        self._equal(tables, "messages", {id: status for run in self.all_runs for id, status in run.messages.items()})
        actions = {id: status.partition(",")[0] for run in self.all_runs for id, status in run.actions.items()}
        self._equal(tables, "actions", actions)
        self._equal(tables, "approvals", {approval.approval_id: approval.status for _, approval in self._asked()})
        assert set(tables["steps"]) == {(run.run_id, key) for run in self.all_runs for key in run.steps}

    def _equal(self, tables: dump.Tables, name: str, expected: dict[str, str]) -> None:
        """Of messages, those that agents have said."""
        rows = tables[name].items()
        statuses = {key[0]: row["status"] for key, row in rows if name != "messages" or _said_by_an_agent(row)}
        assert statuses == expected

    def _verify(self) -> None:
        """What people would run finds nothing."""
        found: list[Finding] = []
        with server.audit(self.database.url) as audit:
            verify(audit, found.append, lambda _what, _done, _all: None, hold_s=None)
        assert [finding.line() for finding in found] == []


def _said_by_an_agent(row: dict[str, Any]) -> bool:
    return row["run_id"] is not None and row["role"] == "assistant"


def _same(found: set[str], expected: set[str]) -> None:
    assert found == expected


class LongStoreModel(StoreModel):
    """The same, for longer."""


TestStoreModel = StoreModel.TestCase
TestStoreModel.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
LONG_S = 1_200  # three minutes on an idle machine; hypothesis takes an interrupt for a flaky test
TestLongStoreModel = pytest.mark.torture(pytest.mark.timeout(LONG_S)(LongStoreModel.TestCase))
TestLongStoreModel.settings = settings(
    max_examples=200, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck)
)
