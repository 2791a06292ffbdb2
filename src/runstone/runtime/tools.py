"""Tools: plain functions that, called inside a run, become recorded actions."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial, update_wrapper
from typing import Any, Generic, ParamSpec, TypeVar, cast

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import to_jsonable_python

from runstone import values
from runstone.errors import BadConfig, Invalid, OutputTooLarge, TooLarge
from runstone.failpoints import hit
from runstone.limits import INPUT_BYTES_MAX, OUTPUT_BYTES_MAX
from runstone.runtime.context import Action, Run
from runstone.runtime.definitions import check_name
from runstone.runtime.resilience import RETRIES_MAX, Calls, Policy
from runstone.values import Json

P = ParamSpec("P")
R = TypeVar("R")

_THREADS_MAX = 64  # sync tools under way at once; more wait
_threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="runstone-tool")


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
        retries: int,
        idempotent: bool,
        provider: str | None,
        private: bool,
    ) -> None:
        self.name = check_name("tool", name or str(getattr(function, "__name__", "")))
        if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
            raise BadConfig(
                f"tool {self.name} is a generator",
                remedy="Return a value; stream with a parameter annotated Action.",
            )
        if timeout_s is not None and not timeout_s > 0:
            raise BadConfig(f"tool {self.name}: timeout_s must be above 0.")
        if not 0 <= retries <= RETRIES_MAX:
            raise BadConfig(f"tool {self.name}: retries must be 0 to {RETRIES_MAX}.")
        if retries and not idempotent:
            raise BadConfig(
                f"tool {self.name} has retries, but is not idempotent: a call that failed may have had its effect.",
                remedy="Write idempotent=True if calling it twice does no more than calling it once; else retries=0.",
            )
        self._function = function
        self._idempotent = idempotent
        breaker = self.name if provider is None else check_name("provider", provider)
        self._policy = Policy(tool=self.name, breaker=breaker, timeout_s=timeout_s, retries=retries)
        self._private = private
        self._async = inspect.iscoroutinefunction(function)
        try:
            self._signature = inspect.signature(function, eval_str=True)
            annotation = self._signature.return_annotation
            known = annotation is not inspect.Signature.empty
            self._result = TypeAdapter[Any](annotation if known else Any)
        except (PydanticUserError, NameError) as error:
            raise BadConfig(
                f"tool {self.name}: {error}",
                remedy="Annotate the result with a type that JSON can be read into.",
            ) from None
        self._action_names = [name for name, p in self._signature.parameters.items() if p.annotation is Action]
        update_wrapper(self, function)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[R]:
        run = Run.current()
        if run is None or not _in_event_loop():
            return cast("Awaitable[R]", self._function(*args, **kwargs))  # of a sync function, the plain result
        return self._in_run(run, args, kwargs)

    async def _in_run(self, run: Run, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        bound = self._signature.bind_partial(*args, **kwargs)
        bound.apply_defaults()
        shown = {name: value for name, value in bound.arguments.items() if name not in self._action_names}
        async with run.action(self.name, _jsonable(shown), executor="server", private=self._private) as action:
            arguments = bound.arguments | dict.fromkeys(self._action_names, action)
            call = partial(self._function, **arguments) if self._named() else self._positional(arguments)
            result = await self._call(call, run, action)
            hit("tool_ended")
            action.succeed(_output(result))
        return self._result.validate_json(action.output_bytes)

    def _named(self) -> bool:
        kinds = {p.kind for p in self._signature.parameters.values()}
        return kinds <= {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}

    def _positional(self, arguments: dict[str, Any]) -> Callable[[], Any]:
        bound = inspect.BoundArguments(self._signature, arguments)
        return partial(self._function, *bound.args, **bound.kwargs)

    async def _call(self, call: Callable[[], Any], run: Run, action: Action) -> Any:
        return await Calls.current().make(
            call if self._async else partial(_in_thread, call),
            self._policy,
            deadline=run.deadline,
            on_retry=action.retrying,
        )


async def _in_thread(call: Callable[[], R]) -> R:
    context = contextvars.copy_context()
    waiting: Awaitable[R] = asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, call))
    return await waiting


def _in_event_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _jsonable(value: object) -> Json:
    """What a call is recorded with; raises TooLarge, and Invalid for what is not JSON."""
    try:
        plain: Json = to_jsonable_python(value, inf_nan_mode="constants")
    except ValueError as error:
        raise Invalid.at("input", str(error)) from None
    size = len(values.encode(plain))
    if size > INPUT_BYTES_MAX:
        raise TooLarge(f"The input is {size} bytes; the most is {INPUT_BYTES_MAX}.")
    return plain


def _output(value: object) -> bytes:
    """What a call has returned, recorded; raises OutputTooLarge, and Invalid for what is not JSON."""
    try:
        encoded = values.encode(to_jsonable_python(value, inf_nan_mode="constants"))
    except ValueError as error:
        raise Invalid.at("output", str(error)) from None
    if len(encoded) > OUTPUT_BYTES_MAX:
        raise OutputTooLarge(f"The output is {len(encoded)} bytes; the most is {OUTPUT_BYTES_MAX}.")
    return encoded
