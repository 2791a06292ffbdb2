"""An ordeal of agents that talk: text, thoughts and tools in a stream, cancelled now and then."""

from __future__ import annotations

import random
from typing import Any

from tests.support import hardy
from tests.support.forked import ForkedServer
from tests.support.history import RunHistory, Violation
from tests.support.ordeal import Failpoints, Ordeal, Started

FAILPOINTS: Failpoints = {
    "after_commit": (1, 60),  # the first ones come while it starts, the last ones while clients watch
    "before_commit": (1, 60),
    "before_hint": (1, 60),
    "tool_ended": (1, 8),
}
AIM_SHARE = 1 / 3
LONG_ROUNDS = 25  # how many kills the one long thread lives through


class Talk(Ordeal):
    """The agents of `hardy`."""

    probe = {"agent": "worker", "input": {"tag": "probe", "words": 1, "messages": 1, "pause_s": 0}}  # noqa: RUF012

    def __init__(
        self,
        server: ForkedServer,
        dice: random.Random,
        failpoints: Failpoints = FAILPOINTS,
        aim_share: float = AIM_SHARE,
    ) -> None:
        super().__init__(server, dice, failpoints, aim_share=aim_share)
        self._long = ""
        self._number = 0

    async def _put_to_work(self) -> None:
        if self.kills % LONG_ROUNDS == 0:
            self._long = ""
        self._long = await self._talk(self._long, words=30)
        for _ in range(self._dice.randint(2, 4)):
            thread_id = await self._talk()
            if self._dice.random() < 0.5:
                await self._talk(thread_id)

    async def _interfere(self) -> None:
        under_way = [run for run in self._runs if run.run_id and not run.cancel]
        if under_way and self._dice.random() < 0.2:
            run = self._dice.choice(under_way)
            answer = await self._client.post(f"{self.server.url}/v1/runs/{run.run_id}/cancel", json={})
            run.cancel = answer.status_code == 202
        elif len(self._threads) < 12 and self._dice.random() < 0.3:
            await self._talk()

    async def _hurry(self) -> None:
        for run in self._runs:
            if run.body["agent"] == "stubborn":
                await self._client.post(f"{self.server.url}/v1/runs/{run.run_id}/cancel", json={})

    async def _talk(self, thread_id: str = "", words: int | None = None) -> str:
        """Starts a run in a thread, or in a new one; returns the thread."""
        self._number += 1
        tag = f"t{self._number}x"
        if self._dice.random() < 0.1 and words is None:
            body: dict[str, Any] = {"agent": "stubborn", "input": {"tag": tag}}
        else:
            words = words or self._dice.choice((5, 60, 400))
            agent = self._dice.choice(("worker", "worker", "fragile"))
            body = {"agent": agent, "input": {"tag": tag, "words": words, "messages": self._dice.randint(1, 3)}}
        body["key"] = f"run {self._number}"
        if not thread_id:
            body["thread_key"] = f"thread {self._number}"
        return await self._begin(body, thread_id)

    def _keeps(self, thread_id: str) -> bool:
        return thread_id == self._long

    def _check_run(self, run: Started, told: RunHistory) -> None:
        given = run.body["input"]
        for text in told.messages.values():
            whole = hardy.said(given["tag"], given.get("words", 20_000))
            if not whole.startswith(text):
                raise Violation(f"{run.run_id} never said {text!r}")
        kept = {told.status[message_id] for message_id in told.status} - {"superseded"}
        if told.end is not None and told.end.type == "agent_completed":
            expected = [hardy.said(given["tag"], given["words"])] * given["messages"]
            if told.texts() != expected or kept != {"completed"}:
                raise Violation(f"{run.run_id} completed and says {told.texts()!r}")
        elif told.end is not None and [*told.status.values()].count("partial") > 1:
            raise Violation(f"{run.run_id} left more than one message open")
