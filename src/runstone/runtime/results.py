"""What functions return, as JSON and back: agents get it from the record, in the first attempt as in any later one."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self, TypeVar

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import to_jsonable_python

from runstone import values
from runstone.errors import BadConfig, Invalid, OutputTooLarge
from runstone.limits import OUTPUT_BYTES_MAX

R = TypeVar("R")

_THREADS_MAX = 64  # sync functions under way at once; more wait
_threads = ThreadPoolExecutor(_THREADS_MAX, thread_name_prefix="runstone-tool")


class Results:
    """The values of one return annotation."""

    def __init__(self, annotation: Any) -> None:
        self._adapter = TypeAdapter[Any](annotation)

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Self:
        """What a function says that it returns. Raises BadConfig for what cannot be read from JSON."""
        name = getattr(function, "__name__", repr(function))
        try:
            found = inspect.signature(function, eval_str=True).return_annotation
            return cls(Any if found is inspect.Signature.empty else found)
        except (PydanticUserError, NameError) as error:
            raise BadConfig(
                f"{name}: {error}", remedy="Annotate the result with a type that JSON can be read into."
            ) from None
        except ValueError:  # a builtin without a signature
            return cls(Any)

    def encode(self, value: object) -> bytes:
        """Raises OutputTooLarge, and Invalid for what is not JSON."""
        try:
            encoded = values.encode(to_jsonable_python(value, inf_nan_mode="constants"))
        except ValueError as error:
            raise Invalid.at("output", str(error)) from None
        if len(encoded) > OUTPUT_BYTES_MAX:
            raise OutputTooLarge(f"The output is {len(encoded)} bytes; the most is {OUTPUT_BYTES_MAX}.")
        return encoded

    def decode(self, encoded: bytes) -> Any:
        return self._adapter.validate_json(encoded)


async def in_thread(call: Callable[[], R]) -> R:
    context = contextvars.copy_context()
    waiting: Awaitable[R] = asyncio.get_running_loop().run_in_executor(_threads, partial(context.run, call))
    return await waiting
