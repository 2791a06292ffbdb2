"""Executes attempts of runs: calls the agent, stops it when it must stop, and says how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any

import msgspec
import structlog

from runstone import values
from runstone.clock import Clock
from runstone.commands import (
    CANCEL_DEADLINE_S,
    Cancelled,
    Claimed,
    Completed,
    Failed,
    Fence,
    LeftBy,
    NewChild,
    Outcome,
    call_agent,
    end_run,
)
from runstone.errors import (
    AgentError,
    Invalid,
    OutputTooLarge,
    RunFailed,
    RunstoneError,
    StaleAttempt,
    StoreFailed,
    ToolError,
)
from runstone.failpoints import hit
from runstone.ids import new_id
from runstone.limits import ERROR_CHARS_MAX, OUTPUT_BYTES_MAX
from runstone.log import Log, Outbox
from runstone.metrics import Metrics
from runstone.resources import Error
from runstone.runtime.answers import Answers
from runstone.runtime.attempt import Attempt, gathered
from runstone.runtime.bounds import called_with
from runstone.runtime.breakers import Breakers, is_failure
from runstone.runtime.context import Run, entered
from runstone.runtime.definitions import AgentDefinition, Agents
from runstone.runtime.presence import Presence
from runstone.runtime.registry import Registry, Running, StopReason
from runstone.runtime.replay import Replay
from runstone.runtime.resilience import Calls
from runstone.service import Tasks
from runstone.states import FINISHED
from runstone.store import Command, Record, RecordedChild, RunRow

logger = structlog.get_logger(__name__)


class Executor:
    """Runs attempts; `execute` returns when the run has ended, or when this process gives it up."""

    def __init__(
        self,
        log: Log,
        agents: Agents,
        registry: Registry,
        breakers: Breakers,
        answers: Answers,
        clock: Clock,
        metrics: Metrics,
        tasks: Tasks,
        *,
        debug: bool,
    ) -> None:
        self._log = log
        self._agents = agents
        self._registry = registry
        self._breakers = breakers
        self._calls = Calls(breakers, clock, metrics)
        self._answers = answers
        self._clock = clock
        self._metrics = metrics
        self._tasks = tasks
        self._debug = debug

    async def execute(self, claimed: Claimed, on_wait: Callable[[bool], None]) -> None:
        """A root run; `on_wait` is told when it begins to wait for people, and when it no longer does."""
        row = claimed.run
        try:
            agent = self._agents.get(row.agent)
            record = Record() if claimed.reason is None else await self._log.record(row.run_id)
            presence = self._presence(row, record)
            outbox = self._log.outbox(row, row.attempt)
            try:
                attempt = self._attempt(row, row.attempt, outbox, presence, record, claimed.reason)
                await self._run(agent, attempt, on_wait=on_wait)
            finally:
                outbox.close()
        except StaleAttempt as stale:
            logger.info("a run went on, or ended, without its attempt", run=row.run_id, detail=stale.detail)
        except StoreFailed:
            pass  # the log has said so, and stops the whole process
        except Exception as error:
            logger.exception("a run could not be executed", run=row.run_id)
            fence = Fence(row.attempt, row.attempt)
            with suppress(StaleAttempt):
                await self._log.append(end_run(row.run_id, self._failed(error, row), fence, over_its_head=True))

    async def call(self, caller: Attempt, agent_name: str, input: object, key: str | None) -> Any:
        """A child run, in this process: what its agent returns. Raises RunFailed."""
        agent = self._agents.get(agent_name)
        encoded = called_with(input)
        agent.parameters.arguments(values.decode(encoded))
        recorded = caller.replay.child(agent.name, bytes(encoded), key)
        if recorded is not None and recorded.status in FINISHED:
            gathered(recorded.run_id)
            return _result_of(agent, recorded)
        new = NewChild(
            agent=agent.name, input=encoded, key=key, max_attempts=agent.max_attempts, timeout_s=agent.timeout_s
        )
        await caller.outbox.flush()  # what led to the call stands before it
        child_id = None if recorded is None else recorded.run_id
        command = call_agent(caller.row, caller.epoch, new, child=child_id, reason=caller.left_by or "lost")
        call = _Call()
        # in a task of its own, so that a call which is given up, even before its run has begun, ends in order
        child = self._tasks.start(_tried(self._called, agent, command, caller, call), f"{caller.row.run_id}:call")
        try:
            tried = await asyncio.shield(child)
            hit("child_ended")
        except asyncio.CancelledError:
            running = self._registry.get(caller.row.run_id)
            reason = None if running is None else running.stop_reason
            call.give_up(reason if reason in {"released", "fenced"} else "parent")
            await asyncio.wait({child}, timeout=CANCEL_DEADLINE_S)
            raise
        if isinstance(tried, _Raised):
            raise tried.error
        return tried.value

    async def stop(self) -> None:
        """Cancels the agents that still run."""
        await self._tasks.stop()

    async def _called(self, agent: AgentDefinition, command: Command, caller: Attempt, call: _Call) -> Any:
        row: RunRow = await self._log.append(command)
        hit("child_called")
        gathered(row.run_id)
        if not row.ended:
            row = msgspec.structs.replace(row, first_seq=caller.row.first_seq)  # its history is its caller's
            with suppress(StaleAttempt):  # it ended over its agent's head, and what came of it is in the log
                return await self._execute_child(agent, row, caller, call)
        for child in (await self._log.record(caller.row.run_id)).children:
            if child.run_id == row.run_id and child.status in FINISHED:
                return _result_of(agent, child)
        raise StaleAttempt(f"The run {caller.row.run_id} goes on without this attempt.")

    async def _execute_child(self, agent: AgentDefinition, row: RunRow, caller: Attempt, call: _Call) -> Any:
        record = Record() if row.attempt == 1 else await self._log.record(row.run_id)
        presence = self._presence(row, record, caller.presence)
        outbox = self._log.outbox(row, caller.epoch)
        try:
            attempt = self._attempt(row, caller.epoch, outbox, presence, record, caller.left_by)
            with caller.presence.calling(presence):
                ended, outcome = await self._run(agent, attempt, on_begin=call.began)
        finally:
            outbox.close()
        if isinstance(outcome, Completed) and ended == "agent_completed":
            return agent.results.decode(bytes(outcome.output))
        if isinstance(outcome, Failed) and ended == "agent_failed":
            raise RunFailed(row.run_id, "failed", outcome.type, outcome.message)
        raise _cancelled(row.run_id)

    def _presence(self, row: RunRow, record: Record, caller: Presence | None = None) -> Presence:
        return Presence(self._clock, timeout_s=row.timeout_s, ran_s=record.ran_us / 1_000_000, caller=caller)

    def _attempt(
        self, row: RunRow, epoch: int, outbox: Outbox, presence: Presence, record: Record, left_by: LeftBy | None
    ) -> Attempt:
        return Attempt(
            row=row,
            epoch=epoch,
            outbox=outbox,
            rows=self._log.rows,
            clock=self._clock,
            answers=self._answers,
            presence=presence,
            replay=Replay(record),
            left_by=left_by,
        )

    async def _run(
        self,
        agent: AgentDefinition,
        attempt: Attempt,
        *,
        on_begin: Callable[[Running], None] = lambda running: None,
        on_wait: Callable[[bool], None] = lambda waiting: None,
    ) -> tuple[str, Outcome]:
        """How the run ended: the type of its terminal event, and what the attempt made of it.

        Raises StaleAttempt where it goes on, or ended, without this attempt.
        """
        row, outbox = attempt.row, attempt.outbox
        run = Run(attempt, self.call, await self._prompt(row))
        attempt.task = self._tasks.start(_tried(self._call, agent, run, row), row.run_id)
        running = self._registry.register(row.run_id, attempt.task, self._clock.monotonic())
        on_begin(running)
        outbox.on_failure = lambda _failure: _stop(running, "fenced")

        def waits(waiting: bool) -> None:
            running.attention.set()  # its time stands still, or runs again
            on_wait(waiting)

        attempt.presence.on_change = waits
        try:
            await self._supervise(running, run, attempt)
            if running.stop_reason == "released":
                raise StaleAttempt(f"The run {row.run_id} was let go.")
            if running.stop_reason == "fenced":
                raise outbox.failure or StaleAttempt(f"The run {row.run_id} has ended.")
            hit("agent_ended")
            outcome = self._outcome(agent, running, row)
            if agent.provider is not None:
                self._report(agent.provider, running)  # before the end: whoever sees that finds the breaker so
            return await self._end(running, attempt, outcome), outcome
        finally:
            attempt.presence.on_change = lambda waiting: None
            if attempt.presence.waiting:
                on_wait(False)
            if not attempt.task.done():
                attempt.task.cancel()
            self._registry.complete(row.run_id, self._clock.monotonic())

    async def _prompt(self, row: RunRow) -> str | None:
        if row.message_id is None:
            return None
        message = await self._log.rows.message(row.user_id, row.message_id)
        return None if message is None else message.content

    async def _call(self, agent: AgentDefinition, run: Run, row: RunRow) -> Any:
        arguments = agent.parameters.arguments(values.decode(row.input))
        with entered(run), self._calls.entered():
            if agent.kind == "generator":
                return await _say_all(run, agent.function(run, **arguments))  # type: ignore[arg-type]
            result = await agent.function(run, **arguments)  # type: ignore[misc]
            if isinstance(result, str) and not run.said:
                await run.say(result)
            await run.close_open()
            return result

    async def _supervise(self, running: Running, run: Run, attempt: Attempt) -> None:
        """Returns when the agent has ended, or must not be waited for any longer."""
        task, presence = running.task, attempt.presence
        while True:
            running.attention.clear()
            if not presence.waiting and presence.left_s() <= 0:
                running.stop("timeout")
            if task.done() or running.stop_reason is not None:
                break
            timeout = None if presence.waiting else presence.left_s()
            attention = self._tasks.start(running.attention.wait(), f"{running.run_id}:attention")
            try:
                await asyncio.wait({task, attention}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                attention.cancel()
        reason = running.stop_reason
        if reason is None or task.done():
            return
        run.stop_reason = "timeout" if reason == "timeout" else "error" if reason == "fenced" else "cancelled"
        task.cancel()
        if reason not in {"fenced", "released"}:
            await asyncio.wait({task}, timeout=CANCEL_DEADLINE_S)

    def _outcome(self, agent: AgentDefinition, running: Running, row: RunRow) -> Outcome:
        tried = running.task.result() if running.task.done() and not running.task.cancelled() else None
        if running.stop_reason == "cancelled":
            return self._completed(agent, tried.value) if isinstance(tried, _Returned) else Cancelled()
        if running.stop_reason == "parent":
            return Cancelled("parent")
        if running.stop_reason == "timeout":
            return Failed("Timeout", f"The run took longer than {row.timeout_s:g} s.", reason="timeout")
        if isinstance(tried, _Raised):
            if isinstance(tried.error, StaleAttempt):
                raise tried.error  # none of the agent's: the run has gone on, or ended, without it
            return self._failed(tried.error, row)
        if isinstance(tried, _Returned):
            return self._completed(agent, tried.value)
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

    def _completed(self, agent: AgentDefinition, result: object) -> Outcome:
        try:
            return Completed(msgspec.Raw(agent.results.encode(result)))
        except Invalid as error:
            return Failed("TypeError", f"The agent returned what is not JSON: {error}")
        except OutputTooLarge as error:
            return Failed("OutputTooLarge", error.detail)

    def _failed(self, error: BaseException, row: RunRow) -> Failed:
        error_id = new_id("err")
        shown = values.mend(str(error))[:ERROR_CHARS_MAX]
        if isinstance(error, RunstoneError):  # said by the agent, its tools, people, other agents: no bug to look for
            logger.info("an agent failed", run=row.run_id, agent=row.agent, error_id=error_id, message=shown)
            retryable = isinstance(error, AgentError) and error.retryable
            return Failed(type(error).__name__, shown, retryable=retryable, id=error_id)
        logger.error("an agent raised", run=row.run_id, agent=row.agent, error_id=error_id, exc_info=error)
        if not self._debug:
            shown = f"{type(error).__name__}: look for {error_id} in the server's log."
        return Failed(type(error).__name__, shown, id=error_id)

    async def _end(self, running: Running, attempt: Attempt, outcome: Outcome) -> str:
        row = attempt.row
        # over the head of an agent that does not stop, the end is not the attempt's own
        over_its_head = not running.task.done()
        fence = Fence(row.attempt, attempt.epoch)
        ended: str = await self._log.append(end_run(row.run_id, outcome, fence, over_its_head=over_its_head))
        self._metrics.runs_ended.labels(status=ended.removeprefix("agent_")).inc()
        return ended


def _stop(running: Running, reason: StopReason) -> None:
    running.stop(reason)


class _Call:
    """A call of an agent under way, for whom it may be given up: also before its run has begun."""

    def __init__(self) -> None:
        self._running: Running | None = None
        self._reason: StopReason | None = None

    def began(self, running: Running) -> None:
        self._running = running
        if self._reason is not None:
            running.stop(self._reason)

    def give_up(self, reason: StopReason) -> None:
        self._reason = reason
        if self._running is not None:
            self._running.stop(reason)


class _Returned(msgspec.Struct, frozen=True):
    value: object


class _Raised(msgspec.Struct, frozen=True):
    error: BaseException


async def _tried(function: Callable[..., Awaitable[object]], *args: object) -> _Returned | _Raised:
    """What the agent returned or raised, as a value: an agent's error is the run's, not the server's.

    Also what is no Exception, like that of sys.exit(); but a cancel passes through, and so does Ctrl-C.
    """
    try:
        return _Returned(await function(*args))
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


def _result_of(agent: AgentDefinition, recorded: RecordedChild) -> Any:
    """What a call gave in an earlier attempt: its output, or its error again."""
    if recorded.status == "completed" and recorded.output is not None:
        return agent.results.decode(bytes(recorded.output))
    if recorded.error is not None:
        error = Error.model_validate_json(bytes(recorded.error))
        raise RunFailed(recorded.run_id, "failed", error.type, error.message)
    raise _cancelled(recorded.run_id)


def _cancelled(run_id: str) -> RunFailed:
    return RunFailed(run_id, "cancelled", "Cancelled", f"The run {run_id} was cancelled.")
