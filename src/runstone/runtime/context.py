"""The run as an agent sees it: everything that it says and does goes through here into the log."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import datetime, timedelta
from types import TracebackType
from typing import Literal, TypeVar

import msgspec
from msgspec import UNSET, Raw

from runstone import events as e
from runstone import values
from runstone.clock import Clock, to_datetime, to_rfc3339
from runstone.errors import Invalid, TooLarge, ToolError
from runstone.events import Draft, PartialReason
from runstone.ids import new_id
from runstone.limits import (
    ERROR_CHARS_MAX,
    INPUT_BYTES_MAX,
    KEY_CHARS_MAX,
    MESSAGE_BYTES_MAX,
    MODEL_CHARS_MAX,
    NAME_CHARS_MAX,
    OUTPUT_BYTES_MAX,
    TITLE_CHARS_MAX,
    TOKENS_MAX,
)
from runstone.log import Outbox
from runstone.messages import MessageFold, text_of
from runstone.resources import Action as ActionResource
from runstone.resources import Listing
from runstone.resources import Message as MessageResource
from runstone.store import RunRow
from runstone.values import Json
from runstone.views import ListQuery, Rows

_current: ContextVar[Run | None] = ContextVar("runstone.run", default=None)

T = TypeVar("T")

HISTORY_MAX = 1_000  # messages, and actions, that `history` returns at most: the newest


class History(msgspec.Struct, frozen=True):
    """What was in the thread before a run; oldest first."""

    messages: list[MessageResource]
    actions: list[ActionResource]


class Run:
    """One execution of an agent, as the agent sees it."""

    def __init__(
        self, row: RunRow, outbox: Outbox, rows: Rows, clock: Clock, deadline: datetime, prompt: str | None
    ) -> None:
        self._row = row
        self._outbox = outbox
        self._rows = rows
        self._clock = clock
        self._deadline = deadline
        self._prompt = prompt
        self._open: list[Message] = []
        self._thought: Message | None = None  # opened by `think`; the next message of the run continues it
        self.state = State(self)
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
        """When the run will be ended as timed out; UTC."""
        return self._deadline

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
        executor: e.Executor = "agent",
        private: bool = False,
    ) -> AsyncIterator[Action]:
        """Records what somebody else runs: pending from entry, a success on exit, an error if the block raises."""
        _bounded("name", name, NAME_CHARS_MAX)
        encoded = values.encode(input)
        if len(encoded) > INPUT_BYTES_MAX:
            raise TooLarge(f"The input of {name} is {len(encoded)} bytes; the most is {INPUT_BYTES_MAX}.")
        action = Action(self, name, self._clock, private)
        executing = e.ToolExecuting(
            action_id=action.action_id,
            tool=name,
            input=Raw(encoded),
            executor=executor,
            call_id=UNSET if call_id is None else call_id,
        )
        await self._outbox.append(self._draft(executing, private=private))
        try:
            yield action
        except asyncio.CancelledError:
            await self._outbox.write(self._draft(action.completed("interrupted"), private=private))
            raise
        except (Exception, SystemExit) as error:  # one that leaves a task would take the whole process along
            failure = _tool_error(error)
            action.fail(failure)
            await self._outbox.append(self._draft(action.completed("error"), private=private))
            raise failure from error
        await self._outbox.append(self._draft(action.completed("success"), private=private))

    async def emit(self, name: str, value: Json = None) -> None:
        """An event of the agent's own; buffered."""
        _bounded("name", name, NAME_CHARS_MAX)
        await self._outbox.write(self._draft(e.Custom(name=name, value=_sized("value", value))))

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
        _bounded("model", model, MODEL_CHARS_MAX)
        _counted("input_tokens", input_tokens)
        _counted("output_tokens", output_tokens)
        _counted("cached_input_tokens", cached_input_tokens or 0)
        _counted("reasoning_tokens", reasoning_tokens or 0)
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
        await self._outbox.write(self._draft(data, raw=None if raw is None else values.raw(raw)))

    async def set_title(self, title: str) -> None:
        """Names the thread."""
        _bounded("title", title, TITLE_CHARS_MAX)
        await self._outbox.append(self._draft(e.ThreadUpdated(title=title, by=self._row.agent)))

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

    def _draft(
        self,
        data: e.Data,
        *,
        metadata: Raw | None = None,
        raw: Raw | None = None,
        private: bool = False,
        content: bytes | None = None,
    ) -> Draft:
        return Draft(
            data=data,
            run_id=self._row.run_id,
            attempt=self._row.attempt,
            metadata=metadata,
            raw=raw,
            private=private,
            content=content,
        )

    async def _begin(self, metadata: dict[str, Json] | None = None) -> Message:
        message = Message(self)
        started = e.MessageStarted(message_id=message.message_id, role="assistant")
        self._open.append(message)
        await self._outbox.append(self._draft(started, metadata=None if metadata is None else values.raw(metadata)))
        return message

    async def _continue(self, metadata: dict[str, Json] | None) -> Message:
        thought, self._thought = self._thought, None
        return thought if thought is not None and metadata is None else await self._begin(metadata)

    def _reason(self, error: BaseException) -> PartialReason:
        return self.stop_reason if isinstance(error, asyncio.CancelledError) else "error"


class Message:
    """A message that is being written."""

    def __init__(self, run: Run) -> None:
        self.message_id = new_id("msg")
        self._run = run
        self._fold = MessageFold()
        self._kind: type[e.Delta] | None = None  # of the part that is being written
        self._part = -1
        self._offset = 0
        self._bytes = 0
        self._held = ""  # a high surrogate that waits for its other half
        self._closed = False

    @property
    def text(self) -> str:
        """What was written so far, without the reasoning."""
        return text_of(self._fold.parts())

    async def write(self, delta: str) -> None:
        """Text; buffered."""
        await self._delta(e.MessageDelta, delta)

    async def think(self, delta: str) -> None:
        """Reasoning; buffered."""
        await self._delta(e.AgentThinking, delta)

    async def part(self, value: dict[str, Json]) -> None:
        """A whole part: `{"type": "file" | "data" | "source" | "action", …}`."""
        if value.get("type") not in {"file", "data", "source", "action"}:
            raise Invalid.at("type", "a whole part is a file, data, source or action")
        await self._end_part()
        self._part += 1
        data = e.MessagePart(message_id=self.message_id, part=self._part, value=_sized("part", value))
        self._fold.feed(data)
        await self._outbox().append(self._run._draft(data))

    async def close(self, reason: PartialReason | None) -> None:
        """Completes the message; with a reason it stays partial. A barrier; safe twice."""
        if self._closed:
            return
        await self._end_part()
        self._closed = True
        self._run._open.remove(self)
        if self._run._thought is self:
            self._run._thought = None
        data = e.MessageCompleted(
            message_id=self.message_id,
            status="completed" if reason is None else "partial",
            reason=UNSET if reason is None else reason,
            length=self._fold.length,
        )
        await self._outbox().append(self._run._draft(data, content=self._fold.encoded()))

    async def _delta(self, kind: type[e.AgentThinking | e.MessageDelta], delta: str) -> None:
        if not isinstance(delta, str):
            raise TypeError(f"a delta is text, not {type(delta).__name__}")
        if self._closed:
            raise RuntimeError("the message is complete; open another with run.message()")
        if kind is self._kind and not self._held and delta.isascii() and len(delta) <= e.DELTA_CHARS_MAX:
            if self._put(kind, delta, len(delta)):  # the way of nearly every token, and so the short one
                await self._outbox().pause()
            return
        if kind is not self._kind:
            await self._end_part()
            self._kind, self._part, self._offset = kind, self._part + 1, 0
        if self._held or not delta.isascii():
            delta = self._whole(delta)
            if self._held and not delta:
                return
        await self._send(kind, delta)

    def _whole(self, delta: str) -> str:
        """The text up to a trailing high surrogate, mended."""
        text, self._held = self._held + delta, ""
        if text and "\ud800" <= text[-1] <= "\udbff":
            text, self._held = text[:-1], text[-1]
        return values.mend(text)

    async def _send(self, kind: type[e.AgentThinking | e.MessageDelta], text: str) -> None:
        for start in range(0, len(text) or 1, e.DELTA_CHARS_MAX):
            piece = text[start : start + e.DELTA_CHARS_MAX] if len(text) > e.DELTA_CHARS_MAX else text
            if self._put(kind, piece, len(piece) if piece.isascii() else len(piece.encode())):
                await self._outbox().pause()

    def _put(self, kind: type[e.AgentThinking | e.MessageDelta], piece: str, size: int) -> bool:
        self._bytes += size
        if self._bytes > MESSAGE_BYTES_MAX:
            raise TooLarge(f"A message takes at most {MESSAGE_BYTES_MAX} bytes.", remedy="Begin another message.")
        offset, self._offset = self._offset, self._offset + len(piece)
        self._fold.add(kind, self._part, piece)
        return self._outbox().put(kind, self.message_id, self._part, offset, piece)

    async def _end_part(self) -> None:
        if self._held and self._kind is not None:
            self._held = ""
            await self._send(self._kind, "\ufffd")  # type: ignore[arg-type]
        self._kind = None

    def _outbox(self) -> Outbox:
        return self._run._outbox


class Action:
    """A tool call that is under way. A tool's parameter that is annotated so gets the call's own."""

    def __init__(self, run: Run, tool: str, clock: Clock, private: bool) -> None:
        self.action_id = new_id("act")
        self.tool = tool
        self._run = run
        self._clock = clock
        self._private = private
        self._started = clock.monotonic()
        self._error: ToolError | None = None
        self.output_bytes = b"null"

    async def write(self, delta: str) -> None:
        """Live output; buffered."""
        delta = values.mend(delta)
        for start in range(0, len(delta) or 1, e.DELTA_CHARS_MAX):
            data = e.ToolOutput(action_id=self.action_id, delta=delta[start : start + e.DELTA_CHARS_MAX])
            await self._run._outbox.write(self._run._draft(data, private=self._private))

    async def retrying(self, number: int, pause_s: float, error: Exception) -> None:
        """Says that the call failed and is made again, for the `number`-th time, after a pause."""
        failure = _tool_error(error)
        data = e.AgentRetrying(
            action_id=self.action_id,
            try_=number,
            delay_ms=round(pause_s * 1000),
            error=values.raw({"type": failure.type, "message": failure.detail}),
            expected_recovery=to_rfc3339(self._clock.now_us() + round(pause_s * 1_000_000)),
        )
        await self._run._outbox.append(self._run._draft(data, private=self._private))

    def complete(self, output: Json) -> None:
        """What the call is to be recorded with on exit."""
        encoded = values.encode(output)
        if len(encoded) > OUTPUT_BYTES_MAX:
            raise TooLarge(f"The output is {len(encoded)} bytes; the most is {OUTPUT_BYTES_MAX}.")
        self.output_bytes = encoded

    def succeed(self, encoded: bytes) -> None:
        self.output_bytes = encoded

    def fail(self, error: ToolError) -> None:
        self._error = error

    def completed(self, status: Literal["success", "error", "interrupted"]) -> e.ToolCompleted:
        """The event that says how it ended."""
        error = self._error
        return e.ToolCompleted(
            action_id=self.action_id,
            status=status,
            output=Raw(self.output_bytes) if status == "success" else UNSET,
            error=UNSET if error is None else values.raw({"type": error.type, "message": error.detail}),
            duration_ms=round((self._clock.monotonic() - self._started) * 1000),
        )


class State:
    """The thread's state, shared by its runs: whole values by key, the last one wins."""

    def __init__(self, run: Run) -> None:
        self._run = run

    async def get(self, key: str, default: Json = None) -> Json:
        """The latest value."""
        run = self._run
        await run.flush()
        found, _ = await run._rows.state(run.user, run.thread_id, private=True)
        return found.get(key, default)

    async def set(self, key: str, value: Json, *, public: bool = False) -> None:
        """Committed on return; null deletes. Clients see the values of public keys only."""
        _bounded("key", key, KEY_CHARS_MAX)
        data = e.StateChanged(key=key, value=_sized("value", value))
        await self._run._outbox.append(self._run._draft(data, private=not public))


class Entered:
    """Makes a run the current one of the calling task."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __enter__(self) -> None:
        self._token = _current.set(self._run)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        _current.reset(self._token)


def deadline_of(clock: Clock, timeout_s: float) -> datetime:
    return to_datetime(clock.now_us()) + timedelta(seconds=timeout_s)


def _tool_error(error: BaseException) -> ToolError:
    if isinstance(error, ToolError):
        return error
    return ToolError(type(error).__name__, values.mend(str(error))[:ERROR_CHARS_MAX])


def _bounded(what: str, text: str, chars_max: int) -> None:
    if not 1 <= len(text) <= chars_max:
        raise Invalid.at(what, f"must be text of 1 to {chars_max} characters")


def _counted(what: str, count: object) -> None:
    if not isinstance(count, int) or not 0 <= count <= TOKENS_MAX:
        raise Invalid.at(what, f"must be a whole number from 0 to {TOKENS_MAX}")


def _sized(what: str, value: object) -> Raw:
    encoded = values.encode(value)
    if len(encoded) > OUTPUT_BYTES_MAX:
        raise TooLarge(f"The {what} is {len(encoded)} bytes; the most is {OUTPUT_BYTES_MAX}.")
    return Raw(encoded)
