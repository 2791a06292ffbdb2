"""A server that is killed, again and again, never takes back what it has shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.dice import dice
from tests.support.forked import MODULES, ForkedServer
from tests.support.history import Violation
from tests.support.ordeal import Ordeal
from tests.support.talk import Talk
from tests.support.zygote import Zygote

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PLANTED_KILLS_MAX = 15


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    found = Zygote(*MODULES, "tests.support.hardy")
    yield found
    found.close()


async def go_through(ordeal: Ordeal, kills: int) -> None:
    try:
        await ordeal.run(kills)
    finally:
        ordeal.server.kill()
        print(ordeal.account())  # noqa: T201 - pytest shows it when the test fails


async def killed(zygote: Zygote, folder: Path, journal_mode: str, kills: int) -> None:
    server = ForkedServer(zygote, folder, "tests.support.hardy:app", journal_mode)
    ordeal = Talk(server, dice(f"kills in {journal_mode}"))
    await go_through(ordeal, kills)
    # It was hard enough to mean something: events were on their way, and runs were under way, when it died.
    assert ordeal.history.shown > 10 * kills
    assert len(ordeal.taken_up) > kills // 4
    assert kills // 5 < ordeal.aimed < kills // 2


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("journal_mode", "kills"), [("wal", 100), ("delete", 40)])
async def test_killed_at_random_it_has_everything_that_anyone_saw(
    zygote: Zygote, tmp_path: Path, journal_mode: str, kills: int
) -> None:
    await killed(zygote, tmp_path, journal_mode, kills)


@pytest.mark.torture
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(("journal_mode", "kills"), [("wal", 1000), ("delete", 500)])
async def test_killed_a_thousand_times_it_has_everything_that_anyone_saw(
    zygote: Zygote, tmp_path: Path, journal_mode: str, kills: int
) -> None:
    await killed(zygote, tmp_path, journal_mode, kills)


async def test_events_that_are_shown_before_their_commit_are_found_out(zygote: Zygote, tmp_path: Path) -> None:
    server = ForkedServer(zygote, tmp_path, "tests.support.planted:app")
    ordeal = Talk(server, dice("planted"), {"before_commit": (40, 120)}, aim_share=1.0)
    with pytest.raises(Violation, match=r"is not in the log|is in the log as|was shown another event"):
        await go_through(ordeal, PLANTED_KILLS_MAX)
