"""The unfinished runs of a thread as relatives: who called whom, and in which attempt of the root."""

from __future__ import annotations

from collections.abc import Iterator

from runstone import events as e
from runstone import states
from runstone.states import Member, Status
from runstone.verify.findings import Problem
from runstone.verify.runs import UnfinishedRun


class Families:
    """A root run and all below it are one family: its attempt is the epoch of them all."""

    def __init__(self) -> None:
        self._runs: dict[str, UnfinishedRun] = {}  # in the order they were queued
        self._of_root: dict[str, dict[str, UnfinishedRun]] = {}
        self._children: dict[str, set[str]] = {}  # by their caller

    def event(self, data: e.Data, run: UnfinishedRun) -> Iterator[Problem]:
        """What is wrong with the event by what its run's relatives do; call it after the run has had the event."""
        match data:
            case e.RunQueued() if run.run_id not in self._runs:
                yield from self._queued(run)
            case e.AgentStarted():
                yield from self._started(run)
            case e.AgentCompleted() | e.AgentFailed() | e.AgentCancelled():
                yield from self._ended(e.TYPE_OF[type(data)], run)
            case _:
                pass

    def standing(self, root_run_id: str) -> dict[str, Status]:
        """Where each unfinished run of a family stands, by the rule that the writer has, too."""
        family = self._of_root.get(root_run_id, {})
        members = {
            run_id: Member(run.parent_run_id, run.status, len(run.work.asked))
            for run_id, run in family.items()
            if run.status is not None
        }
        found = states.standing(members)
        for run_id, status in found.items():
            family[run_id].status = status
        return found

    def _queued(self, run: UnfinishedRun) -> Iterator[Problem]:
        caller_id = run.parent_run_id
        if caller_id is None:
            root_run_id = run.run_id if run.has_row else run.root_run_id
        else:
            caller = self._runs.get(caller_id)
            if caller is None or caller.writing is None:
                yield Problem("run", f"it is called by {caller_id}, expected that run to be under way")
            if caller is not None:
                caller.work.calls.add(run.run_id)
            root_run_id = run.root_run_id if caller is None else caller.root_run_id
            self._children.setdefault(caller_id, set()).add(run.run_id)
        if run.root_run_id != root_run_id:
            yield Problem("run", f"its root_run_id is {run.root_run_id}, expected {root_run_id}")
        self._runs[run.run_id] = run
        self._of_root.setdefault(run.root_run_id, {})[run.run_id] = run

    def _started(self, run: UnfinishedRun) -> Iterator[Problem]:
        if run.parent_run_id is None:
            for relative in self._of_root.get(run.run_id, {}).values():
                if relative is not run:
                    relative.writing = None
            first = next((id for id, other in self._runs.items() if other.parent_run_id is None), run.run_id)
            if first != run.run_id:
                yield Problem("run", f"it starts while {first} is unfinished, expected the earlier run to end before")
            return
        caller = self._runs.get(run.parent_run_id)
        if caller is None or caller.writing is None:
            detail = f"attempt {run.attempt} starts, expected its caller {run.parent_run_id} to be under way"
            yield Problem("attempt", detail)
        root = self._runs.get(run.root_run_id)
        epoch = 0 if root is None else root.attempt
        if run.attempt > 1 and epoch == run.epoch:
            detail = f"attempt {run.attempt} starts, expected a later attempt of its root than {epoch} for it"
            yield Problem("attempt", detail)
        run.epoch = epoch

    def _ended(self, kind: str, run: UnfinishedRun) -> Iterator[Problem]:
        children = self._children.pop(run.run_id, None)
        if children:
            names = ", ".join(sorted(children))
            yield Problem("run", f"{kind} while children are unfinished ({names}), expected their ends before")
        if run.parent_run_id is not None:
            self._children.get(run.parent_run_id, set()).discard(run.run_id)
        self._runs.pop(run.run_id, None)
        family = self._of_root.get(run.root_run_id, {})
        family.pop(run.run_id, None)
        if not family:
            self._of_root.pop(run.root_run_id, None)
