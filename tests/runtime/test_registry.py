"""The registry of runs under way: register, get, cancel, complete, clean up, from any number of tasks."""

from __future__ import annotations

import asyncio
import random

import pytest

from runstone.runtime.registry import Registry, Running

pytestmark = pytest.mark.anyio


async def _forever() -> None:
    await asyncio.sleep(3600)


@pytest.fixture
async def tasks():
    """Makes tasks that run until the test ends."""
    made: list[asyncio.Task[None]] = []

    def make() -> asyncio.Task[None]:
        made.append(asyncio.create_task(_forever()))
        return made[-1]

    yield make
    for task in made:
        task.cancel()
    await asyncio.gather(*made, return_exceptions=True)


async def test_a_registered_run_is_found_until_it_is_complete(tasks) -> None:
    registry = Registry()
    running = registry.register("run_1", tasks(), 1.0)
    assert registry.get("run_1") is running
    assert registry.get("run_2") is None
    assert (len(registry), registry.active) == (1, 1)
    running.task.cancel()
    await asyncio.wait({running.task})
    registry.complete("run_1", 2.0)
    assert (len(registry), registry.active) == (0, 0)


async def test_a_run_is_under_way_once(tasks) -> None:
    registry = Registry()
    registry.register("run_1", tasks(), 1.0)
    with pytest.raises(ValueError, match="run_1"):
        registry.register("run_1", tasks(), 1.0)


async def test_only_the_first_reason_to_stop_counts(tasks) -> None:
    registry = Registry()
    running = registry.register("run_1", tasks(), 1.0)
    assert registry.cancel("run_1")
    assert not registry.cancel("run_1")
    assert not running.stop("timeout")
    assert running.stop_reason == "cancelled"
    assert running.attention.is_set()
    assert not registry.cancel("run_2")


async def test_what_is_complete_is_not_stopped(tasks) -> None:
    registry = Registry()
    running = registry.register("run_1", tasks(), 1.0)
    registry.complete("run_1", 2.0)
    assert not registry.cancel("run_1")
    assert running.stop_reason is None
    registry.complete("run_1", 3.0)
    assert running.completed == 2.0
    registry.complete("run_unknown", 3.0)


async def test_an_agent_that_outlives_its_run_is_known_until_it_ends(tasks) -> None:
    registry = Registry()
    running = registry.register("run_1", tasks(), 1.0)
    registry.complete("run_1", 2.0)
    assert (len(registry), registry.active) == (1, 0), "it takes no slot"
    assert registry.clean_up(5.0, 10.0) == []
    assert registry.clean_up(12.0, 10.0) == [running]
    running.task.cancel()
    await asyncio.wait({running.task})
    assert registry.clean_up(12.0, 10.0) == []
    assert len(registry) == 0


async def test_clean_up_leaves_what_is_under_way(tasks) -> None:
    registry = Registry()
    registry.register("run_1", tasks(), 1.0)
    assert registry.clean_up(1e9, 0.0) == []
    assert len(registry) == 1


async def test_who_comes_while_all_are_stopped_is_stopped_too(tasks) -> None:
    registry = Registry()
    early = registry.register("run_1", tasks(), 1.0)
    registry.stop_all("released")
    late = registry.register("run_2", tasks(), 1.0)
    assert [early.stop_reason, late.stop_reason] == ["released", "released"]


async def test_the_registry_may_change_while_somebody_goes_through_it(tasks) -> None:
    registry = Registry()
    for number in range(5):
        registry.register(f"run_{number}", tasks(), 1.0)
    seen: list[Running] = []
    for running in registry:
        seen.append(running)
        running.task.cancel()
        await asyncio.wait({running.task})
        registry.complete(running.run_id, 2.0)
        registry.register(f"new_{len(seen)}", tasks(), 2.0)
    assert [running.run_id for running in seen] == [f"run_{number}" for number in range(5)]
    assert (len(registry), registry.active) == (5, 5)


async def test_many_tasks_use_it_at_once_and_nothing_is_lost_or_stopped_twice(tasks) -> None:
    registry = Registry()
    dice = random.Random(7)
    stopped: list[str] = []
    ended: list[str] = []

    async def life(run_id: str) -> None:
        task = tasks()
        running = registry.register(run_id, task, 1.0)
        await running.attention.wait()
        task.cancel()
        await asyncio.wait({task})
        registry.complete(run_id, 2.0)
        ended.append(run_id)

    async def stopper() -> None:
        while len(ended) < 200:
            run_id = f"run_{dice.randrange(200)}"
            if registry.cancel(run_id):
                stopped.append(run_id)
            registry.clean_up(3.0, 0.0)
            await asyncio.sleep(0)

    await asyncio.gather(*[life(f"run_{number}") for number in range(200)], *[stopper() for _ in range(5)])
    assert sorted(stopped) == sorted(ended) == sorted(f"run_{number}" for number in range(200))
    assert len(registry) == 0


async def test_who_asks_a_run_to_stop_before_it_is_registered_is_heard_then(tasks) -> None:
    registry = Registry()
    registry.expect("run_1")
    registry.expect("run_2")
    assert registry.cancel("run_1")
    assert registry.register("run_1", tasks(), 1.0).stop_reason == "cancelled"
    assert registry.register("run_2", tasks(), 1.0).stop_reason is None
    registry.expect("run_3")
    registry.complete("run_3", 2.0)
    assert not registry.cancel("run_3"), "it never began"
