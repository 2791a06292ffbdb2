"""What earlier attempts of a run did, and what of it a call of this attempt finds again."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from runstone import values
from runstone.store import Record, RecordedAction, RecordedApproval, RecordedChild, RecordedStep

R = TypeVar("R")


class Recorded(msgspec.Struct):
    """One tool call; an interrupted one together with the calls that were made to take its place."""

    first: RecordedAction
    last: RecordedAction


class Replay:
    """Finds records by what is called, with what, and for the how manieth time; or by the caller's own key.

    What was done inside a recorded step or a finished action is not called again, and so not found.
    """

    def __init__(self, record: Record) -> None:
        self._steps = {step.key: step for step in record.steps}
        self._actions: _Calls[Recorded] = _Calls()
        self._approvals: _Calls[RecordedApproval] = _Calls()
        self._children: _Calls[RecordedChild] = _Calls()
        inside = _inside(record)
        self._own: Counter[str] = Counter()  # by tool, the calls of the run's own task that were not made again
        calls: dict[str, Recorded] = {}
        for action in record.actions:
            if action.executor != "server":
                continue  # what others run is recorded by every attempt anew
            call = calls.get(action.retry_of or "")
            if call is not None:
                calls[action.action_id] = call
                call.last = action
            elif action.retry_of in inside:
                inside.add(action.action_id)
            elif action.action_id not in inside:
                call = calls[action.action_id] = Recorded(action, action)
                self._actions.add(action.tool, bytes(action.input), action.key, call)
                self._own[action.tool] += not action.beside
        for approval in record.approvals:
            if approval.approval_id not in inside:
                name = _question(approval.kind, approval.prompt, approval.action_id is not None)
                self._approvals.add(name, bytes(approval.input), approval.key, approval)
        for child in record.children:
            if child.run_id not in inside:
                self._children.add(child.agent, bytes(child.input), child.key, child)

    def step(self, key: str) -> RecordedStep | None:
        return self._steps.get(key)

    def action(self, tool: str, input: bytes, key: str | None, asked: RecordedApproval | None) -> Recorded | None:
        """The next such call; where a person was asked first, the one that was for, if it was made."""
        found = self._actions.take(
            tool, input, key, lambda call: asked is None or asked.action_id == call.first.action_id
        )
        if found is not None:
            self._own[tool] -= not found.first.beside
        return found

    def left(self, tool: str) -> bool:
        """Whether an earlier attempt's own task made a call of that tool that this one has not made again."""
        return self._own[tool] > 0

    def asked(self, prompt: str, input: bytes, key: str | None) -> RecordedApproval | None:
        """What a person was asked before a tool was called; `approval` still finds it."""
        return self._approvals.next(_question("approval", prompt, True), input, key, _about(input))

    def approval(
        self, kind: str, prompt: str, input: bytes, key: str | None, *, of_tool: bool
    ) -> RecordedApproval | None:
        return self._approvals.take(_question(kind, prompt, of_tool), input, key, _about(input))

    def child(self, agent: str, input: bytes, key: str | None) -> RecordedChild | None:
        return self._children.take(agent, input, key)


class _Calls(Generic[R]):
    """Records in the order they were begun, each found once."""

    def __init__(self) -> None:
        self._waiting: defaultdict[tuple[str, bool, str], deque[R]] = defaultdict(deque)

    def add(self, name: str, input: bytes, key: str | None, record: R) -> None:
        self._waiting[_place(name, input, key)].append(record)

    def next(self, name: str, input: bytes, key: str | None, fits: Callable[[R], bool] = lambda _: True) -> R | None:
        waiting = self._waiting.get(_place(name, input, key), ())
        return next((record for record in waiting if fits(record)), None)

    def take(self, name: str, input: bytes, key: str | None, fits: Callable[[R], bool] = lambda _: True) -> R | None:
        found = self.next(name, input, key, fits)
        if found is not None:
            self._waiting[_place(name, input, key)].remove(found)
        return found


def _place(name: str, input: bytes, key: str | None) -> tuple[str, bool, str]:
    return (name, False, values.digest(input)) if key is None else (name, True, values.mend(key))


def _question(kind: str, prompt: str, of_tool: bool) -> str:
    return f"{'tool' if of_tool else kind} {values.mend(prompt)}"


def _about(input: bytes) -> Callable[[RecordedApproval], bool]:
    """Also of what is found by its key: a yes to one input is none to another."""
    return lambda approval: bytes(approval.input) == input


def _inside(record: Record) -> set[str]:
    lists = [step.inner for step in record.steps]
    lists += [action.inner for action in record.actions if action.inner is not None]
    return {id for ids in lists for id in msgspec.json.decode(ids, type=list[str])}
