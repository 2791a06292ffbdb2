"""Random histories of one thread in a real store: people, agents, crashes, children, questions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hypothesis import strategies as st
from msgspec import UNSET

from runstone import commands as c
from runstone import events as e
from runstone import values
from runstone.client import Event
from runstone.errors import RunstoneError
from runstone.messages import MessageFold
from runstone.store import Append, Command, RunRow
from runstone.stores.sqlite import SqliteStore
from runstone.values import Json
from runstone.views import ThreadRef
from tests.support.clocks import ManualClock

USER, AGENT = "alice", "agent"
TEXTS = ["", "a", "so far ", "🗿", "line\n", "x" * 300]
VALUES: list[Json] = [None, 0, 1.5, "text", [1, {"a": None}], {"k": "🗿"}, True]
DECISIONS: list[Any] = ["approved", "denied", "answered"]


@dataclass
class Speaking:
    """A message that is open."""

    message_id: str
    fold: MessageFold = field(default_factory=MessageFold)
    kind: type[e.Delta] | None = None
    part: int = -1
    offset: int = 0


@dataclass
class Acting:
    """A run as its agent holds it. `alive` is false from the death of its worker to its next attempt."""

    row: RunRow
    root: Acting | None
    alive: bool = False
    open: list[Speaking] = field(default_factory=list)
    said: list[str] = field(default_factory=list)  # complete messages of this attempt
    actions: dict[str, bool] = field(default_factory=dict)  # pending ones: whether they are private

    @property
    def fence(self) -> c.Fence:
        return c.Fence(self.row.attempt, (self.root or self).row.attempt)

    def begin(self, row: RunRow) -> None:
        self.row, self.alive = row, True
        self.open, self.said, self.actions = [], [], {}


class History:
    """Does one thing after another, each in a commit, as the tape says."""

    def __init__(self, store: SqliteStore, clock: ManualClock, tape: Tape) -> None:
        self.store = store
        self.clock = clock
        self.tape = tape
        self.choose = tape.choose
        self.thread: ThreadRef
        self.runs: dict[str, Acting] = {}
        self.worker = ""
        self.workers = 0
        self.names = 0
        self.deleted = False

    async def begin(self) -> None:
        self.tape.next_step()
        await self._hire()
        parts = values.raw([{"type": "text", "text": "earlier"}, {"type": "data", "value": self.choose(VALUES)}])
        imported = [c.ImportedMessage(role, parts, values.raw({"old": True})) for role in ("user", "assistant")]
        new = c.NewThread(
            title=self.choose([None, "title"]),
            metadata=self.choose([None, values.raw({"m": 1})]),
            key=self.choose([None, c.Key("k", "digest")]),
            messages=self.choose([[], imported]),
        )
        self.thread = ThreadRef((await self._ask(c.create_thread(USER, new))).id, USER)

    async def step(self) -> bool:
        """One thing that may happen now; false where the tape ends."""
        if not self.tape.next_step():
            return False
        alive = [run for run in self.runs.values() if run.alive]
        if alive:
            await self._among(self.choose(alive))
        else:
            await self.choose([self._nothing, self._start, self._claim, self._claim, self._answer, self._update])()
        return True

    async def _among(self, run: Acting) -> None:
        """What may happen while a run is under way."""
        often = [self._speak] * 12 + [self._use_tool] * 7 + [self._note] * 5 + [self._call, self._ask_person] * 2
        things: list[Callable[[], Awaitable[None]]] = [
            self._nothing,
            self._update,
            self._start,
            self._claim,
            self._expire,
        ]
        things += [self._crash] * 3 + [self._answer] * 3
        things += [partial(do, run) for do in (*often, self._end, self._end, self._cancel)]
        await self.choose(things)()

    async def _nothing(self) -> None:
        """What a shrunk history is mostly made of."""

    async def events(self) -> list[Event]:
        """The thread's events, as a client decodes them."""
        found: list[Event] = []
        while page := (await self.store.events(self.thread, after=len(found), limit=1000, bytes_max=1 << 20)).events:
            found += [Event.decode(event.wire) for event in page]
        return found

    async def delete(self) -> None:
        await self._ask(c.delete_thread(USER, self.thread.thread_id))
        self.deleted = True

    # --- people -------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        said = self.choose([None, "Why?"])
        new = c.NewRun(
            agent=AGENT,
            input=values.raw(self.choose(VALUES)),
            message=None if said is None else values.raw([{"type": "text", "text": said}]),
            message_metadata=None if said is None else self.choose([None, values.raw({"from": "phone"})]),
            metadata=self.choose([None, values.raw({"tag": 1})]),
            on_busy=self.choose(["enqueue"] * 5 + ["interrupt"]),
            on_crash=self.choose(["resume"] * 7 + ["fail"]),
            max_attempts=3,
            timeout_s=60,
        )
        made = await self._ask(c.start_run(USER, new, thread_id=self.thread.thread_id))
        row = await self.store.run_row(made.id)
        assert row is not None
        self.runs[made.id] = Acting(row, None)
        await self._look()

    async def _update(self) -> None:
        title, metadata = self.choose([UNSET, None, "new title"]), self.choose([UNSET, values.raw({"m": 2})])
        await self._ask(c.update_thread(USER, self.thread.thread_id, title=title, metadata=metadata))

    async def _cancel(self, run: Acting) -> None:
        await self._ask(c.cancel_run(USER, run.row.run_id, self.choose([None, "enough"])))

    async def _answer(self) -> None:
        asked = [approval_id for run in self.runs.values() for approval_id in await self._open_approvals(run)]
        if asked:
            decision = self.choose(DECISIONS)
            value = values.raw(self.choose(VALUES[1:])) if decision == "answered" else None
            answer = c.Answer(decision=decision, value=value, comment=self.choose([None, "fine"]))
            await self._ask(c.resolve_approval(USER, self.choose(asked), answer))

    async def _expire(self) -> None:
        self.clock.time_us += 10_000_000
        await self._ask(c.expire_approvals(1))

    async def _open_approvals(self, run: Acting) -> list[str]:
        record = await self.store.record(run.row.run_id)
        return [approval.approval_id for approval in record.approvals if approval.status == "open"]

    # --- workers ------------------------------------------------------------------------------------------------

    async def _claim(self) -> None:
        started, _ = await self._ask(c.claim_runs(frozenset({AGENT}), self.choose([1, 3]), self.worker))
        for claimed in started:
            self.runs[claimed.run.run_id].begin(claimed.run)

    async def _crash(self) -> None:
        """The worker dies, and another comes."""
        if self.choose([True, False]):
            beats = await self.store.beats()
            await self._ask(c.bury(self.worker, beats[self.worker]))
        else:
            await self._ask(c.release_runs(self.worker))
        for run in self.runs.values():
            run.alive = False
        await self._hire()

    async def _hire(self) -> None:
        self.workers += 1
        self.worker = f"worker_{self.workers}"
        await self._ask(c.beat(self.worker, first=True))

    # --- agents -------------------------------------------------------------------------------------------------

    async def _speak(self, run: Acting) -> None:
        if not run.open or self.choose([False] * 5 + [True]):
            speaking = Speaking(self._name("msg"))
            run.open.append(speaking)
            await self._append(
                run, e.MessageStarted(message_id=speaking.message_id, role="assistant"), metadata={"n": 1}
            )
            return
        speaking = self.choose(run.open)
        match self.choose(["delta"] * 6 + ["part", "complete", "complete", "partial"]):
            case "delta":
                await self._append(run, *[self._delta(speaking) for _ in range(self.choose([1, 3]))])
            case "part":
                speaking.part, speaking.kind = speaking.part + 1, None
                value = values.raw({"type": "data", "value": self.choose(VALUES)})
                part = e.MessagePart(message_id=speaking.message_id, part=speaking.part, value=value)
                speaking.fold.feed(part)
                await self._append(run, part)
            case how:
                ended: dict[str, Any] = {"status": "completed"}
                if how == "partial":
                    ended = {"status": "partial", "reason": "error"}
                fold = speaking.fold
                run.open.remove(speaking)
                run.said.append(speaking.message_id)
                data = e.MessageCompleted(message_id=speaking.message_id, length=fold.length, **ended)
                await self._append(run, data, content=fold.encoded())

    def _delta(self, speaking: Speaking) -> e.Delta:
        kind = self.choose([e.MessageDelta, e.MessageDelta, e.AgentThinking])
        if kind is not speaking.kind:
            speaking.kind, speaking.part, speaking.offset = kind, speaking.part + 1, 0
        text = self.choose(TEXTS)
        delta: e.Delta = kind(message_id=speaking.message_id, part=speaking.part, offset=speaking.offset, delta=text)
        speaking.offset += len(text)
        speaking.fold.feed(delta)
        return delta

    async def _use_tool(self, run: Acting) -> None:
        if not run.actions or self.choose([True, False, False]):
            action_id = self._name("act")
            run.actions[action_id] = self.choose([False, False, True])
            data = e.ToolExecuting(
                action_id=action_id, tool="search", input=values.raw(self.choose(VALUES)), executor="server"
            )
            await self._append(run, data, private=run.actions[action_id])
            return
        action_id = self.choose(sorted(run.actions))
        private = run.actions[action_id]
        error = values.raw({"type": "Boom", "message": "boom"})
        match self.choose(["output", "output", "retry", "success", "error"]):
            case "output":
                await self._append(run, e.ToolOutput(action_id=action_id, delta=self.choose(TEXTS)), private=private)
            case "retry":
                retrying = e.AgentRetrying(
                    action_id=action_id,
                    try_=1,
                    delay_ms=500,
                    error=error,
                    expected_recovery="2027-01-15T08:00:00.500000Z",
                )
                await self._append(run, retrying, private=private)
            case how:
                del run.actions[action_id]
                ended: dict[str, Any] = {"status": how}
                ended |= {"error": error} if how == "error" else {"output": values.raw(self.choose(VALUES))}
                completed = e.ToolCompleted(action_id=action_id, duration_ms=1, **ended)
                await self._append(run, completed, private=private)

    async def _ask_person(self, run: Acting) -> None:
        data = e.ApprovalRequested(
            approval_id=self._name("apr"),
            kind=self.choose(["approval", "question"]),
            action_id=self.choose([UNSET, self._name("act")]),
            prompt="Go on?",
            input=values.raw(self.choose(VALUES)),
            input_hash="hash",
            schema=self.choose([UNSET, values.raw({"type": "string"})]),
            expires_at="2027-01-15T08:10:00.000000Z",
        )
        await self._append(run, data)

    async def _note(self, run: Acting) -> None:
        """A step, usage, state, a title, something of one's own."""
        value = values.raw(self.choose(VALUES))
        match self.choose(["step", "step", "usage", "state", "private", "title", "custom"]):
            case "step":
                kept = [message_id for message_id in run.said if self.choose([True, False])]
                await self._append(
                    run, e.StepCompleted(key=self._name("step"), output=value, inner=tuple(kept)), private=True
                )
            case "usage":
                more = self.choose([{}, {"cost": 0.25}, {"cached_input_tokens": 3, "reasoning_tokens": 1}])
                await self._append(run, e.Usage(model="m", input_tokens=7, output_tokens=2, **more))
            case "state":
                await self._append(run, e.StateChanged(key=self.choose(["a", "b"]), value=value))
            case "private":
                await self._append(run, e.StateChanged(key="hidden", value=value), private=True)
            case "title":
                await self._append(run, e.ThreadUpdated(title=self.choose(["by the agent", None]), by=AGENT))
            case _:
                await self._append(run, e.Custom(name="note", value=value))

    async def _call(self, run: Acting) -> None:
        """A child: a new one, or one that an earlier attempt had called."""
        root = run.root or run
        left = [child for child in self.runs.values() if child.row.parent_run_id == run.row.run_id and not child.alive]
        child = self.choose([None, *left])
        new = c.NewChild(agent="helper", input=values.raw(self.choose(VALUES)), key=None, max_attempts=3, timeout_s=60)
        row: RunRow = await self._ask(
            c.call_agent(
                run.row,
                root.row.attempt,
                new,
                child=None if child is None else child.row.run_id,
                reason="lost",
            )
        )
        if not row.ended:
            self.runs.setdefault(row.run_id, Acting(row, root)).begin(row)

    async def _end(self, run: Acting) -> None:
        outcomes = [
            c.Completed(values.raw(self.choose(VALUES))),
            c.Failed("Boom", "boom", retryable=True),
            c.Failed("Timeout", "too long", reason="timeout"),
            c.Cancelled(),
        ]
        await self._ask(c.end_run(run.row.run_id, self.choose(outcomes), run.fence))

    # --- how ----------------------------------------------------------------------------------------------------

    def _name(self, prefix: str) -> str:
        self.names += 1
        return f"{prefix}_{self.names}"

    async def _append(
        self,
        run: Acting,
        *datas: e.Data,
        private: bool = False,
        metadata: Json = None,
        content: bytes | None = None,
    ) -> None:
        drafts = [
            e.Draft(
                data=data,
                run_id=run.row.run_id,
                attempt=run.row.attempt,
                private=private,
                metadata=None if metadata is None else values.raw(metadata),
                content=content,
            )
            for data in datas
        ]
        await self._ask(Append(run.row.run_id, run.fence.attempt, run.fence.epoch, drafts))

    async def _ask(self, entry: Append | Command) -> Any:
        self.clock.time_us += 1_001
        (outcome,) = (await self.store.commit([entry])).outcomes
        if isinstance(outcome, RunstoneError):
            raise outcome
        await self._look()
        return outcome

    async def _look(self) -> None:
        """Which runs have ended meanwhile."""
        for run in self.runs.values():
            row = await self.store.run_row(run.row.run_id)
            assert row is not None
            run.row = row
            run.alive = run.alive and not row.ended


class Tape:
    """Dice that are read from bytes, so that Hypothesis can make and shrink a whole history in one draw.

    Each step reads its own bytes, and zeros where they do not suffice: the first thing of every choice is the plainest.
    """

    STEP_BYTES = 12

    def __init__(self, tape: bytes) -> None:
        self._tape = tape
        self._at = self._end = 0

    def next_step(self) -> bool:
        self._at = self._end
        self._end = min(self._at + self.STEP_BYTES, len(self._tape))
        return self._at < self._end

    def choose(self, options: Sequence[Any]) -> Any:
        byte = self._tape[self._at] if self._at < self._end else 0
        self._at += 1
        return options[byte % len(options)]


def tapes(steps: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=steps * Tape.STEP_BYTES, max_size=steps * Tape.STEP_BYTES)
