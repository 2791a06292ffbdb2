"""An ordeal of agents that work: tools with effects in a world outside, steps, children and questions to people."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import apsw

from runstone.client.reducer import ThreadView
from runstone.client.stream import Event
from tests.support import conduct, ledger
from tests.support.crew import DIES_AT, LEDGER, Item, Plan
from tests.support.forked import ForkedServer
from tests.support.history import RunHistory, Violation, parse
from tests.support.ordeal import Failpoints, Ordeal, Started

FAILPOINTS: Failpoints = {
    "before_commit": (1, 40),
    "after_commit": (1, 40),
    "before_hint": (1, 40),
    "claimed": (1, 4),
    "tool_starting": (1, 10),
    "tool_ended": (1, 10),
    "step_ended": (1, 4),
    "child_called": (1, 4),
    "child_ended": (1, 3),
    "asked": (1, 2),
    "answered": (1, 2),
    "agent_ended": (1, 4),
    "released": (1, 1),
    "given": (1, 20),  # an agent got a result, this very moment
}
AIM_SHARE = 0.55
UNFINISHED = 4  # root runs that are under way, or wait, at a time

_LEAVES = ("say", "say", "pay", "put", "saw", "sand", "trip", "pack")


class Plans:
    """What runs are to do: by their number always the same."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def plan(self, number: int) -> Plan:
        dice = random.Random(f"{self._seed} plan {number}")
        maker = _Maker(dice, f"r{number}")
        return [maker.item(depth=2) for _ in range(dice.randint(4, 9))]

    def cancelled(self, number: int) -> int:
        """After how many looks a run is cancelled; 0: never."""
        dice = random.Random(f"{self._seed} cancel {number}")
        return dice.randint(1, 8) if dice.random() < 0.08 else 0

    def decision(self, approval: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """After how many looks a question is answered, and how."""
        dice = random.Random(f"{self._seed} {approval['prompt']} {approval['input']}")
        looks = dice.choice((1, 1, 2, 5))
        if approval["kind"] == "question":
            return looks, {"decision": "answer", "value": dice.randint(0, 1000)}
        return looks, {"decision": "approve" if dice.random() < 0.7 else "deny"}


class _Maker:
    def __init__(self, dice: random.Random, prefix: str) -> None:
        self._dice = dice
        self._prefix = prefix
        self._number = 0

    def item(self, depth: int, *, asks: bool = True) -> Item:
        throw = self._dice.random()
        if depth and throw < 0.40:
            kind = self._dice.choice(("step", "step", "side", "call"))
            plan = [self.item(depth - 1, asks=asks) for _ in range(self._dice.randint(1, 3))]
            if kind == "call" and self._dice.random() < 0.2:
                plan.append({"do": "fail", "item": self._name()})
            return {"do": kind, "item": self._name(), "plan": plan}
        if asks and throw > 0.93:
            return {"do": self._dice.choice(("approve", "ask", "sign")), "item": self._name()}
        leaf = self._dice.choice(_LEAVES)
        if leaf == "say":
            return {"do": "say", "item": " ".join(f"{self._name()}{'🪨é'[number % 2]}" for number in range(4))}
        # now and then the same call once more
        return {"do": leaf, "item": "again" if self._dice.random() < 0.1 else self._name()}

    def _name(self) -> str:
        self._number += 1
        return f"{self._prefix}.{self._number}"


class Toil(Ordeal):
    """The agents of `crew`, on a server that has its ledger in CREW_LEDGER."""

    probe = {"agent": "chief", "input": {"plan": []}}  # noqa: RUF012
    aimed_s = 0.4
    drain_share = 0.1

    def __init__(
        self,
        server: ForkedServer,
        dice: random.Random,
        failpoints: Failpoints = FAILPOINTS,
        aim_share: float = AIM_SHARE,
    ) -> None:
        self._ledger = server.database.with_name("ledger")
        super().__init__(
            server, dice, failpoints, aim_share=aim_share, **{LEDGER: str(self._ledger)}, RUNSTONE_GRACE_S="0.2"
        )
        self._plans = Plans(self._seed)
        self._number = 0
        self._looks: defaultdict[str, int] = defaultdict(int)  # at runs and approvals
        self._answered: dict[str, dict[str, Any]] = {}  # what was acknowledged, by approval
        self.finished: set[str] = set()
        self._entries: list[ledger.Entry] = []

    def account(self) -> str:
        return f"{super().account()}; {len(self.finished)} runs finished, {len(self._entries)} effects"

    # --- work --------------------------------------------------------------------------------------------

    async def _put_to_work(self) -> None:
        threads = [thread_id for thread_id in self._threads if thread_id not in self._done]
        for _ in range(UNFINISHED - len(threads)):
            thread_id = await self._toil("")
            if self._dice.random() < 0.2:
                await self._toil(thread_id)

    async def _toil(self, thread_id: str) -> str:
        self._number += 1
        body = {"agent": "chief", "input": {"plan": self._plans.plan(self._number)}, "key": f"run {self._number}"}
        if not thread_id:
            body["thread_key"] = f"thread {self._number}"
        return await self._begin(body, thread_id)

    async def _interfere(self) -> None:
        await self._answer(hurry=False)
        for run in self._runs:
            number = int(run.body["key"].split()[1])
            self._looks[run.run_id] += 1
            if self._looks[run.run_id] == self._plans.cancelled(number):
                answer = await self._client.post(f"{self.server.url}/v1/runs/{run.run_id}/cancel", json={})
                run.cancel = answer.status_code == 202

    async def _answer(self, *, hurry: bool) -> int:
        """Another client looks at what is asked, and answers some of it; returns how much it was."""
        approvals = (await self._get("approvals?status=open&limit=1000"))["approvals"]
        for approval in approvals:
            approval_id = approval["approval_id"]
            self._looks[approval_id] += 1
            looks, decision = self._plans.decision(approval)
            if self._looks[approval_id] < looks and not hurry:
                continue
            answer = await self._client.post(f"{self.server.url}/v1/approvals/{approval_id}", json=decision)
            if answer.status_code == 200:
                self._answered[approval_id] = decision
            elif answer.status_code != 409:  # its run was cancelled meanwhile
                raise Violation(f"the answer to {approval} was answered {answer.status_code}: {answer.text}")
        return len(approvals)

    async def _hurry(self) -> None:
        for run in self._runs:
            while (await self._get(f"runs/{run.run_id}?wait_s=0.2"))["ended_at"] is None:
                await self._answer(hurry=True)

    # --- what must hold ------------------------------------------------------------------------------------

    def _armed(self, name: str, passage: int) -> dict[str, str]:
        return {DIES_AT: str(passage)} if name == "given" else super()._armed(name, passage)

    def _before_logs(self) -> None:
        self._entries = ledger.entries(self._ledger)

    def _check_run(self, run: Started, told: RunHistory) -> None:
        if told.queued["input"] != run.body["input"]:
            raise Violation(f"{run.run_id} was queued with {told.queued['input']}")
        if told.end is not None:
            self.finished.add(run.run_id)

    def _check_thread(self, thread_id: str, log: list[bytes], runs: dict[str, RunHistory]) -> None:
        conduct.check(map(parse, log), runs, self._entries, ledger.entries(self._ledger))
        for told in runs.values():
            for approval_id, decision in told.approvals.items():
                answered = self._answered.get(approval_id)
                if answered is None:
                    continue
                expected = {"approve": "approved", "deny": "denied", "answer": "answered"}[answered["decision"]]
                if (decision, told.values.get(approval_id)) != (expected, answered.get("value")):
                    raise Violation(f"{approval_id} was answered {answered}, and in the log it is {decision}")
        if thread_id in self._done:
            return
        view = ThreadView()
        for wire in log:
            view.feed(Event.decode(wire))
        shown = {
            message.message_id: message.content
            for message in view.messages(children=True)
            if message.role == "assistant"
        }
        told_ = {
            message_id: text
            for told in runs.values()
            for message_id, text in told.messages.items()
            if told.status.get(message_id) != "superseded"
        }
        if shown != told_:
            raise Violation(f"the reducer makes of {thread_id}\n{shown}\nand its log says\n{told_}")

    def _check_file(self) -> None:
        """No step was begun again once it was recorded. Steps are private: this is in the file alone."""
        recorded = _recorded(self.server.database)
        begun: set[tuple[str, str, int]] = set()
        for entry in ledger.entries(self._ledger):
            if entry.name != ledger.STEP:
                continue
            making = entry.run_id, entry.item, entry.attempt
            if making in begun or entry.attempt > recorded.get((entry.run_id, entry.item), entry.attempt):
                raise Violation(f"a step was made again: {entry}")
            begun.add(making)
        for (run_id, key), attempt in recorded.items():
            if (run_id, key, attempt) not in begun:
                raise Violation(f"the step {key} of {run_id} was recorded in attempt {attempt}, and not made in it")


def _recorded(database: Path) -> dict[tuple[str, str], int]:
    """In which attempt each step was recorded, by run and key."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return {
            (run_id, key): attempt
            for run_id, key, attempt in connection.execute(
                "SELECT run_id, CAST(payload AS TEXT) ->> '$.data.key', events.attempt "
                "FROM events JOIN runs USING (run_no) WHERE type = 'step_completed'"
            )
        }
    finally:
        connection.close()
