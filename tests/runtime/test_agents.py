"""Agents as people write them: what may be registered, what an input becomes, what a return value becomes."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from runstone import Run, Runstone
from runstone.errors import BadConfig, Invalid, UnknownAgent
from tests.runtime.support import running

pytestmark = pytest.mark.anyio


class Query(BaseModel):
    text: str
    limit: int = 3


class Point(TypedDict):
    x: int
    y: int


@dataclasses.dataclass
class Pair:
    left: str
    right: int = 7


class Unreadable:
    """No JSON becomes one of these."""


app = Runstone()


@app.agent
async def by_name(run: Run, a: int, b: str = "default", *, c: float | None = None) -> list[Any]:
    return [a, b, c]


@app.agent
async def first(run: Run, items: list[int], more: str = "m") -> list[Any]:
    return [items, more]


@app.agent
async def nothing(run: Run) -> str:
    return f"prompt={run.prompt}"


@app.agent
async def optional(run: Run, text: str = "none") -> str:
    return text


@app.agent
async def model(run: Run, query: Query) -> dict[str, Any]:
    return {"text": query.text, "limit": query.limit}


@app.agent
async def typed(run: Run, point: Point) -> int:
    return point["x"] + point["y"]


@app.agent
async def pair(run: Run, pair: Pair) -> str:
    return f"{pair.left}{pair.right}"


@app.agent
async def mapping(run: Run, anything: dict[str, Any]) -> list[str]:
    return sorted(anything)


@app.agent
async def untyped(run, value):
    return value


@app.agent
async def shout(run: Run, text: str) -> AsyncIterator[str]:
    for word in text.split():
        yield word.upper() + " "


@app.agent
async def silent(run: Run) -> AsyncIterator[str]:
    for word in list[str]():
        yield word


@app.agent(name="named.one-1", timeout_s=5, max_attempts=1, on_crash="fail")
async def _hidden(run: Run) -> None:
    """Does nothing."""


@pytest.mark.parametrize(
    ("agent", "input", "output"),
    [
        ("by_name", {"a": 1}, [1, "default", None]),
        ("by_name", {"a": 1, "b": "x", "c": 1.5}, [1, "x", 1.5]),
        ("by_name", 4, [4, "default", None]),
        ("first", [1, 2], [[1, 2], "m"]),
        ("first", {"items": [3], "more": "n"}, [[3], "n"]),
        ("nothing", None, "prompt=None"),
        ("nothing", "hello", "prompt=hello"),
        ("optional", None, "none"),
        ("optional", "given", "given"),
        ("optional", {"text": "named"}, "named"),
        ("model", {"text": "t"}, {"text": "t", "limit": 3}),
        ("model", {"query": {"text": "t", "limit": 1}}, {"text": "t", "limit": 1}),
        ("typed", {"x": 1, "y": 2}, 3),
        ("pair", {"left": "l"}, "l7"),
        ("mapping", {"b": 1, "a": {"c": 2}}, ["a", "b"]),
        ("mapping", {}, []),
        ("untyped", {"value": [1, None]}, [1, None]),
        ("untyped", "text", "text"),
        ("shout", "a b", "A B "),
        ("silent", None, ""),
    ],
)
async def test_an_input_reaches_the_parameters_and_a_return_value_is_the_output(
    tmp_path: Path, agent: str, input: Any, output: Any
) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished(agent, input)
        assert (run.status, run.output) == ("completed", output)


@pytest.mark.parametrize(
    ("agent", "input", "path"),
    [
        ("by_name", {}, "input.a"),
        ("by_name", {"a": "one"}, "input.a"),
        ("by_name", {"a": 1, "d": 2}, "input.d"),
        ("by_name", "one", "input"),
        ("first", [1, "x"], "input.1"),
        ("first", None, "input"),
        ("model", {"limit": 1}, "input.text"),
        ("model", {"text": "t", "limit": "many"}, "input.limit"),
        ("model", [], "input"),
        ("typed", {"x": 1}, "input.y"),
        ("mapping", 7, "input"),
        ("shout", 7, "input"),
    ],
)
async def test_an_input_that_does_not_fit_is_refused_with_the_path_of_what_is_wrong(
    tmp_path: Path, agent: str, input: Any, path: str
) -> None:
    async with running(app, tmp_path) as place:
        with pytest.raises(Invalid) as caught:
            await place.start(agent, input)
        assert caught.value.errors[0]["path"] == path
        assert await place.client.threads() == []


async def test_an_unknown_agent_is_refused(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        with pytest.raises(UnknownAgent):
            await place.start("nobody")


async def test_agents_are_listed_with_their_description_and_schema(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        infos = {info.name: info for info in await place.client.agents()}
    assert list(infos) == sorted(infos)
    assert infos["named.one-1"].description == "Does nothing."
    schema = infos["by_name"].input_schema
    assert (schema["required"], list(schema["properties"])) == (["a"], ["a", "b", "c"])  # type: ignore[arg-type]
    assert list(infos["model"].input_schema["properties"]) == ["text", "limit"]  # type: ignore[arg-type]


async def test_a_returned_string_is_said_if_nothing_was_and_other_values_are_not(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        said = await place.finished("optional", "hello")
        assert (await place.message(said)).content == "hello"
        unsaid = await place.finished("by_name", 1)
        assert await place.messages(unsaid) == []


async def test_all_that_a_generator_yields_is_one_message_and_its_text_is_the_output(tmp_path: Path) -> None:
    async with running(app, tmp_path) as place:
        run = await place.finished("shout", message="so it goes")
        assert [(m.role, m.content) for m in await place.messages(run)] == [
            ("user", "so it goes"),
            ("assistant", "SO IT GOES "),
        ]


# --- what is refused when the module is loaded ------------------------------------------------------------------


def sync(run: Run) -> None: ...


async def no_run() -> None: ...


async def variadic(run: Run, *args: int) -> None: ...


async def keywords(run: Run, **kwargs: int) -> None: ...


async def positional(run: Run, a: int, /) -> None: ...


async def unreadable(run: Run, a: Unreadable) -> None: ...


async def unknown_name(run: Run, a: NotThere) -> None: ...  # type: ignore[name-defined] # noqa: F821


@pytest.mark.parametrize(
    ("function", "options", "said"),
    [
        (sync, {}, "sync is not async"),
        (no_run, {}, "no_run takes no run"),
        (variadic, {}, "*args"),
        (keywords, {}, "**kwargs"),
        (positional, {}, "has no name"),
        (unreadable, {}, "Unreadable"),
        (unknown_name, {}, "NotThere"),
        (nothing, {"name": "with space"}, "with space"),
        (nothing, {"name": "1st"}, "1st"),
        (nothing, {"name": "a" * 129}, "128"),
        (nothing, {"timeout_s": 0}, "timeout_s"),
        (nothing, {"timeout_s": float("nan")}, "timeout_s"),
        (nothing, {"timeout_s": float("inf")}, "timeout_s"),
        (nothing, {"timeout_s": 1e15}, "timeout_s"),
        (nothing, {"max_attempts": 0}, "max_attempts"),
    ],
)
def test_what_cannot_be_an_agent_is_refused_at_once_and_says_why(
    function: Callable[..., Any], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadConfig) as caught:
        Runstone().agent(**options)(function)
    assert said in str(caught.value)
    assert caught.value.remedy


def test_two_agents_of_one_name_are_refused() -> None:
    twice = Runstone()
    twice.agent(nothing)
    with pytest.raises(BadConfig, match="two agents named nothing"):
        twice.agent(nothing)
    twice.agent(name="other")(nothing)


def test_registering_leaves_the_function_as_it_is() -> None:
    assert Runstone().agent(nothing) is nothing
