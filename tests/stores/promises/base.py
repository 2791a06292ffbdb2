"""What all promises of a store are tested with: a place for one store, and the store on it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.stores.dump import Database, check
from tests.stores.making import (
    Shop,
)
from tests.support.clocks import ManualClock


class Promises:
    """Tests of stores; `database` is the implementation's place for one store."""

    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def shop(self, database: Database, clock: ManualClock) -> AsyncIterator[Shop]:
        """An open store. At the end of every test what it holds keeps the promises."""
        store = database.store(clock)
        await store.open()
        yield Shop(store)
        await store.close()
        check(database.dump())
