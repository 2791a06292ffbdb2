"""Any program of tools, steps and children, killed at any instants: the same outcome, and nothing unsafe twice.

How a kill is made here: the files of the store are copied after each commit, and the run goes on from a copy.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from runstone import ActionInterrupted, Run, Runstone, ToolError
from runstone.client import Event
from tests.runtime.snapshots import Snapshots, snapshots
from tests.runtime.support import Place, running

Node: TypeAlias = "list[Any]"

NOT_KNOWN = "?"  # what an unsafe call gives that was under way when the process died

app = Runstone()
effects: list[str] = []


@app.tool
async def unsafe(number: int) -> str:
    await asyncio.sleep(0)
    effects.append(f"unsafe {number}")
    await asyncio.sleep(0)
    return f"unsafe {number}"


@app.tool(idempotent=True)
async def safe(number: int) -> str:
    effects.append(f"safe {number}")
    return f"safe {number}"


@app.tool
async def wrong(number: int) -> None:
    effects.append(f"wrong {number}")
    raise LookupError(f"wrong {number}")


@app.tool(idempotent=True)
async def within(nodes: list[Any]) -> list[Any]:
    """A tool that does things itself."""
    run = Run.current()
    assert run is not None
    return await play_all(run, nodes)


async def play_all(run: Run, nodes: list[Any]) -> list[Any]:
    return [await play(run, node) for node in nodes]


async def play(run: Run, node: Node) -> Any:
    kind, *rest = node
    try:
        match kind:
            case "unsafe":
                return await unsafe(*rest)
            case "safe":
                return await safe(*rest)
            case "wrong":
                return await wrong(*rest)
            case "within":
                return await within(*rest)
            case "say":
                return await run.say(*rest)
            case "step":
                return await run.step(rest[0], play_all, run, rest[1])
            case "call":
                return await run.call("program", rest[0])
            case _:
                return await asyncio.gather(*[play(run, branch) for branch in rest[0]])
    except ActionInterrupted:
        return NOT_KNOWN
    except ToolError as error:
        return f"{error.type}: {error}"


@app.agent(max_attempts=100)
async def program(run: Run, nodes: list[Any]) -> list[Any]:
    return await play_all(run, nodes)


numbers = st.integers(1, 2)  # few, so that calls are equal often
quiet: st.SearchStrategy[Node] = st.one_of(
    st.tuples(st.just("unsafe"), numbers).map(list),
    st.tuples(st.just("unsafe"), numbers).map(list),
    st.tuples(st.just("safe"), numbers).map(list),
    st.tuples(st.just("wrong"), numbers).map(list),
)
leaves = quiet | st.tuples(st.just("say"), st.sampled_from(["one", "two"])).map(list)
nodes: st.SearchStrategy[Node] = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.tuples(st.just("par"), st.lists(inner, min_size=1, max_size=3)).map(list),
        st.tuples(st.just("step"), st.just(""), st.lists(inner, max_size=3)).map(list),
        st.tuples(st.just("call"), st.lists(inner, max_size=3)).map(list),
        st.tuples(st.just("within"), st.lists(quiet, max_size=2)).map(list),  # what a tool says does not stand,
    ),
    max_leaves=8,
)
programs = st.lists(nodes, min_size=1, max_size=4)


def named(found: Sequence[Node], path: str = "") -> list[Node]:
    """The program, with a key of its own for every step."""
    result = []
    for index, (kind, *rest) in enumerate(found):
        here = f"{path}.{index}"
        if kind == "step":
            result.append([kind, here, named(rest[1], here)])
        elif isinstance(rest[0], list):
            result.append([kind, named(rest[0], here)])
        else:
            result.append([kind, *rest])
    return result


def calls(found: Sequence[Node]) -> Counter[str]:
    """How often each tool is called with each number when nothing happens."""
    total: Counter[str] = Counter()
    for kind, *rest in found:
        if isinstance(rest[-1], list):
            total += calls(rest[-1])
        elif kind != "say":
            total[f"{kind} {rest[0]}"] += 1
    return total


def same(output: Any, undisturbed: Any) -> bool:
    if isinstance(undisturbed, list) and isinstance(output, list):
        return len(output) == len(undisturbed) and all(map(same, output, undisturbed))
    unsafe = isinstance(undisturbed, str) and undisturbed.startswith(("unsafe", "LookupError"))
    return bool(output == undisturbed) or (output == NOT_KNOWN and unsafe)


def not_known(output: Any) -> int:
    return sum(map(not_known, output)) if isinstance(output, list) else int(output == NOT_KNOWN)


class Outcome:
    """How a run ended, and what is in its log."""

    def __init__(self, output: Any, said: list[str], events: list[Event], children: int) -> None:
        self.output = output
        self.said = said
        self.events = events
        self.children = children


async def outcome(place: Place, run_id: str) -> Outcome:
    handle = place.client.run(run_id)
    run = await place.ended(handle)
    assert run.error is None, run.error
    said = await place.client.messages(run.thread_id, children=True, role="assistant")
    runs = await place.client.runs(thread_id=run.thread_id)
    return Outcome(run.output, sorted(m.content for m in said), await place.events(run), len(runs))


async def undisturbed(store: Path, found: list[Node]) -> tuple[str, Outcome, Snapshots]:
    with snapshots(store, effects) as taken:
        async with running(app, store) as place:
            run = await place.start("program", {"nodes": found})
            return run.run_id, await outcome(place, run.run_id), taken


async def resumed(store: Path, run_id: str) -> tuple[Outcome, Snapshots]:
    with snapshots(store, effects) as taken:
        async with running(app, store) as place:
            return await outcome(place, run_id), taken


def check(found: list[Node], before: Outcome, after: Outcome) -> None:
    assert same(after.output, before.output)
    assert after.said == before.said
    assert after.children == before.children
    expected, done = calls(found), Counter(effects)
    begun = Counter(
        f"{event.data['tool']} {event.data['input']['number']}"  # type: ignore[index, call-overload]
        for event in after.events
        if event.type == "tool_executing" and event.data["tool"] != "within"
    )
    for call, count in expected.items():
        if not call.startswith("safe"):
            assert done[call] <= count, f"{call} was made {done[call]} times"
            assert begun[call] == count
        assert done[call] <= begun[call]
    unsafe = sum(count for call, count in expected.items() if not call.startswith("safe"))
    made = sum(count for call, count in done.items() if not call.startswith("safe"))
    assert made >= unsafe - not_known(after.output)


def go_through(found: list[Node], kills: list[list[float]]) -> None:
    effects.clear()
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_go_through(Path(folder), named(found), kills))


async def _go_through(folder: Path, found: list[Node], kills: list[list[float]]) -> None:
    run_id, before, taken = await undisturbed(folder / "undisturbed", found)
    assert Counter(effects) == calls(found)
    effects_of_all = list(effects)
    for number, places in enumerate(kills):
        effects[:] = effects_of_all
        life, later = before, taken
        told = []
        for life_number, place in enumerate(places):
            first = 0 if life_number else 1  # before its start is committed there is no run
            position = first + int(place * (len(later) - first))
            told.append(f"killed after commit {position} of {len(later)}")
            store = folder / f"{number}-{life_number}"
            later.restore(position, store)
            try:
                life, later = await resumed(store, run_id)
                check(found, before, life)
            except AssertionError as error:
                error.add_note(f"{', '.join(told)}: {found}")
                raise


instants = st.floats(0, 1, exclude_max=True)
# without a trace of every line, which takes minutes; and a failure is shown as it was found
quickly = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
kills = st.lists(st.lists(instants, min_size=1, max_size=2), min_size=2, max_size=2)
ALL_KINDS: list[Node] = [
    ["unsafe", 1],
    ["step", "", [["unsafe", 1], ["say", "in a step"], ["call", [["unsafe", 1], ["say", "in a child"]]]]],
    ["par", [["unsafe", 1], ["call", [["safe", 1], ["unsafe", 2]]], ["within", [["unsafe", 1]]], ["wrong", 1]]],
    ["say", "at the end"],
    ["unsafe", 1],
]


@pytest.mark.slow
@settings(quickly, max_examples=8)
@given(found=programs, kills=kills)
def test_a_program_that_is_killed_comes_to_the_same_and_does_nothing_unsafe_twice(
    found: list[Node], kills: list[list[float]]
) -> None:
    go_through(found, kills)


@pytest.mark.slow
def test_a_program_of_all_kinds_is_killed_after_each_of_its_commits() -> None:
    go_through(ALL_KINDS, [[instant / 36] for instant in range(36)])


@pytest.mark.torture
@pytest.mark.timeout(1500)
@settings(quickly, max_examples=250)
@given(found=programs, kills=kills)
def test_many_programs_that_are_killed_come_to_the_same(found: list[Node], kills: list[list[float]]) -> None:
    go_through(found, kills)
