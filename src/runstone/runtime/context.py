"""The run as an agent sees it: everything that it says and does goes through here into the log."""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import UNSET, Raw

from runstone import events as e
from runstone import values
from runstone.errors import Invalid
from runstone.events import PartialReason
from runstone.failpoints import hit
from runstone.limits import (
    INPUT_BYTES_MAX,
    KEY_CHARS_MAX,
    MODEL_CHARS_MAX,
    NAME_CHARS_MAX,
    TITLE_CHARS_MAX,
)
from runstone.resources import Action as ActionResource
from runstone.resources import Listing
from runstone.resources import Message as MessageResource
from runstone.runtime import approvals
from runstone.runtime.action import Action, acting
from runstone.runtime.approvals import APPROVAL_S, Decision
from runstone.runtime.attempt import Attempt, began_here, gathered, gathering
from runstone.runtime.bounds import bounded, counted, sized
from runstone.runtime.message import Message
from runstone.runtime.results import Results
from runstone.values import Json
from runstone.views import ListQuery

_current: ContextVar[Run | None] = ContextVar("runstone.run", default=None)

T = TypeVar("T")
OtherExecutor: TypeAlias = Literal["client", "provider", "agent"]  # what the server itself runs is a tool
Caller: TypeAlias = "Callable[[Attempt, str, object, str | None], Awaitable[Any]]"

HISTORY_MAX = 1_000  # messages, and actions, that `history` returns at most: the newest


class History(msgspec.Struct, frozen=True):
    """What was in the thread before a run; oldest first."""

    messages: list[MessageResource]
    actions: list[ActionResource]


class Run:
    """One execution of an agent, as the agent sees it."""

    def __init__(self, attempt: Attempt, call: Caller, prompt: str | None) -> None:
        self._attempt = attempt
        self._row = attempt.row
        self._rows = attempt.rows
        self._outbox = attempt.outbox
        self._call = call
        self._prompt = prompt
        self._open: list[Message] = []
        self._thought: Message | None = None  # opened by `think`; the next message of the run continues it
        self._steps: set[str] = set()  # keys used in this attempt
        self.state = State(attempt)
        self.stop_reason: PartialReason = "error"  # why what is open when the agent is stopped stays partial
        self.said = False  # whether the run wrote any message; thoughts alone are none

    @staticmethod
    def current() -> Run | None:
        """The run that the calling code is a part of."""
        return _current.get()

    @property
    def id(self) -> str:
        return self._row.run_id

    @property
    def thread_id(self) -> str:
        return self._row.thread_id

    @property
    def user(self) -> str:
        """The id of the thread's owner."""
        return self._row.user_id

    @property
    def attempt(self) -> int:
        return self._row.attempt

    @property
    def deadline(self) -> datetime:
        """When the run will be ended as timed out, if it never waits for people again; UTC."""
        return self._attempt.deadline()

    @property
    def metadata(self) -> dict[str, Json]:
        """The caller's own, as given at the start."""
        found = values.decode(self._row.metadata)
        assert isinstance(found, dict)
        return found

    @property
    def prompt(self) -> str | None:
        """The text of the message that started the run."""
        return self._prompt

    # --- what it says -----------------------------------------------------------------------------------

    async def think(self, text: str) -> None:
        """Reasoning; buffered. Outside a message it opens the one that the run says next."""
        if not self._open:
            self._thought = await self._begin()
        await self._open[-1].think(text)

    @asynccontextmanager
    async def message(self, *, metadata: dict[str, Json] | None = None) -> AsyncIterator[Message]:
        """A message; it exists from the moment of entry, and is complete on exit, partial after an error."""
        self.said = True
        message = await self._continue(metadata)
        try:
            yield message
        except BaseException as error:
            await message.close(self._reason(error))
            raise
        await message.close(None)

    async def say(self, text: str) -> None:
        """A whole message in one go."""
        async with self.message() as message:
            await message.write(text)

    async def flush(self) -> None:
        """Returns when everything said so far is committed."""
        await self._outbox.flush()

    # --- what it does -----------------------------------------------------------------------------------

    @asynccontextmanager
    async def action(
        self,
        name: str,
        input: Json = None,
        *,
        call_id: str | None = None,
        executor: OtherExecutor = "agent",
        private: bool = False,
    ) -> AsyncIterator[Action]:
        """Records what somebody else runs: pending from entry, a success on exit, an error if the block raises.

        The block runs, and is recorded, in every attempt: only calls of tools are found again.
        """
        if executor not in get_args(OtherExecutor):
            raise Invalid.at("executor", f"must be one of {', '.join(get_args(OtherExecutor))}")
        encoded = sized("input", input, INPUT_BYTES_MAX)
        recorded = acting(self._attempt, name, encoded, executor=executor, private=private, call_id=call_id)
        async with recorded as action:
            yield action

    async def step(self, key: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """What the function returns, recorded: a later attempt gets the record, and does not call it again.

        What is said inside stands across attempts. The result has to be JSON, and comes back as the function's return
        annotation says. Each key makes one step in an attempt: else ValueError. A slow sync function holds everyone up:
        `await run.step("parse", asyncio.to_thread, parse, path)`.
        """
        bounded("key", key, KEY_CHARS_MAX)
        key = values.mend(key)
        if key in self._steps:
            raise ValueError(f"the step {key!r} was made before in this run; give every step a key of its own")
        self._steps.add(key)
        result = Results.of(function)
        recorded = self._attempt.replay.step(key)
        if recorded is not None:
            inner = msgspec.json.decode(recorded.inner, type=list[str])
            for id in inner:
                gathered(id)
            self.said = self.said or await self._was_said(inner)
            return result.decode(bytes(recorded.output))
        with gathering() as inner:
            try:
                returned = function(*args, **kwargs)
                output = result.encode(await returned if inspect.isawaitable(returned) else returned)
            except BaseException:
                self._steps.discard(key)  # it was not made: it may be tried again
                raise
            for message in [message for message in self._open if message.message_id in inner]:
                await message.close(None)
        hit("step_ended")
        data = e.StepCompleted(key=key, output=Raw(output), inner=tuple(inner) if inner else UNSET)
        await self._attempt.outbox.append(self._attempt.draft(data, private=True))
        return result.decode(output)

    async def call(self, agent: str, input: object = None, *, key: str | None = None) -> Any:
        """Runs another agent as a part of this run; what it returns. Raises RunFailed if it does not complete.

        A later attempt goes on with the same run, or gets its output if it has ended.
        """
        return await self._call(self._attempt, agent, input, _key(key))

    async def approve(
        self, prompt: str, input: Json = None, *, expires_in_s: float = APPROVAL_S, key: str | None = None
    ) -> Decision:
        """Asks a person, and waits: true only when they approve. Until then the run takes no slot, and no time."""
        return await approvals.approve(self._attempt, prompt, input, expires_in_s=expires_in_s, key=_key(key))

    async def ask(
        self, prompt: str, schema: Any = str, *, expires_in_s: float = APPROVAL_S, key: str | None = None
    ) -> Any:
        """A person's answer, of the type that `schema` names. Raises ApprovalDenied where nobody gives one.

        `schema` is a type as in an annotation, or a JSON Schema; the answer to that is plain JSON.
        """
        return await approvals.ask(self._attempt, prompt, schema, expires_in_s=expires_in_s, key=_key(key))

    async def emit(self, name: str, value: Json = None) -> None:
        """An event of the agent's own; buffered."""
        bounded("name", name, NAME_CHARS_MAX)
        await self._outbox.write(self._attempt.draft(e.Custom(name=name, value=sized("value", value))))

    async def usage(
        self,
        model: str,
        *,
        input_tokens: int,
        output_tokens: int,
        cached_input_tokens: int | None = None,
        reasoning_tokens: int | None = None,
        cost: float | None = None,
        provider: str | None = None,
        raw: Json = None,
    ) -> None:
        """What one model call used; buffered. `raw` is the provider's own record, kept as it came."""
        bounded("model", model, MODEL_CHARS_MAX)
        counted("input_tokens", input_tokens)
        counted("output_tokens", output_tokens)
        counted("cached_input_tokens", cached_input_tokens or 0)
        counted("reasoning_tokens", reasoning_tokens or 0)
        if cost is not None and not math.isfinite(cost):
            raise Invalid.at("cost", "must be a finite number")
        data = e.Usage(
            provider=UNSET if provider is None else provider,
            model=model,
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            cached_input_tokens=UNSET if cached_input_tokens is None else cached_input_tokens,
            reasoning_tokens=UNSET if reasoning_tokens is None else reasoning_tokens,
            cost=UNSET if cost is None else cost,
        )
        await self._outbox.write(self._attempt.draft(data, raw=None if raw is None else values.raw(raw)))

    async def set_title(self, title: str) -> None:
        """Names the thread."""
        bounded("title", title, TITLE_CHARS_MAX)
        await self._outbox.append(self._attempt.draft(e.ThreadUpdated(title=title, by=self._row.agent)))

    async def history(self, limit: int = HISTORY_MAX) -> History:
        """The newest messages and actions before this run, the same in every attempt; `limit` counts each."""
        if not 1 <= limit <= HISTORY_MAX:
            raise Invalid.at("limit", f"must be between 1 and {HISTORY_MAX}")
        return History(await self._newest(self._rows.messages, limit), await self._newest(self._rows.actions, limit))

    # --- for the rest of the runtime ----------------------------------------------------------------------

    async def close_open(self) -> None:
        """Closes what is open after a normal return."""
        for message in list(self._open):
            await message.close(None)

    async def _newest(self, read: Callable[[str, ListQuery], Awaitable[Listing[T]]], limit: int) -> list[T]:
        """What a list has of before this run, its newest `limit`, oldest first; a page is bounded in bytes too."""
        query = ListQuery(
            limit=limit, descending=True, thread_id=self.thread_id, before_seq=self._row.first_seq, private=True
        )
        found: list[T] = []
        while True:
            page = await read(self.user, query)
            found += page.items
            if page.next_cursor is None or len(found) >= limit:
                return found[::-1]
            query = msgspec.structs.replace(query, cursor=page.next_cursor, limit=limit - len(found))

    async def _begin(self, metadata: dict[str, Json] | None = None) -> Message:
        message = Message(self._attempt, self._closed)
        started = e.MessageStarted(message_id=message.message_id, role="assistant")
        draft = self._attempt.draft(started, metadata=None if metadata is None else values.raw(metadata))
        draft.payload()  # what is too large to begin is refused before anyone counts on it
        gathered(message.message_id)
        self._open.append(message)
        await self._outbox.append(draft)
        return message

    async def _continue(self, metadata: dict[str, Json] | None) -> Message:
        thought = self._thought
        if thought is not None and not began_here(thought.message_id):
            return await self._begin(metadata)  # it stands or falls with the step; the thought stays outside
        self._thought = None
        return thought if thought is not None and metadata is None else await self._begin(metadata)

    async def _was_said(self, ids: Iterable[str]) -> bool:
        """Whether an earlier attempt wrote any message among these; thoughts alone are none."""
        for id in ids:
            message = await self._rows.message(self.user, id) if id.startswith("msg_") else None
            if message is not None and not all(part["type"] == "reasoning" for part in message.parts):
                return True
        return False

    def _closed(self, message: Message) -> None:
        self._open.remove(message)
        if self._thought is message:
            self._thought = None

    def _reason(self, error: BaseException) -> PartialReason:
        return self.stop_reason if isinstance(error, asyncio.CancelledError) else "error"


class State:
    """The thread's state, shared by its runs: whole values by key, the last one wins."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    async def get(self, key: str, default: Json = None) -> Json:
        """The latest value."""
        attempt = self._attempt
        await attempt.outbox.flush()
        found, _ = await attempt.rows.state(attempt.row.user_id, attempt.row.thread_id, private=True)
        return found.get(key, default)

    async def set(self, key: str, value: Json, *, public: bool = False) -> None:
        """Committed on return; null deletes. Clients see the values of public keys only."""
        bounded("key", key, KEY_CHARS_MAX)
        data = e.StateChanged(key=key, value=sized("value", value))
        await self._attempt.outbox.append(self._attempt.draft(data, private=not public))


@contextmanager
def entered(run: Run) -> Iterator[None]:
    """Makes a run the current one of the calling task; what it records is its own."""
    token = _current.set(run)
    try:
        with gathering(alone=True):
            yield
    finally:
        _current.reset(token)


def _key(key: str | None) -> str | None:
    """A caller's own name for a call, as it is stored."""
    if key is None:
        return None
    bounded("key", key, KEY_CHARS_MAX)
    return values.mend(key)
