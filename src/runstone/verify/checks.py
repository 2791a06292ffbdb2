"""Goes through a store and checks all of it, in memory that does not grow with it.

First the file, then the order of the whole store, then thread by thread the events and the rows that they make.
What is still unfinished at a thread's head is compared in one short transaction with the head itself, so that a
server may go on writing meanwhile.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator

import msgspec

from runstone.audit import Audit, AuditedThread, Damaged, EventRow, Extent
from runstone.projection import Column, Table
from runstone.verify.findings import Finding, quoted
from runstone.verify.fold import ThreadFold
from runstone.verify.places import misplaced
from runstone.verify.rows import Expected

Progress = Callable[[str, int, int], None]  # what is being checked, how much of it is done, how much there is

EVENTS_A_READ = 2_000  # about 20 ms, for which a writer in delete mode may have to wait
PLACES_A_READ = 10_000
_THREADS_A_READ = 500
_ROWS_WITH_IDS: tuple[Table, ...] = ("runs", "messages", "actions", "approvals", "steps")


class Checked(msgspec.Struct):
    """What was checked, counted."""

    schema: str
    generation: str | None
    structure: list[str] = []  # the store's own checks, by name
    left_out: list[str] = []  # and those that were given up, with the reason
    events: int = 0
    threads: int = 0
    runs_ended: int = 0
    runs_unfinished: int = 0
    children: int = 0
    attempts: int = 0
    messages: int = 0
    actions: int = 0
    approvals: int = 0
    steps: int = 0
    state: int = 0
    findings: int = 0


def verify(store: Audit, report: Callable[[Finding], None], progress: Progress, *, hold_s: float | None) -> Checked:
    """Checks all of a store. `report` gets each finding at once; `hold_s` bounds the engine's own checks, each."""
    return _Verification(store, report, progress).all(hold_s)


class _Verification:
    def __init__(self, store: Audit, report: Callable[[Finding], None], progress: Progress) -> None:
        self._store = store
        self._report = report
        self._progress = progress
        self._checked = Checked(store.schema, store.generation)
        self._missing = False  # a row of the current thread was not found

    def all(self, hold_s: float | None) -> Checked:
        self._structure(hold_s)
        try:
            extent = self._store.extent()
        except Damaged as damage:
            self._find(Finding(check="store", detail=f"how far it goes cannot be read: {damage}"))
            extent = Extent(sys.maxsize, sys.maxsize)  # then each reading goes on until there is nothing more
        self._places(extent.pos)
        self._threads(extent.thread_no, extent.pos)
        return self._checked

    def _find(self, *findings: Finding) -> None:
        for finding in findings:
            self._checked.findings += 1
            self._report(finding)

    # --- the store as a whole -----------------------------------------------------------------------------

    def _structure(self, hold_s: float | None) -> None:
        if not self._checked.generation:
            self._find(Finding(check="generation", detail="the store names no generation, expected one"))
        for number, check in enumerate(self._store.structure(hold_s), 1):
            self._progress("the file", number, 0)
            if check.unfinished is not None:
                self._checked.left_out.append(f"{check.name}: {check.unfinished}")
                continue
            self._checked.structure.append(check.name)
            self._find(*[Finding(check="store", detail=f"{check.name}: {problem}") for problem in check.problems])

    def _places(self, end: int) -> None:
        before, limit = (0, 0), PLACES_A_READ
        while before[0] < end:
            try:
                rows = self._store.places(before[0], limit)
            except Damaged as damage:
                if limit > 1:
                    limit //= 10  # up to the damage, the rows can still be read
                    continue
                self._find(Finding(check="store", pos=before[0], detail=f"nothing can be read after it: {damage}"))
                return
            if not rows:
                return
            self._find(*map(self._placed, misplaced(rows, before)))
            before = rows[-1]
            self._progress("order", min(before[0], end), end)

    def _placed(self, finding: Finding) -> Finding:
        assert finding.pos is not None
        thread_id, seq = self._store.at(finding.pos)
        return msgspec.structs.replace(finding, thread_id=thread_id, seq=seq)

    # --- thread by thread ---------------------------------------------------------------------------------

    def _threads(self, end: int, events: int) -> None:
        last = 0
        for thread in self._listed(end):
            self._strays(last, thread.thread_no)
            last = thread.thread_no
            self._missing = False
            self._checked.threads += 1
            try:
                self._thread(thread, events)
            except Damaged as damage:
                detail = f"the thread cannot be read: {damage}"
                self._find(Finding(check="store", thread_id=thread.thread_id, detail=detail))
        if last == end:
            self._strays(last, None)

    def _listed(self, end: int) -> Iterator[AuditedThread]:
        last = 0
        while last < end:
            page = self._store.threads(last, _THREADS_A_READ)
            if not page:
                return
            last = page[-1].thread_no
            yield from (thread for thread in page if thread.thread_no <= end)

    def _strays(self, last: int, thread_no: int | None) -> None:
        """Events between two threads belong to none."""
        if thread_no == last + 1:
            return
        for number in self._store.strays(last, thread_no):
            detail = f"there are events of thread_no {number}, expected a row of threads with that number"
            self._find(Finding(check="rows", detail=detail))

    def _thread(self, thread: AuditedThread, events: int) -> None:
        fold = ThreadFold(thread, self._store.run_id)
        while (rows := self._page(thread, fold, events)) is None:
            pass
        self._unexplained(thread, fold, *rows)
        self._count(fold)

    def _page(self, thread: AuditedThread, fold: ThreadFold, events: int) -> tuple[dict[Table, int], list[str]] | None:
        """One page; at the head, in the same moment, what is unfinished; then row counts, state keys."""
        rows = None
        with self._store.snapshot():
            page, at_head = self._store.events(thread, fold.head, EVENTS_A_READ)
            if at_head:
                self._fold(fold, page)
                self._compare(thread, fold.rest())
                self._find(*fold.take()[0])
                rows = self._store.counts(thread), self._store.state_keys(thread)
        if not at_head:
            self._fold(fold, page)
        self._checked.events += len(page)
        self._progress("events", min(self._checked.events, events), events)
        return rows

    def _fold(self, fold: ThreadFold, page: list[EventRow]) -> None:
        head = fold.head
        fold.feed(page)
        if page and fold.head <= head:
            raise Damaged("its events are not in the order of their seq")
        findings, expected = fold.take()
        self._find(*findings)
        self._compare(fold.thread, expected)

    def _count(self, fold: ThreadFold) -> None:
        checked, made = self._checked, fold.made
        checked.runs_ended += fold.ended_runs
        checked.runs_unfinished += fold.unfinished_runs
        checked.children += fold.children
        checked.attempts += fold.attempts
        checked.messages += made["messages"]
        checked.actions += made["actions"]
        checked.approvals += made["approvals"]
        checked.steps += made["steps"]
        checked.state += made["state"]

    # --- rows ---------------------------------------------------------------------------------------------

    def _compare(self, thread: AuditedThread, expected: Iterable[Expected]) -> None:
        for row in expected:
            found = self._store.row(row.table, row.key, list(row.columns))
            if found is None:
                self._missing = True
                problem = "there is no such row, expected the one that the events make"
            else:
                problem = _differences(row.columns, found)
            if problem:
                name = " ".join([row.table, row.key[-1]])
                detail = f"{name}: {problem}"
                self._find(
                    Finding(check="rows", thread_id=thread.thread_id, seq=row.seq, run_id=row.run_id, detail=detail)
                )

    def _unexplained(self, thread: AuditedThread, fold: ThreadFold, counted: dict[Table, int], keys: list[str]) -> None:
        """Rows that no event has made; they are looked for only where the numbers do not agree."""
        if not fold.head:
            self._orphan(thread, f"threads {thread.thread_id}", 1)
        for table in _ROWS_WITH_IDS:
            if self._missing or counted[table] != fold.made[table]:
                for id, seq in self._store.unexplained(table, thread):
                    self._orphan(thread, f"{table} {id}", seq)
        for key in sorted(set(keys) - fold.state_keys()):
            self._orphan(thread, f"state {key}", None)

    def _orphan(self, thread: AuditedThread, name: str, seq: int | None) -> None:
        detail = f"{name}: the row is there, expected none: no event makes it"
        self._find(Finding(check="rows", thread_id=thread.thread_id, seq=seq, detail=detail))


def _differences(expected: dict[str, Column], found: Iterable[Column]) -> str:
    return "; ".join(
        f"{name} is {quoted(value)}, expected {quoted(expected[name])}"
        for name, value in zip(expected, found, strict=True)
        if value != expected[name]
    )
