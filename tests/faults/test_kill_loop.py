"""Agents that have effects in the world, on a server that is killed: all runs end, and nothing is done twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dice import dice
from tests.support.forked import MODULES, ForkedServer
from tests.support.toil import Toil
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote(*MODULES, "tests.support.crew")
    yield found
    found.close()


async def killed(zygote: Zygote, folder: Path, journal_mode: str, kills: int) -> None:
    toil = Toil(ForkedServer(zygote, folder, "tests.support.crew:app", journal_mode), dice(f"toil in {journal_mode}"))
    try:
        await toil.run(kills)
    finally:
        toil.server.kill()
        print(toil.account())  # noqa: T201 - pytest shows it when the test fails
    # It was hard enough to mean something.
    assert len(toil.finished) > kills // 10
    assert len(toil.taken_up) > kills


@pytest.mark.timeout(300)
async def test_killed_hundreds_of_times_all_runs_end_and_nothing_is_done_twice(zygote: Zygote, tmp_path: Path) -> None:
    await killed(zygote, tmp_path, "wal", 200)


@pytest.mark.torture
@pytest.mark.timeout(1700)
@pytest.mark.parametrize(("journal_mode", "kills"), [("wal", 2000), ("delete", 300)])
async def test_killed_thousands_of_times_all_runs_end_and_nothing_is_done_twice(
    zygote: Zygote, tmp_path: Path, journal_mode: str, kills: int
) -> None:
    await killed(zygote, tmp_path, journal_mode, kills)
