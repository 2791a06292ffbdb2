"""What a type checker sees of tools; `make check` runs it over this file."""

from __future__ import annotations

from typing import assert_type

from runstone import Runstone

app = Runstone()


@app.tool
async def bare(x: int) -> str:
    return str(x)


@app.tool
def bare_sync(x: int) -> list[str]:
    return [str(x)]


@app.tool(timeout_s=3)
async def with_options(x: int) -> str:
    return str(x)


@app.tool(timeout_s=3)
def with_options_sync(x: int) -> bytes:
    return bytes(x)


def test_a_tool_is_typed_as_what_is_awaited_whether_it_is_sync_or_not() -> None:
    async def in_a_run() -> None:
        assert_type(await bare(1), str)
        assert_type(await bare_sync(1), list[str])
        assert_type(await with_options(x=1), str)
        assert_type(await with_options_sync(1), bytes)
        await bare_sync("x")  # type: ignore[arg-type]

    assert in_a_run is not None
