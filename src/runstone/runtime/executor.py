"""Executes one attempt of one run: calls the agent, stops it when it must stop, and says how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any

import msgspec
import structlog
from pydantic_core import to_jsonable_python

from runstone import values
from runstone.clock import Clock
from runstone.commands import CANCEL_DEADLINE_S, Cancelled, Completed, Failed, Outcome, end_run
from runstone.errors import AgentError, Invalid, OutputTooLarge, RunstoneError, StaleAttempt, StoreFailed, ToolError
from runstone.ids import new_id
from runstone.limits import ERROR_CHARS_MAX, OUTPUT_BYTES_MAX
from runstone.log import Log, Outbox
from runstone.metrics import Metrics
from runstone.runtime.breakers import Breakers, is_failure
from runstone.runtime.context import Entered, Run, deadline_of
from runstone.runtime.definitions import AgentDefinition
from runstone.runtime.registry import Registry, Running, StopReason
from runstone.runtime.resilience import Calls
from runstone.service import Tasks
from runstone.store import RunRow

logger = structlog.get_logger(__name__)


class Executor:
    """Runs claimed attempts; `execute` returns when the run has ended, or when the process gives it up."""

    def __init__(
        self,
        log: Log,
        registry: Registry,
        breakers: Breakers,
        clock: Clock,
        metrics: Metrics,
        tasks: Tasks,
        *,
        debug: bool,
    ) -> None:
        self._log = log
        self._registry = registry
        self._breakers = breakers
        self._calls = Calls(breakers, clock, metrics)
        self._clock = clock
        self._metrics = metrics
        self._tasks = tasks
        self._debug = debug

    async def execute(self, agent: AgentDefinition, row: RunRow) -> None:
        outbox = self._log.outbox(row)
        try:
            prompt = await self._prompt(row)
            run = Run(row, outbox, self._log.rows, self._clock, deadline_of(self._clock, row.timeout_s), prompt)
            await self._run(agent, run, row, outbox)
        except StaleAttempt as stale:
            logger.info("a run ended without its attempt", run=row.run_id, detail=stale.detail)
        except StoreFailed:
            pass  # the log has said so, and stops the whole process
        except Exception as error:
            logger.exception("a run could not be executed", run=row.run_id)
            await self._log.append(end_run(row.run_id, self._failed(error, row), attempt=None))
        finally:
            outbox.close()

    async def _run(self, agent: AgentDefinition, run: Run, row: RunRow, outbox: Outbox) -> None:
        task = self._tasks.start(_tried(self._call(agent, run, row)), row.run_id)
        running = self._registry.register(row.run_id, task, self._clock.monotonic())
        outbox.on_failure = lambda _failure: _stop(running, "fenced")
        try:
            await self._supervise(running, run, row)
            if running.stop_reason == "shutdown":
                await outbox.flush()
            elif running.stop_reason != "fenced":
                await self._end(running, row, self._outcome(running, row))
                if agent.provider is not None:
                    self._report(agent.provider, running)
            elif outbox.failure is not None and not isinstance(outbox.failure, StaleAttempt | StoreFailed):
                raise outbox.failure  # what it said could not be stored, and nobody else will end it
        finally:
            if not task.done():
                task.cancel()
            self._registry.complete(row.run_id, self._clock.monotonic())

    async def stop(self) -> None:
        """Cancels the agents that still run."""
        await self._tasks.stop()

    async def _prompt(self, row: RunRow) -> str | None:
        if row.message_id is None:
            return None
        message = await self._log.rows.message(row.user_id, row.message_id)
        return None if message is None else message.content

    async def _call(self, agent: AgentDefinition, run: Run, row: RunRow) -> Any:
        arguments = agent.parameters.arguments(values.decode(row.input))
        with Entered(run), self._calls.entered():
            if agent.kind == "generator":
                return await _say_all(run, agent.function(run, **arguments))  # type: ignore[arg-type]
            result = await agent.function(run, **arguments)  # type: ignore[misc]
            if isinstance(result, str) and not run.said:
                await run.say(result)
            await run.close_open()
            return result

    async def _supervise(self, running: Running, run: Run, row: RunRow) -> None:
        """Returns when the agent has ended, or must not be waited for any longer."""
        stopping = self._tasks.start(running.stopping.wait(), f"{row.run_id}:stop")
        try:
            await asyncio.wait({running.task, stopping}, timeout=row.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if running.task.done():
                return
            running.stop("timeout")
            reason = running.stop_reason
            run.stop_reason = "cancelled" if reason == "cancelled" else "timeout" if reason == "timeout" else "error"
            if reason == "shutdown":
                await run.flush()
                return  # what was said is kept; the next start ends the run or takes it up
            running.task.cancel()
            if reason != "fenced":
                await asyncio.wait({running.task}, timeout=CANCEL_DEADLINE_S)
        finally:
            stopping.cancel()

    def _outcome(self, running: Running, row: RunRow) -> Outcome:
        tried = running.task.result() if running.task.done() and not running.task.cancelled() else None
        if running.stop_reason == "cancelled":
            return self._completed(tried.value) if isinstance(tried, _Returned) else Cancelled()
        if running.stop_reason == "timeout":
            return Failed("Timeout", f"The run took longer than {row.timeout_s:g} s.", reason="timeout")
        if isinstance(tried, _Raised):
            return self._failed(tried.error, row)
        if isinstance(tried, _Returned):
            return self._completed(tried.value)
        return Failed("CancelledError", "The agent cancelled itself.")

    def _report(self, provider: str, running: Running) -> None:
        """Tells the provider's breaker how a run went.

        Nothing is said of a cancelled run, nor of one that a tool's error ended: that has a breaker of its own.
        """
        if running.stop_reason == "timeout":
            self._breakers.report(provider, failed=True)
        elif running.stop_reason is None and not running.task.cancelled():
            tried = running.task.result()
            if isinstance(tried, _Returned):
                self._breakers.report(provider, failed=False)
            elif is_failure(tried.error) and not isinstance(tried.error, ToolError):
                self._breakers.report(provider, failed=True)

    def _completed(self, result: object) -> Outcome:
        try:
            encoded = values.encode(to_jsonable_python(result, inf_nan_mode="constants"))
            if len(encoded) > OUTPUT_BYTES_MAX:
                raise OutputTooLarge(f"The output is {len(encoded)} bytes; the most is {OUTPUT_BYTES_MAX}.")
        except (ValueError, Invalid) as error:
            return Failed("TypeError", f"The agent returned what is not JSON: {error}")
        except OutputTooLarge as error:
            return Failed("OutputTooLarge", error.detail)
        return Completed(msgspec.Raw(encoded))

    def _failed(self, error: BaseException, row: RunRow) -> Failed:
        error_id = new_id("err")
        if isinstance(error, AgentError):
            logger.info("an agent failed", run=row.run_id, agent=row.agent, error_id=error_id, message=error.detail)
            message = values.mend(error.detail)[:ERROR_CHARS_MAX]
            return Failed(type(error).__name__, message, retryable=error.retryable, id=error_id)
        logger.error("an agent raised", run=row.run_id, agent=row.agent, error_id=error_id, exc_info=error)
        shown = f"{type(error).__name__}: look for {error_id} in the server's log."
        if self._debug or isinstance(error, RunstoneError):
            shown = values.mend(str(error))[:ERROR_CHARS_MAX]
        return Failed(type(error).__name__, shown, id=error_id)

    async def _end(self, running: Running, row: RunRow, outcome: Outcome) -> None:
        # over the head of an agent that does not stop, the end is not the attempt's own
        attempt = row.attempt if running.task.done() else None
        ended: str = await self._log.append(end_run(row.run_id, outcome, attempt=attempt))
        self._metrics.runs_ended.labels(status=ended.removeprefix("agent_")).inc()


def _stop(running: Running, reason: StopReason) -> None:
    running.stop(reason)


class _Returned(msgspec.Struct, frozen=True):
    value: object


class _Raised(msgspec.Struct, frozen=True):
    error: BaseException


async def _tried(call: Coroutine[Any, Any, object]) -> _Returned | _Raised:
    """What the agent returned or raised, as a value: an agent's error is the run's, not the server's.

    Also what is no Exception, like that of sys.exit(); but a cancel passes through, and so does Ctrl-C.
    """
    try:
        return _Returned(await call)
    except (asyncio.CancelledError, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - it is told as the run's end
        return _Raised(error)


async def _say_all(run: Run, words: AsyncGenerator[str]) -> str | None:
    """All that a generator yields is one message, and its text is the run's output."""
    async with run.message() as message, aclosing(words):  # so that its own clean-up is done before the run ends
        async for word in words:
            await message.write(word)
    await run.close_open()
    text = message.text
    return text if len(values.encode(text)) <= OUTPUT_BYTES_MAX else None
