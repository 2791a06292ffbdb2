"""A tool call as the log records it: pending before it begins, ended when it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

from msgspec import UNSET, Raw

from runstone import events as e
from runstone import values
from runstone.clock import to_rfc3339
from runstone.errors import ToolError
from runstone.ids import new_id
from runstone.limits import ERROR_CHARS_MAX, NAME_CHARS_MAX
from runstone.runtime.attempt import Attempt, gathered, gathering
from runstone.runtime.bounds import bounded, sized
from runstone.values import Json


class Action:
    """A tool call that is under way. A tool's parameter that is annotated so gets the call's own.

    `idempotency_key` is the same in every repetition of the call, also after a crash: give it to whom you call.
    """

    def __init__(self, attempt: Attempt, tool: str, *, action_id: str, idempotency_key: str, private: bool) -> None:
        self.action_id = action_id
        self.idempotency_key = idempotency_key
        self.tool = tool
        self._attempt = attempt
        self._private = private
        self._started = attempt.clock.monotonic()
        self._error: ToolError | None = None
        self.output_bytes = b"null"

    async def write(self, delta: str) -> None:
        """Live output; buffered."""
        delta = values.mend(delta)
        for start in range(0, len(delta) or 1, e.DELTA_CHARS_MAX):
            data = e.ToolOutput(action_id=self.action_id, delta=delta[start : start + e.DELTA_CHARS_MAX])
            await self._attempt.outbox.write(self._attempt.draft(data, private=self._private))

    async def retrying(self, number: int, pause_s: float, error: Exception) -> None:
        """Says that the call failed and is made again, for the `number`-th time, after a pause."""
        failure = tool_error(error)
        data = e.AgentRetrying(
            action_id=self.action_id,
            try_=number,
            delay_ms=round(pause_s * 1000),
            error=values.raw({"type": failure.type, "message": failure.detail}),
            expected_recovery=to_rfc3339(self._attempt.clock.now_us() + round(pause_s * 1_000_000)),
        )
        await self._attempt.outbox.append(self._attempt.draft(data, private=self._private))

    def complete(self, output: Json) -> None:
        """What the call is to be recorded with on exit."""
        self.output_bytes = bytes(sized("output", output))

    def succeed(self, encoded: bytes) -> None:
        self.output_bytes = encoded

    def fail(self, error: ToolError) -> None:
        self._error = error

    def completed(self, status: Literal["success", "error", "interrupted"], inner: list[str]) -> e.ToolCompleted:
        """The event that says how it ended."""
        error = self._error
        return e.ToolCompleted(
            action_id=self.action_id,
            status=status,
            output=Raw(self.output_bytes) if status == "success" else UNSET,
            error=UNSET if error is None else values.raw({"type": error.type, "message": error.detail}),
            duration_ms=round((self._attempt.clock.monotonic() - self._started) * 1000),
            inner=tuple(inner) if inner else UNSET,
        )


@asynccontextmanager
async def acting(
    attempt: Attempt,
    name: str,
    input: Raw,
    *,
    executor: e.Executor,
    private: bool,
    call_id: str | None = None,
    key: str | None = None,
    action_id: str | None = None,
    retry_of: str | None = None,
    idempotency_key: str | None = None,
) -> AsyncIterator[Action]:
    """Records a call: pending from entry, a success on exit, an error if the block raises."""
    bounded("name", name, NAME_CHARS_MAX)
    action_id = action_id or new_id("act")
    action = Action(attempt, name, action_id=action_id, idempotency_key=idempotency_key or action_id, private=private)
    executing = e.ToolExecuting(
        action_id=action_id,
        tool=name,
        input=input,
        executor=executor,
        call_id=UNSET if call_id is None else call_id,
        retry_of=UNSET if retry_of is None else retry_of,
        key=UNSET if key is None else key,
        beside=UNSET if attempt.in_own_task else True,
    )
    await attempt.outbox.append(attempt.draft(executing, private=private))
    gathered(action_id)  # not what was refused as too large
    with gathering() as ids:
        # A later attempt does not enter a tool that has ended; what others run it records anew.
        inner = ids if executor == "server" else []
        try:
            yield action
        except asyncio.CancelledError:
            await attempt.outbox.write(attempt.draft(action.completed("interrupted", []), private=private))
            raise
        except (Exception, SystemExit) as error:  # one that leaves a task would take the whole process along
            failure = tool_error(error)
            action.fail(failure)
            await attempt.outbox.append(attempt.draft(action.completed("error", inner), private=private))
            raise failure from error
        await attempt.outbox.append(attempt.draft(action.completed("success", inner), private=private))


def tool_error(error: BaseException) -> ToolError:
    if isinstance(error, ToolError):
        return error
    return ToolError(type(error).__name__, values.mend(str(error))[:ERROR_CHARS_MAX])
