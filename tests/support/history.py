"""What clients were shown, byte for byte, and whether a log keeps every promise about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from runstone.states import TERMINAL_EVENTS


class Violation(AssertionError):
    """A promise was broken."""


class Seen(msgspec.Struct, frozen=True):
    """One event as it came, with what is needed to place it."""

    seq: int
    type: str
    run_id: str | None
    attempt: int | None
    data: dict[str, Any]
    wire: bytes


class _Envelope(msgspec.Struct):
    seq: int
    type: str
    time: str
    user_id: str
    thread_id: str
    data: dict[str, Any]
    run_id: str | None = None
    attempt: int | None = None


def parse(wire: bytes) -> Seen:
    found = msgspec.json.decode(wire, type=_Envelope)
    return Seen(found.seq, found.type, found.run_id, found.attempt, found.data, wire)


class Place:
    """One client's place in one thread: it takes 1, 2, 3 … and nothing else, however often it reconnects."""

    def __init__(self, history: History, client: str, thread_id: str) -> None:
        self._history = history
        self._client = client
        self.thread_id = thread_id
        self.cursor = 0

    def take(self, wire: bytes) -> None:
        event = parse(wire)
        if event.seq != self.cursor + 1:
            raise Violation(f"{self._client} was at {self.cursor} of {self.thread_id} and was shown {event.seq}")
        self.cursor = event.seq
        self._history.saw(self._client, self.thread_id, event.seq, wire)


class History:
    """Everything that any client was shown."""

    def __init__(self) -> None:
        self._threads: dict[str, dict[int, bytes]] = defaultdict(dict)
        self.shown = 0
        self.closed = False  # from then on nothing counts: nobody has it

    def saw(self, client: str, thread_id: str, seq: int, wire: bytes) -> None:
        if self.closed:
            return
        known = self._threads[thread_id].setdefault(seq, wire)
        if known != wire:
            raise Violation(f"{client} was shown another event {seq} of {thread_id} than others:\n{wire!r}\n{known!r}")
        self.shown += 1

    def compare(self, thread_id: str, log: Sequence[bytes]) -> None:
        """Every event that anyone saw is in the log, at its place, with its bytes."""
        for seq, wire in sorted(self._threads[thread_id].items()):
            if seq > len(log):
                raise Violation(
                    f"event {seq} of {thread_id} was shown and is not in the log ({len(log)} events):\n{wire!r}"
                )
            if log[seq - 1] != wire:
                raise Violation(
                    f"event {seq} of {thread_id} was shown as\n{wire!r}\nand is in the log as\n{log[seq - 1]!r}"
                )

    def forget(self, thread_id: str) -> None:
        self._threads.pop(thread_id, None)


class RunHistory:
    """One run, as its events tell it; fed in order, it refuses what no run may do."""

    def __init__(self, run_id: str) -> None:
        self.run_id = run_id
        self.queued: dict[str, Any] = {}  # what it was queued with
        self.attempt = 0
        self.left: list[str] = []  # what became of each attempt before the newest: lost or released
        self.worker: str | None = None  # of the newest attempt
        self.end: Seen | None = None
        self.cancelled = False
        self.messages: dict[str, str] = {}  # id: text, as far as it was said
        self.status: dict[str, str] = {}  # id: completed, partial or superseded, for messages that are not open
        self.actions: dict[str, str] = {}  # id: pending, success, error or interrupted
        self.approvals: dict[str, str] = {}  # id: open, or the decision
        self.questions: dict[str, dict[str, Any]] = {}  # id: what was asked
        self.values: dict[str, Any] = {}  # id: the answer to a question
        self._offsets: dict[tuple[str, int], int] = {}
        self._superseded_at = 0  # the seq at which the newest attempt was left

    @property
    def waiting(self) -> bool:
        return "open" in self.approvals.values()

    def texts(self) -> list[str]:
        """What it said and still says, in order."""
        return [text for message_id, text in self.messages.items() if self.status.get(message_id) != "superseded"]

    def feed(self, event: Seen) -> None:
        if self.end is not None:
            raise Violation(f"{event.type} follows the end of {self.run_id}:\n{event.wire!r}")
        if self._superseded_at and event.type != "agent_started":
            raise Violation(f"{event.type} comes between two attempts of {self.run_id}:\n{event.wire!r}")
        if event.attempt is not None and event.type != "agent_started" and event.attempt != self.attempt:
            raise Violation(f"{event.type} of attempt {event.attempt} comes in attempt {self.attempt}:\n{event.wire!r}")
        feed = getattr(self, f"_{event.type}", None)
        if feed is not None:
            feed(event.data)
        if event.type == "agent_started":
            self._started(event)
        elif event.type == "attempt_superseded":
            self._superseded(event)
        elif event.type in TERMINAL_EVENTS:
            self._ended(event)

    def _run_queued(self, data: dict[str, Any]) -> None:
        if self.queued:
            raise Violation(f"{self.run_id} was queued twice")
        self.queued = data

    def _started(self, event: Seen) -> None:
        """Attempts are 1, 2, 3 …; right before each but the first stands what became of the one before."""
        if event.attempt != self.attempt + 1:
            raise Violation(f"attempt {event.attempt} of {self.run_id} follows attempt {self.attempt}")
        if self._superseded_at != (event.seq - 1 if self.attempt else 0):
            raise Violation(f"attempt {event.attempt} of {self.run_id} starts beside its attempt_superseded")
        self.attempt += 1
        self.worker = event.data["worker"]
        self._superseded_at = 0

    def _superseded(self, event: Seen) -> None:
        if event.data["attempt"] != self.attempt:
            raise Violation(f"{event.data} follows attempt {self.attempt} of {self.run_id}")
        if pending := [action for action, status in self.actions.items() if status == "pending"]:
            raise Violation(f"attempt {self.attempt} of {self.run_id} leaves {pending} under way")
        for message_id in event.data["messages"]:
            if message_id not in self.messages or self.status.get(message_id) == "superseded":
                raise Violation(f"{event.data} supersedes what {self.run_id} does not say")
            self.status[message_id] = "superseded"
        if still_open := self.messages.keys() - self.status.keys():
            raise Violation(f"attempt {self.attempt} of {self.run_id} leaves {still_open} open")
        self.left.append(event.data["reason"])
        self._superseded_at = event.seq

    def _cancel_requested(self, _data: dict[str, Any]) -> None:
        if self.cancelled:
            raise Violation(f"{self.run_id} was cancelled twice")
        self.cancelled = True

    def _message_started(self, data: dict[str, Any]) -> None:
        self.messages[data["message_id"]] = ""

    def _message_delta(self, data: dict[str, Any]) -> None:
        self._continue(data)
        self.messages[data["message_id"]] += data["delta"]

    def _agent_thinking(self, data: dict[str, Any]) -> None:
        self._continue(data)

    def _continue(self, data: dict[str, Any]) -> None:
        if data["message_id"] not in self.messages or data["message_id"] in self.status:
            raise Violation(f"{self.run_id} speaks in a message that is not open: {data}")
        key = data["message_id"], data["part"]
        if self._offsets.get(key, 0) != data["offset"]:
            raise Violation(f"text is missing before {data} in {self.run_id}")
        self._offsets[key] = data["offset"] + len(data["delta"])

    def _message_completed(self, data: dict[str, Any]) -> None:
        if data["message_id"] in self.status:
            raise Violation(f"{data['message_id']} was closed twice")
        if data["length"] != len(self.messages[data["message_id"]]):
            raise Violation(f"{data} is not as long as what was said")
        self.status[data["message_id"]] = data["status"]

    def _tool_executing(self, data: dict[str, Any]) -> None:
        self.actions[data["action_id"]] = "pending"

    def _tool_completed(self, data: dict[str, Any]) -> None:
        if self.actions.get(data["action_id"]) != "pending":
            raise Violation(f"{data['action_id']} ended and was not under way")
        self.actions[data["action_id"]] = "private" if data.get("private") else data["status"]

    def _approval_requested(self, data: dict[str, Any]) -> None:
        self.approvals[data["approval_id"]] = "open"
        self.questions[data["approval_id"]] = data

    def _approval_resolved(self, data: dict[str, Any]) -> None:
        if self.approvals.get(data["approval_id"]) != "open":
            raise Violation(f"{data['approval_id']} was decided and was not open")
        self.approvals[data["approval_id"]] = data["decision"]
        self.values[data["approval_id"]] = data.get("value")

    def _ended(self, event: Seen) -> None:
        left = [*(self.messages.keys() - self.status.keys())]
        left += [action for action, status in self.actions.items() if status == "pending"]
        left += [approval for approval, status in self.approvals.items() if status == "open"]
        if left:
            raise Violation(f"{event.type} of {self.run_id} leaves {left} open")
        asked = self.cancelled or event.data.get("reason") == "parent"
        if asked != (event.type == "agent_cancelled"):
            raise Violation(f"{self.run_id} ended as {event.type}; a cancel was asked for: {self.cancelled}")
        self.end = event


def runs_of(log: Iterable[bytes]) -> dict[str, RunHistory]:
    """The runs of one thread's log, each checked; raises Violation where `seq` has a gap or time falls."""
    runs: dict[str, RunHistory] = {}
    last, time = 0, ""
    for wire in log:
        event = parse(wire)
        committed = msgspec.json.decode(wire, type=_Envelope).time
        if event.seq != last + 1 or committed < time:
            raise Violation(f"the log goes from {last} at {time} to {event.seq} at {committed}")
        last, time = event.seq, committed
        if event.run_id is not None:
            runs.setdefault(event.run_id, RunHistory(event.run_id)).feed(event)
    return runs
