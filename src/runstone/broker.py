"""The seam to a broker: hints, which may be lost, doubled or late. Never the truth.

A hint changes latency only: whoever waits for one also looks at the log every second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import msgspec


class Hint(msgspec.Struct, frozen=True):
    """What may be worth a look.

    `events`: thread `id` has events up to `seq`. `feed`: a thread of the user `id` has changed. `work`: there may be a
    run to claim. `cancel`, `answer` (to one of its approvals) and `ended`: the run `id`.
    """

    about: Literal["events", "feed", "work", "cancel", "answer", "ended"]
    id: str = ""
    seq: int = 0


class Broker(Protocol):
    async def open(self, receive: Callable[[Hint], None]) -> None:
        """From now on every hint that arrives is given to `receive`, on the event loop."""
        ...

    async def close(self) -> None: ...

    def publish(self, hint: Hint) -> None:
        """Sends without waiting and without raising."""
        ...
