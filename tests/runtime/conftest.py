"""What the tests of the runtime share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.zygote import Zygote


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    found = Zygote("runstone.cli", "runstone.server", "hypothesis", "pytest")
    yield found
    found.close()
