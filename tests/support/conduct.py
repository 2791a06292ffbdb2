"""Whether runs of `crew` did what they were told, no more and nothing twice: by their events and the ledger alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from tests.support.crew import UNSAFE, Plan
from tests.support.history import RunHistory, Seen, Violation
from tests.support.ledger import SEEN, STEP, Entry

Call = tuple[str, str]  # what is done, with what


class Act(msgspec.Struct):
    """One action, by its events."""

    action_id: str
    run_id: str
    call: Call
    attempt: int | None
    retry_of: str | None
    status: str = "pending"
    outcome: dict[str, Any] = {}  # as the agent notes what came of a call


def check(log: Iterable[Seen], runs: Mapping[str, RunHistory], before: Iterable[Entry], after: Iterable[Entry]) -> None:
    """Raises Violation. The log is a thread's, up to any moment; the ledger was read before and after it."""
    events = list(log)
    acts = _acts(events)
    known = [entry for entry in before if entry.run_id in runs]
    for entry in known:
        if entry.name not in {STEP, SEEN} and entry.action_id not in acts:
            raise Violation(f"this was done and is not in the log: {entry}")
    _check_seen([entry for entry in known if entry.name == SEEN], events, acts, runs)
    _check_effects(acts, [entry for entry in after if entry.run_id in runs and entry.name not in {STEP, SEEN}])
    by_run: dict[str, list[Act]] = defaultdict(list)
    for act in acts.values():
        by_run[act.run_id].append(act)
    for told in runs.values():
        if told.queued["agent"] in {"chief", "hand"}:
            _Checked(told, by_run[told.run_id], _children(told, runs)).check()


def _children(parent: RunHistory, runs: Mapping[str, RunHistory]) -> list[RunHistory]:
    return [told for told in runs.values() if told.queued.get("parent_run_id") == parent.run_id]


def _check_seen(
    seen: Iterable[Entry], events: Sequence[Seen], acts: Mapping[str, Act], runs: Mapping[str, RunHistory]
) -> None:
    """What an agent was given is in the log; so every later attempt is given the same."""
    results = {(act.run_id, act.call[0], _canon(act.outcome)) for act in acts.values()}
    steps = Counter(event.run_id for event in events if event.type == "step_completed")
    given: Counter[tuple[str, int, str]] = Counter()  # by run, attempt and what was done
    for entry in seen:
        told = runs[entry.run_id]
        given[entry.run_id, entry.attempt, entry.item] += 1
        match entry.item:
            case "step":
                recorded = steps[entry.run_id]
            case "call":
                recorded = sum(child.end is not None for child in _children(told, runs))
            case "approve" | "ask":
                recorded = sum(decision != "open" for decision in told.approvals.values())
            case tool:
                denied = tool == "sign" and not {*told.approvals.values()} <= {"open", "approved"}
                result = entry.run_id, tool, _canon(json.loads(entry.receipt))
                recorded = given[entry.run_id, entry.attempt, tool] if denied or result in results else 0
        if given[entry.run_id, entry.attempt, entry.item] > recorded:
            raise Violation(f"an agent was given what is not in the log: {entry}")


def _acts(log: Iterable[Seen]) -> dict[str, Act]:
    acts: dict[str, Act] = {}
    for event in log:
        data = event.data
        if event.type == "tool_executing":
            assert event.run_id is not None
            call = data["tool"], data["input"]["item"]
            acts[data["action_id"]] = Act(data["action_id"], event.run_id, call, event.attempt, data.get("retry_of"))
        elif event.type == "tool_completed":
            act = acts[data["action_id"]]
            act.status = data["status"]
            if act.status == "success":
                act.outcome = {"ok": data["output"]}
            else:
                act.outcome = {"error": data["error"]["type"] if act.status == "error" else "ActionInterrupted"}
    return acts


def _check_effects(acts: Mapping[str, Act], ledger: Iterable[Entry]) -> None:
    """No effect is had twice that may not be, and every call has had what its end says."""
    done: dict[str, Entry] = {}
    for entry in ledger:
        act = acts.get(entry.action_id)
        if act is None:
            continue  # the log was read before
        if (act.run_id, act.call, act.attempt) != (entry.run_id, (entry.name, entry.item), entry.attempt):
            raise Violation(f"the log has this otherwise: {entry}; {act}")
        if entry.action_id in done:
            raise Violation(f"one call had its effect twice: {entry}; {done[entry.action_id]}")
        done[entry.action_id] = entry
    for act in acts.values():
        if act.action_id in done:
            _check_result(act, done[act.action_id])
        elif act.status in {"success", "error"}:
            raise Violation(f"this ended and was never done: {act}")
        if act.retry_of is not None:
            before = acts.get(act.retry_of)
            if act.call[0] in UNSAFE or before is None or before.status != "interrupted" or before.call != act.call:
                raise Violation(f"this was done again: {act}; {before}")
        first = act
        while first.retry_of is not None:
            first = acts[first.retry_of]
        if act.action_id in done and done[act.action_id].key != first.action_id:
            raise Violation(f"a repetition has another key: {done[act.action_id]}; it began as {first}")


def _check_result(act: Act, entry: Entry) -> None:
    if act.status == "success" and act.call[0] != "pack" and act.outcome != {"ok": entry.receipt}:
        raise Violation(f"the log has another result than the world: {act}; {entry}")


class _Checked:
    """One run, its actions and its children, held against its plan."""

    def __init__(self, told: RunHistory, acts: Sequence[Act], children: Sequence[RunHistory]) -> None:
        self._told = told
        retried = {act.retry_of for act in acts}
        self._calls = [act for act in acts if act.retry_of is None]
        self._last = [act for act in acts if act.action_id not in retried]
        self._children = children
        self._plan = Flat(told.queued["input"]["plan"])
        asked = [(data, told.approvals[id], told.values.get(id)) for id, data in told.questions.items()]
        self._asked = [data["prompt"] for data, _, _ in asked]
        self._signed = [(data["input"]["item"], decision) for data, decision, _ in asked if "action_id" in data]
        self._answers = [
            (data["prompt"], value if data["kind"] == "question" else decision)
            for data, decision, value in asked
            if "action_id" not in data
        ]

    def check(self) -> None:
        end, plan = self._told.end, self._plan
        finished = end is not None and end.type != "agent_cancelled"
        self._same(finished, "calls", (act.call for act in self._calls), self._planned_calls())
        self._same(
            finished, "children", (_canon(child.queued["input"]["plan"]) for child in self._children), plan.plans
        )
        self._same(finished, "questions", self._asked, plan.asked)
        self._same(finished, "messages", self._told.texts() if finished else (), plan.said)
        for text in self._told.messages.values():
            if not any(said.startswith(text) for said in plan.said):
                raise Violation(f"{self._told.run_id} never said {text!r}")
        if finished:
            self._check_end()

    def _planned_calls(self) -> Counter[Call]:
        """What was not approved is not called."""
        denied = Counter(("sign", item) for item, decision in self._signed if decision not in {"approved", "open"})
        return self._plan.calls - denied

    def _same(self, finished: bool, what: str, found: Iterable[Any], planned: Counter[Any]) -> None:
        counted = Counter(found)
        if (finished and counted != planned) or not counted <= planned:
            raise Violation(
                f"{self._told.run_id}, in attempt {self._told.attempt}: {what} that were not planned: "
                f"{counted - planned}; that are missing: {planned - counted if finished else 'it has not ended'}"
            )

    def _check_end(self) -> None:
        end = self._told.end
        assert end is not None
        if end.type == "agent_failed":
            if not self._plan.fails or end.data["error"]["type"] != "AgentError":
                raise Violation(f"{self._told.run_id} failed: {end.data}")
            return
        results = Results(self._told.queued["input"]["plan"], end.data["output"])
        outcomes = [(act.call, act.outcome) for act in self._last if act.call not in self._plan.inner]
        denied = [(("sign", item), {"error": "ApprovalDenied"}) for item, what in self._signed if what != "approved"]
        self._equal("calls", results.calls, [*outcomes, *denied])
        ended = [(_canon(child.queued["input"]["plan"]), _outcome(child)) for child in self._children]
        self._equal("children", results.children, ended)
        self._equal("questions", results.answers, self._answers)

    def _equal(self, what: str, seen: list[Any], told: list[Any]) -> None:
        """What the agent saw is what the log says."""
        if sorted(map(_canon, seen)) != sorted(map(_canon, told)):
            raise Violation(f"{what} of {self._told.run_id}: its agent saw\n{seen}\nand its log says\n{told}")


class Flat:
    """What a plan comes to, without that of the children it calls."""

    def __init__(self, plan: Plan) -> None:
        self.calls: Counter[Call] = Counter()
        self.inner: set[Call] = set()  # made by a tool
        self.plans: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.said: Counter[str] = Counter()
        self.steps: set[str] = set()
        self.fails = False
        self._add(plan)

    def _add(self, plan: Plan) -> None:
        for item in plan:
            match item["do"]:
                case "say":
                    self.said[f"{item['item']} "] += 1
                case "step":
                    self.steps.add(item["item"])
                    self._add(item["plan"])
                case "side":
                    self._add(item["plan"])
                case "call":
                    self.plans[_canon(item["plan"])] += 1
                case "approve" | "ask":
                    self.asked[item["item"]] += 1
                case "fail":
                    self.fails = True
                case tool:
                    self._tool(tool, item["item"])

    def _tool(self, tool: str, item: str) -> None:
        self.calls[tool, item] += 1
        if tool == "sign":
            self.asked["Run sign?"] += 1
        elif tool == "pack":
            call = "pay", f"{item} in a box"
            self.calls[call] += 1
            self.inner.add(call)


class Results:
    """What an agent returned, item by item of its plan."""

    def __init__(self, plan: Plan, output: Sequence[Any]) -> None:
        self.calls: list[tuple[Call, Any]] = []
        self.children: list[tuple[str, Any]] = []
        self.answers: list[tuple[str, Any]] = []
        self._add(plan, output)

    def _add(self, plan: Plan, output: Sequence[Any]) -> None:
        for item, result in zip(plan, output, strict=True):
            match item["do"]:
                case "say":
                    if result is not None:
                        raise Violation(f"{item} gave {result}")
                case "step" | "side":
                    self._add(item["plan"], result)
                case "call":
                    self.children.append((_canon(item["plan"]), result))
                case "approve" | "ask":
                    self.answers.append((item["item"], result))
                case tool:
                    self.calls.append(((tool, item["item"]), result))


def _outcome(child: RunHistory) -> dict[str, Any]:
    assert child.end is not None
    return {"ok": child.end.data["output"]} if child.end.type == "agent_completed" else {"error": "RunFailed"}


def _canon(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
