"""What an unfinished run has said, done and asked: as much of it as a later event may speak of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

from runstone import events as e
from runstone import values
from runstone.verify.findings import Problem, quoted


class Work:
    """Feed it the events of one run; each answers what is wrong with it, by what came before."""

    def __init__(self) -> None:
        self.calls: set[str] = set()  # ids of runs that it has called
        self.open: set[str] = set()  # messages that stream
        self.said: dict[str, str] = {}  # messages that have ended, with their status
        self.asked: set[str] = set()  # approvals that are open
        self.pending: dict[str, str] = {}  # actions under way, with their tools
        self._ids: set[str] = set()  # of messages, actions and approvals
        self._kept: set[str] = set()  # messages inside a recorded step: no attempt supersedes them
        self._superseded: set[str] = set()
        self._interrupted: dict[str, str] = {}  # actions that may be made once more, with their tools
        self._reserved: dict[str, tuple[str, str]] = {}  # by open approval: the action that it is about, its input
        self._refused: set[str] = set()  # actions that must not be
        self._approved: dict[str, str] = {}  # actions that may be, with the digest of their input
        self._steps: set[str] = set()

    def event(self, data: e.Data) -> Iterator[Problem]:
        match data:
            case e.UserMessage() | e.MessageStarted():
                yield from self._message(data)
            case e.MessageCompleted() if data.message_id in self.open:
                self.open.remove(data.message_id)
                self.said[data.message_id] = data.status
            case e.ToolExecuting():
                yield from self._executing(data)
            case e.ToolOutput() if data.action_id not in self.pending:
                yield Problem("action", _not_pending("output", data.action_id))
            case e.AgentRetrying() if data.action_id and data.action_id not in self.pending:
                yield Problem("action", _not_pending("agent_retrying", data.action_id))
            case e.ToolCompleted():
                yield from self._completed(data)
            case e.StepCompleted():
                yield from self._step(data)
            case e.ApprovalRequested():
                yield from self._requested(data)
            case e.ApprovalResolved():
                yield from self._resolved(data)
            case e.AttemptSuperseded():
                yield from self._superseding(data)
            case _:
                pass

    def left_open(self) -> Iterator[str]:
        """What must be closed before the run ends."""
        yield from (f"the message {id}" for id in sorted(self.open))
        yield from (f"the action {id}" for id in sorted(self.pending))
        yield from (f"the approval {id}" for id in sorted(self.asked))

    def ended_by(self, data: e.AttemptSuperseded) -> list[str]:
        """Of the messages that an attempt's end names, those that streamed; the others are kept as superseded."""
        streamed = [message_id for message_id in data.messages if message_id in self.open]
        self.open.difference_update(streamed)
        for message_id in data.messages:
            if message_id in self.said:
                self.said[message_id] = "superseded"
        return streamed

    # --- messages -------------------------------------------------------------------------------------------

    def _message(self, data: e.UserMessage | e.MessageStarted) -> Iterator[Problem]:
        yield from self._new("message", data.message_id)
        if isinstance(data, e.MessageStarted):
            self.open.add(data.message_id)

    def _superseding(self, data: e.AttemptSuperseded) -> Iterator[Problem]:
        """The list names what the run has said and no attempt's end has named yet, but for what a step has kept."""
        for action_id, tool in sorted(self.pending.items()):
            detail = f"an attempt is superseded while its action {action_id} ({tool}) is pending"
            yield Problem("action", f"{detail}, expected it to be interrupted before")
        self._interrupted |= self.pending
        self.pending.clear()
        expected = (self.open | self.said.keys()) - self._kept - self._superseded
        named: set[str] = set()
        for message_id in data.messages:
            if message_id in named:
                why = "a second time"
            elif message_id in self._superseded:
                why = "which was superseded before"
            elif message_id in self._kept:
                why = "which was said inside a recorded step and stands"
            elif message_id not in expected:
                why = "which no attempt of this run has said"
            else:
                why = None
            if why is not None:
                yield Problem("superseded", f"the list names {message_id} {why}, expected it not to")
            named.add(message_id)
        for message_id in sorted(expected - named):
            yield Problem("superseded", f"the list leaves out {message_id}, expected every message of the attempt")
        self._superseded |= expected & named

    # --- actions --------------------------------------------------------------------------------------------

    def _executing(self, data: e.ToolExecuting) -> Iterator[Problem]:
        action_id, tool = data.action_id, data.tool
        yield from self._new("action", action_id)
        self.pending[action_id] = tool
        approved = self._approved.get(action_id) or self._approved.get(data.retry_of or "")
        if approved is not None:
            self._approved[action_id] = approved  # it holds for what is made in its place, too
        if action_id in self._refused:
            yield Problem("approval", f"the action {action_id} begins, expected it to be approved before")
        elif approved is not None and approved != values.digest(bytes(data.input)):
            yield Problem("approval", f"the action {action_id} has another input, expected the one that was approved")
        if data.retry_of and self._interrupted.pop(data.retry_of, None) != tool:
            expected = f"an interrupted action of {tool} in this run that was not made again yet"
            yield Problem("action", f"{action_id} is made in place of {data.retry_of}, expected {expected}")

    def _completed(self, data: e.ToolCompleted) -> Iterator[Problem]:
        tool = self.pending.pop(data.action_id, None)
        if tool is None:
            yield Problem("action", _not_pending("tool_completed", data.action_id), void=True)
        elif data.status == "interrupted":
            self._interrupted[data.action_id] = tool
        yield from self._inside(f"the action {data.action_id}", data.inner or ())

    # --- steps ----------------------------------------------------------------------------------------------

    def _step(self, data: e.StepCompleted) -> Iterator[Problem]:
        name = f"the step {quoted(data.key)}"
        if data.key in self._steps:
            yield Problem("step", f"{name} is recorded a second time, expected once in a run", void=True)
        self._steps.add(data.key)
        yield from self._inside(name, data.inner or ())
        for message_id in data.inner or ():
            if message_id in self._superseded:
                yield Problem("step", f"{name} names {message_id}, which was superseded, expected what stands")
        self._kept.update(data.inner or ())

    def _inside(self, name: str, inner: Iterable[str]) -> Iterator[Problem]:
        for id in inner:
            if id not in self._ids and id not in self.calls:
                yield Problem("step", f"{name} names {id} as done inside, expected what this run has said or done")

    # --- approvals ------------------------------------------------------------------------------------------

    def _requested(self, data: e.ApprovalRequested) -> Iterator[Problem]:
        yield from self._new("approval", data.approval_id)
        self.asked.add(data.approval_id)
        if data.input_hash != values.digest(bytes(data.input)):
            yield Problem(
                "approval", f"the input_hash of {data.approval_id} is {data.input_hash}, expected its input's"
            )
        if data.action_id:
            self._reserved[data.approval_id] = data.action_id, data.input_hash
            self._refused.add(data.action_id)

    def _resolved(self, data: e.ApprovalResolved) -> Iterator[Problem]:
        if data.approval_id not in self.asked:
            detail = f"approval_resolved of {data.approval_id}, expected that approval of the run to be open here"
            yield Problem("approval", detail, void=True)
            return
        self.asked.remove(data.approval_id)
        action_id, digest = self._reserved.pop(data.approval_id, ("", ""))
        if action_id and data.decision == "approved":
            self._refused.discard(action_id)
            self._approved[action_id] = digest

    def _new(self, what: Literal["message", "action", "approval"], id: str) -> Iterator[Problem]:
        if id in self._ids:
            yield Problem(what, f"the {what} {id} begins a second time, expected once", void=True)
        self._ids.add(id)


def _not_pending(what: str, action_id: str) -> str:
    return f"{what} of {action_id}, expected that action to be pending here"
