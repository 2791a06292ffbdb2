"""Tools: plain functions that, called inside a run, become recorded actions."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial, update_wrapper
from typing import Any, Generic, Literal, ParamSpec, TypeAlias, TypeVar, cast

import msgspec
from msgspec import Raw

from runstone import values
from runstone.errors import (
    ActionDiverged,
    ActionInterrupted,
    ApprovalDenied,
    BadConfig,
    ToolError,
)
from runstone.failpoints import hit
from runstone.limits import KEY_CHARS_MAX
from runstone.resources import Error
from runstone.runtime import approvals
from runstone.runtime.action import Action, acting
from runstone.runtime.attempt import Attempt, gathered
from runstone.runtime.bounds import bounded, called_with
from runstone.runtime.context import Run
from runstone.runtime.definitions import check_name
from runstone.runtime.replay import Recorded
from runstone.runtime.resilience import RETRIES_MAX, Calls, Policy
from runstone.runtime.results import Results, in_thread

P = ParamSpec("P")
R = TypeVar("R")

Approval: TypeAlias = Literal["always", "never"]


class CallOptions(msgspec.Struct, frozen=True):
    """What may differ from call to call."""

    key: str | None = None
    timeout_s: float | None = None


class Tool(Generic[P, R]):
    """A function that an agent calls. Inside a run a call is an action, and is awaited; outside it is the function.

    R is what the awaited call gives, of async functions and of sync ones alike.
    """

    def __init__(
        self,
        function: Callable[P, object],
        *,
        name: str | None,
        timeout_s: float | None,
        private: bool,
        idempotent: bool,
        retries: int,
        provider: str | None,
        approval: Approval,
    ) -> None:
        self.name = check_name("tool", name or str(getattr(function, "__name__", "")))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise BadConfig(
                f"tool {self.name} is a generator",
                remedy="Return a value; stream with a parameter annotated Action.",
            )
        _check_timeout(self.name, timeout_s)
        if not 0 <= retries <= RETRIES_MAX:
            raise BadConfig(f"tool {self.name}: retries must be 0 to {RETRIES_MAX}.")
        if retries and not idempotent:
            raise BadConfig(
                f"tool {self.name} has retries, but is not idempotent: a call that failed may have had its effect.",
                remedy="Write idempotent=True if calling it twice does no more than calling it once; else retries=0.",
            )
        if approval not in {"always", "never"}:
            raise BadConfig(f"tool {self.name}: approval is {approval!r}.", remedy="Give 'always', or leave it out.")
        self._function = function
        breaker = self.name if provider is None else check_name("provider", provider)
        self._policy = Policy(tool=self.name, breaker=breaker, timeout_s=timeout_s, retries=retries)
        self._private = private
        self._idempotent = idempotent
        self._approval = approval
        self._async = inspect.iscoroutinefunction(function)
        self._results = Results.of(function)
        self._signature = inspect.signature(function, eval_str=True)
        self._action_names = [name for name, p in self._signature.parameters.items() if p.annotation is Action]
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        return self._with(CallOptions(), args, kwargs)

    def options(self, *, key: str | None = None, timeout_s: float | None = None) -> Callable[P, Awaitable[R]]:
        """The tool, with options for one call: `await search.options(key="first")(query="stone")`.

        By its `key` a later attempt finds the call again whatever its input; `timeout_s` is instead of the tool's.
        """
        if key is not None:
            bounded("key", key, KEY_CHARS_MAX)
        _check_timeout(self.name, timeout_s)
        options = CallOptions(None if key is None else values.mend(key), timeout_s)

        def call(*args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
            return self._with(options, args, kwargs)

        return call

    def _with(self, options: CallOptions, args: tuple[object, ...], kwargs: dict[str, object]) -> Awaitable[R]:
        run = Run.current()
        if run is None or not _in_event_loop():
            return cast("Awaitable[R]", self._function(*args, **kwargs))  # type: ignore[arg-type] # of a sync function, the plain result
        return self._in_run(run._attempt, options, args, kwargs)

    async def _in_run(
        self, attempt: Attempt, options: CallOptions, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Any:
        bound = self._signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        shown = {name: value for name, value in bound.arguments.items() if name not in self._action_names}
        input = called_with(shown)
        earlier, action_id = await self._earlier(attempt, input, options)
        if earlier is not None and earlier.last.status != "interrupted":
            return self._recorded(earlier)
        async with acting(
            attempt,
            self.name,
            input,
            executor="server",
            private=self._private,
            key=options.key,
            action_id=action_id,
            retry_of=None if earlier is None else earlier.last.action_id,
            idempotency_key=None if earlier is None else earlier.first.action_id,
        ) as action:
            arguments = bound.arguments | dict.fromkeys(self._action_names, action)
            call = partial(self._function, **arguments) if self._named() else self._positional(arguments)
            hit("tool_starting")
            result = await self._call(call, options, attempt, action)
            hit("tool_ended")
            action.succeed(self._results.encode(result))
        return self._results.decode(action.output_bytes)

    async def _earlier(self, attempt: Attempt, input: Raw, options: CallOptions) -> tuple[Recorded | None, str | None]:
        """The call as an earlier attempt made it; or the id that a new one has, where a person has approved it.

        Raises ActionInterrupted, ActionDiverged and ApprovalDenied.
        """
        needs_approval = self._approval == "always"
        asked = attempt.replay.asked(self._question, bytes(input), options.key) if needs_approval else None
        found = attempt.replay.action(self.name, bytes(input), options.key, asked)
        if needs_approval and found is not None and found.last.status == "interrupted" and found.last.input != input:
            found = None  # found by its key, and approved with another input: that is no word on this one
        if found is not None:
            gathered(found.first.action_id)  # also of an interrupted call: a step that copes with it contains it
        elif asked is None:
            self._check_path(attempt)
        action_id = None
        if asked is not None or (needs_approval and found is None):  # else it was called when it needed none
            action_id = await self._approved(attempt, input, options)
        if found is None:
            return None, action_id
        if found.last.status == "interrupted" and not self._idempotent:
            raise ActionInterrupted(
                f"{self.name} was under way when an earlier attempt died ({found.last.action_id}); "
                "whether it took effect is not known."
            )
        return found, None

    def _check_path(self, attempt: Attempt) -> None:
        """What side by side comes in another order is found by its input alone; the agent's own steps are not."""
        if not self._idempotent and attempt.in_own_task and attempt.replay.left(self.name):
            raise ActionDiverged(
                f"An earlier attempt called {self.name} with another input, and may have had its effect."
            )

    def _recorded(self, earlier: Recorded) -> Any:
        """What the call gave in an earlier attempt."""
        action = earlier.last
        if action.status == "success" and action.output is not None:
            return self._results.decode(bytes(action.output))
        raise _error(action.error)

    @property
    def _question(self) -> str:
        return f"Run {self.name}?"

    async def _approved(self, attempt: Attempt, input: Raw, options: CallOptions) -> str | None:
        """The id that the call has or will have, once a person has approved it. Raises ApprovalDenied."""
        decision = await approvals.approve(
            attempt,
            self._question,
            values.decode(input),
            expires_in_s=approvals.APPROVAL_S,
            key=options.key,
            of_tool=True,
        )
        if not decision:
            raise ApprovalDenied(f"{self.name} was not approved: it is {decision.status}.")
        return decision.action_id

    def _named(self) -> bool:
        kinds = {p.kind for p in self._signature.parameters.values()}
        return kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}

    def _positional(self, arguments: dict[str, Any]) -> Callable[[], Any]:
        bound = inspect.BoundArguments(self._signature, arguments)
        return partial(self._function, *bound.args, **bound.kwargs)

    async def _call(self, call: Callable[[], Any], options: CallOptions, attempt: Attempt, action: Action) -> Any:
        timeout_s = self._policy.timeout_s if options.timeout_s is None else options.timeout_s
        return await Calls.current().make(
            call if self._async else partial(in_thread, call),
            replace(self._policy, timeout_s=timeout_s),
            deadline=attempt.deadline(),
            on_retry=action.retrying,
        )


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _check_timeout(name: str, timeout_s: float | None) -> None:
    if timeout_s is not None and not timeout_s > 0:
        raise BadConfig(f"tool {name}: timeout_s must be above 0.")


def _error(recorded: Raw | None) -> ToolError:
    error = Error(type="Error", message="") if recorded is None else Error.model_validate_json(bytes(recorded))
    return ToolError(error.type, error.message)
