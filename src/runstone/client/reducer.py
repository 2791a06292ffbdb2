"""The fold of a thread's events into what people see: messages, actions, runs, approvals, state and title.

Pure: no clock, no socket. At every `seq` it shows what the server's resources say there.
"""

from __future__ import annotations

from runstone.client.rules import RULES, Known, Retrying, change, content
from runstone.client.stream import Event
from runstone.limits import PREVIEW_CHARS_MAX
from runstone.projection import ACTIVITY
from runstone.resources import Action, Approval, Message, Preview, Run, Thread
from runstone.states import FAMILY_EVENTS, TERMINAL_EVENTS, Member, standing
from runstone.values import Json

_BUSY = ("running", "waiting", "queued")  # a thread is the first of these that one of its root runs is


class ThreadView:
    """What the events of a thread add up to. Feed it each event once, in order; read it at any moment.

    It takes the stream of a thread or of a run, filtered or not: what began before the first event that it was
    fed, and what is told by types that it is not fed, is not in it. What a read returns never changes afterwards.
    `copy.deepcopy` keeps a view as it is; either copy goes on from its `seq`.

    A private tool's call is there in outline; its events do not tell how it ended, so it reads as a success.
    """

    def __init__(self) -> None:
        self.seq = 0  # of the last event: where to resume
        self.thread_id: str | None = None  # known from the first event on
        self._known = Known()
        self._families: dict[str, set[str]] = {}  # ids of unfinished runs, by that of their root

    def feed(self, event: Event) -> None:
        """Raises ValueError for an event of another thread, and where one is fed again, too late, or is missing."""
        if event.seq <= self.seq:
            raise ValueError(f"Event {event.seq} came after {self.seq}: feed each event once, in order.")
        if event.thread_id != self.thread_id:
            if self.thread_id is not None:
                raise ValueError(f"An event of {event.thread_id} came into the view of {self.thread_id}.")
            self.thread_id = event.thread_id
        known = self._known
        if known.retrying:
            self._recover(event)
        if (rule := RULES.get(event.type)) is not None:
            rule(known, event)
        if event.type in FAMILY_EVENTS:
            self._settle(event)
        if event.type in ACTIVITY and known.thread is not None:
            known.thread = known.thread.model_copy(update={"updated_at": event.time})
        self.seq = event.seq

    # --- what people see

    @property
    def thread(self) -> Thread | None:
        """None once it is deleted, and in a stream that does not tell of it."""
        known = self._known
        if known.thread is None or known.deleted:
            return None
        busy = {run.status for run in known.runs.values() if run.parent_run_id is None}
        status = next((status for status in _BUSY if status in busy), "idle")
        now = {"status": status, "last_message": self._preview(), "head": self.seq}
        return known.thread.model_copy(update=now)

    @property
    def state(self) -> dict[str, Json]:
        """The thread's public state."""
        return dict(self._known.state)

    def messages(self, *, run_id: str | None = None, children: bool = False, superseded: bool = False) -> list[Message]:
        """Oldest first, with what is said so far; what children said, and what is superseded, only on demand."""
        return [
            self._so_far(message)
            for message in self._known.messages.values()
            if (superseded or message.status != "superseded") and self._is_of(message.run_id, run_id, children)
        ]

    def message(self, message_id: str) -> Message | None:
        found = self._known.messages.get(message_id)
        return None if found is None else self._so_far(found)

    def actions(self, *, run_id: str | None = None, children: bool = False) -> list[Action]:
        """Tool calls, oldest first; those of children only on demand."""
        return [action for action in self._known.actions.values() if self._is_of(action.run_id, run_id, children)]

    def live_output(self, action_id: str) -> str:
        """What a tool wrote while it worked, so far."""
        return "".join(self._known.live_output.get(action_id, ()))

    def runs(self) -> list[Run]:
        """Root runs and children, in the order in which they were queued."""
        return list(self._known.runs.values())

    def run(self, run_id: str) -> Run | None:
        return self._known.runs.get(run_id)

    def approvals(self) -> list[Approval]:
        """Questions to people, oldest first, answered ones too."""
        return list(self._known.approvals.values())

    def retrying(self) -> list[Retrying]:
        """What is degraded, and until when, as far as one knows."""
        return list(self._known.retrying.values())

    # --- how

    def _is_of(self, owner_id: str | None, run_id: str | None, children: bool) -> bool:
        """Whether something of that run is shown to who asks so."""
        owner = self._known.runs.get(owner_id or "")
        if run_id is None:
            return children or owner is None or owner.parent_run_id is None
        while children and owner is not None and owner_id != run_id:
            owner_id = owner.parent_run_id
            owner = self._known.runs.get(owner_id or "")
        return owner_id == run_id

    def _so_far(self, message: Message) -> Message:
        streaming = self._known.streaming.get(message.message_id)
        if streaming is None:
            return message
        return message.model_copy(update=content(streaming.fold) | {"last_seq": self.seq})

    def _preview(self) -> Preview | None:
        for message in reversed(self._known.messages.values()):
            if message.status != "superseded" and self._is_of(message.run_id, None, children=False):
                shown = self._so_far(message)
                members = {name: getattr(shown, name) for name in Preview.model_fields}
                return Preview(**members | {"content": shown.content[:PREVIEW_CHARS_MAX]})
        return None

    def _settle(self, event: Event) -> None:
        """Who waits in the run's family, and who no longer does."""
        runs = self._known.runs
        run = runs.get(event.run_id or "")
        if run is None:
            return
        unfinished = self._families.setdefault(run.root_run_id, set())
        if run.ended:
            unfinished.discard(run.run_id)
        else:
            unfinished.add(run.run_id)
        family = {
            id: Member(runs[id].parent_run_id, runs[id].status, len(self._known.asking.get(id, ())))
            for id in unfinished
        }
        for id, status in standing(family).items():
            if status != family[id].status:
                change(runs, id, status=status)

    def _recover(self, event: Event) -> None:
        """Takes back the notices that the event makes old: of the same call, or of the run, something happens."""
        calls = {None, event.data.get("action_id"), event.data.get("retry_of")}
        anew = event.type == "agent_started" or event.type in TERMINAL_EVENTS
        retrying = self._known.retrying
        for run_id, action_id in [key for key in retrying if key[0] == event.run_id]:
            if anew or action_id in calls:
                del retrying[run_id, action_id]
