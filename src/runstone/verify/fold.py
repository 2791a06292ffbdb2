"""One thread's events, folded: where a promise is broken, and what each derived row must hold.

Pure: events in, findings and expected rows out. A row is expected as soon as nothing can change it any more, and
then forgotten: the fold is as small as what is unfinished in the thread, however long the thread is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from runstone import events as e
from runstone.audit import AuditedThread, EventRow
from runstone.projection import Change, Column, Place, Table, changes
from runstone.states import FAMILY_EVENTS
from runstone.verify import payloads
from runstone.verify.families import Families
from runstone.verify.findings import Check, Finding
from runstone.verify.payloads import NotOfItsType
from runstone.verify.rows import Expected, Rows
from runstone.verify.runs import UnfinishedRun
from runstone.verify.text import Streaming

_CANNOT_FOLD = (AssertionError, AttributeError, KeyError, TypeError, ValueError)  # what strange payloads make of a rule
_UNKNOWN = b""  # the content of a message of which a piece was wrong


class ThreadFold:
    """Feed it a thread's events in order, from the first on; take what it has found and expects after each page."""

    def __init__(self, thread: AuditedThread, run_id_of: Callable[[int], str | None]) -> None:
        self.thread = thread
        self._run_id_of = run_id_of
        self._pos = 0
        self._deleted = False
        self._runs: dict[int, UnfinishedRun] = {}
        self._newest_run_no = 0
        self._families = Families()
        self._superseding: tuple[UnfinishedRun, EventRow] | None = None  # its next attempt begins with the next event
        self._rowless: set[str] = set()  # runs without a row: said once, and nothing more of it
        self._streaming: dict[str, Streaming] = {}
        self._rows = Rows()
        self._found: list[Finding] = []
        self._expected: list[Expected] = []
        self.head = 0
        self.attempts = 0
        self.children = 0
        self.ended_runs = 0

    @property
    def unfinished_runs(self) -> int:
        return len(self._runs)

    @property
    def made(self) -> dict[Table, int]:
        """How many rows the events have made, by table."""
        return self._rows.made | {"state": len(self._rows.state_keys())}

    def state_keys(self) -> set[str]:
        return self._rows.state_keys()

    def take(self) -> tuple[list[Finding], list[Expected]]:
        """What was found, and the rows that became final, since the last call."""
        taken = self._found, self._expected
        self._found, self._expected = [], []
        return taken

    def rest(self) -> list[Expected]:
        """The rows that may still change, as they must be at the head; with it comes what is missing there."""
        self._begins(None)
        found: list[Expected] = []
        for (table, key), columns in self._rows.all():
            self._expect(found, table, key, columns, self.head)
        for run in self._runs.values():
            found += _ended_messages(run, self.head)
        return found

    def feed(self, rows: Sequence[EventRow]) -> None:
        for row in rows:
            seq, pos, _, _, kind, _, _, wrong, _ = row
            if self._superseding is not None:
                self._begins(row)
            if seq != self.head + 1:
                self._find("seq", row, f"expected seq {self.head + 1} here")
            if pos <= self._pos:
                self._find("seq", row, f"seq {self.head} stands at pos {self._pos}, expected {seq} to stand above it")
            if wrong is not None:
                self._find("owner" if wrong.startswith("its user_id") else "payload", row, wrong)
            self.head, self._pos = seq, pos
            try:
                if kind in payloads.DELTAS:
                    self._delta(row)
                else:
                    self._event(row)
            except NotOfItsType as error:
                self._find("payload", row, str(error))

    # --- deltas: nine of ten events, so they take the short way ---------------------------------------------

    def _delta(self, row: EventRow) -> None:
        _, _, run_no, attempt, kind, _, _, _, payload = row
        data, canonical = payloads.delta(kind, payload)
        if not canonical:
            self._check_canonical(row)
        message = self._streaming.get(data.message_id)
        if message is None or message.run_no != run_no:
            if run_no is None or self._run(run_no, row) is not None:
                self._open_message(data.message_id, row)
            return
        if run_no is not None and self._runs[run_no].writing != attempt:
            self._find("attempt", row, self._runs[run_no].stale(kind, attempt))
        problem = message.delta(data)
        if problem is not None:
            self._find("message", row, problem)

    def _check_canonical(self, row: EventRow) -> None:
        problem = payloads.canonical(row[8])
        if problem is not None:
            self._find("payload", row, problem)

    # --- all other events -----------------------------------------------------------------------------------

    def _event(self, row: EventRow) -> None:
        seq, _, run_no, attempt, kind, time_us, private, _, payload = row
        draft = payloads.draft(kind, payload)
        self._check_canonical(row)
        if self._deleted:
            self._find("thread", row, f"{kind} after thread_deleted, expected nothing")
        draft.attempt, draft.private = attempt, bool(private)
        run = None
        if run_no is not None:
            run = self._run(run_no, row)
            if run is None or self._of_run(draft, run, row):
                return  # the run had ended, or what this is about is not there: nothing follows from it
        if not self._piece(draft, row):
            return
        try:
            found = changes(draft, Place(self.thread.thread_id, self.thread.user_id, row[1], seq, time_us))
        except _CANNOT_FOLD as error:
            raise NotOfItsType(f"{kind} cannot be folded: {type(error).__name__}: {error}") from None
        for change in found:
            self._apply(change, row)
        self._follow(draft, run, row)
        if run is not None and kind in FAMILY_EVENTS:
            for run_id, status in self._families.standing(run.root_run_id).items():
                self._apply(Change("update", "runs", (run_id,), {"status": status}), row)

    def _of_run(self, draft: e.Draft, run: UnfinishedRun, row: EventRow) -> bool:
        """Whether the event is void."""
        draft.run_id = run.run_id
        problems = list(run.event(draft.data, draft.attempt))
        if draft.type in FAMILY_EVENTS:
            problems += self._families.event(draft.data, run)
        for problem in problems:
            self._find(problem.check, row, problem.detail)
        return any(problem.void for problem in problems)

    def _begins(self, row: EventRow | None) -> None:
        """An attempt is superseded only by the next one: it must begin with this event."""
        if self._superseding is None:
            return
        (run, superseded), self._superseding = self._superseding, None
        if row is None or row[4] != "agent_started" or row[2] != run.run_no:
            found = "nothing" if row is None else row[4]
            detail = f"attempt_superseded is followed by {found}, expected agent_started of the same run right after"
            self._find("attempt", superseded, detail)

    def _run(self, run_no: int, row: EventRow) -> UnfinishedRun | None:
        """The event's run; None, with a finding, if it has ended."""
        run = self._runs.get(run_no)
        if run is None and run_no > self._newest_run_no:  # runs of a thread are numbered as they are queued
            self._newest_run_no = run_no
            run = self._runs[run_no] = UnfinishedRun(run_no, self._run_id_of(run_no))
            if not run.has_row:
                self._rowless.add(run.run_id)
                self._find("rows", row, f"its run_no is {run_no}, expected a row of runs with that number")
        elif run is None:
            self._find("run", row, f"{row[4]} after the end of its run, expected nothing more of it")
        return run

    def _piece(self, draft: e.Draft, row: EventRow) -> bool:
        """Whether the message that the event is a piece of is open, if it is one; one that ends gets its content."""
        data = draft.data
        if not isinstance(data, e.MessagePart | e.MessageCompleted):
            return True
        message = self._open_message(data.message_id, row)
        if message is None:
            return False
        if isinstance(data, e.MessagePart):
            problem = message.whole(data)
            if problem is not None:
                self._find("message", row, problem)
            return True
        del self._streaming[data.message_id]
        draft.content, length = message.content() or (_UNKNOWN, data.length)
        if length != data.length:
            said = f"the length of {data.message_id} is said to be {data.length}"
            self._find("message", row, f"{said}, expected {length}")
        return True

    def _open_message(self, message_id: str, row: EventRow) -> Streaming | None:
        """The message, if it is open in the event's run; else a finding."""
        message = self._streaming.get(message_id)
        if message is not None and message.run_no == row[2]:
            return message
        self._find("message", row, f"{row[4]} of {message_id}, expected that message to be open here")
        return None

    def _apply(self, change: Change, row: EventRow) -> None:
        if change.table == "messages" and change.op == "update" and ("messages", change.key) not in self._rows:
            return  # superseded after its end, which its run remembers
        problem = self._rows.apply(change)
        if problem is not None:
            self._find("rows", row, problem)

    def _follow(self, draft: e.Draft, run: UnfinishedRun | None, row: EventRow) -> None:
        """What begins and ends with the event; rows that became final are expected."""
        match data := draft.data:
            case e.ThreadDeleted():
                self._deleted = True
                for left in self._runs.values():
                    self._find(
                        "thread", row, f"thread_deleted while {left.run_id} is unfinished, expected its end before"
                    )
            case e.RunQueued() if run is not None and run.parent_run_id is not None:
                self.children += 1
            case e.AgentStarted():
                self.attempts += 1
            case e.UserMessage():
                self._final("messages", (data.message_id,), run, row)
            case e.MessageStarted():
                self._streaming[data.message_id] = Streaming(data.message_id, row[2])
            case e.MessageCompleted():
                left_out = {"parts", "length"} if draft.content == _UNKNOWN else set()
                if run is not None:
                    left_out.add("status")  # a later attempt may supersede it
                self._final("messages", (data.message_id,), run, row, left_out)
            case e.AttemptSuperseded() if run is not None:
                self._superseding = run, row
                for message_id in run.work.ended_by(data):
                    self._streaming.pop(message_id, None)
                    self._final("messages", (message_id,), run, row)
            case e.ToolCompleted():
                self._final("actions", (data.action_id,), run, row)
            case e.StepCompleted() if run is not None:
                self._final("steps", (run.run_id, data.key), run, row)
            case e.ApprovalResolved():
                self._final("approvals", (data.approval_id,), run, row)
            case e.AgentCompleted() | e.AgentFailed() | e.AgentCancelled() if run is not None:
                self._end_run(run, row)
            case _:
                pass

    def _end_run(self, run: UnfinishedRun, row: EventRow) -> None:
        del self._runs[run.run_no]
        self.ended_runs += 1
        work = run.work
        left: tuple[tuple[Table, Iterable[str]], ...] = (
            ("messages", work.open),
            ("actions", work.pending),
            ("approvals", work.asked),
        )
        for table, ids in left:
            for id in ids:
                self._streaming.pop(id, None)
                self._final(table, (id,), run, row)
        self._final("runs", (run.run_id,), run, row)
        self._expected += _ended_messages(run, row[0])

    def _final(
        self,
        table: Table,
        key: tuple[str, ...],
        run: UnfinishedRun | None,
        row: EventRow,
        left_out: frozenset[str] | set[str] = frozenset(),
    ) -> None:
        columns = self._rows.take(table, key)
        if columns is not None:  # else said already
            kept = {name: value for name, value in columns.items() if name not in left_out}
            self._expect(self._expected, table, key, kept, row[0], run)

    def _expect(
        self,
        found: list[Expected],
        table: Table,
        key: tuple[str, ...],
        columns: dict[str, Column],
        seq: int,
        run: UnfinishedRun | None = None,
    ) -> None:
        if table in {"runs", "steps"} and key[0] in self._rowless:
            return
        if columns.get("run_id") in self._rowless:
            columns = {name: value for name, value in columns.items() if name != "run_id"}
        found.append(Expected(table, key, columns, seq, None if run is None else run.run_id))

    def _find(self, check: Check, row: EventRow, detail: str) -> None:
        seq, pos, run_no = row[:3]
        run = None if run_no is None else self._runs.get(run_no)
        run_id = run.run_id if run is not None else None if run_no is None else self._run_id_of(run_no)
        self._found.append(
            Finding(check=check, detail=detail, thread_id=self.thread.thread_id, seq=seq, pos=pos, run_id=run_id)
        )


def _ended_messages(run: UnfinishedRun, seq: int) -> list[Expected]:
    """The messages of a run that were complete: their status may have changed since."""
    return [
        Expected("messages", (message_id,), {"status": status}, seq, run.run_id)
        for message_id, status in run.work.said.items()
    ]
