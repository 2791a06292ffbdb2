"""The composition root: settings in, a running system and its ASGI application out.

The only file that picks implementations.
"""

from __future__ import annotations

from runstone.broker import Broker
from runstone.brokers.local import LocalBroker
from runstone.clock import Clock, SystemClock
from runstone.config import Config
from runstone.errors import StoreFailed
from runstone.gateway.app import Gateway
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.runtime.definitions import Agents
from runstone.runtime.worker import Worker
from runstone.stores.sqlite import SqliteStore


class System:
    """A store, a log, a worker and a gateway that belong together: started together, stopped together."""

    def __init__(self, config: Config, agents: Agents, *, clock: Clock | None = None, broker: Broker | None = None) -> None:
        clock = clock or SystemClock()
        self.config = config
        self.metrics = Metrics()
        self.log = Log(SqliteStore(config.store, clock), broker or LocalBroker(), clock, self.metrics)
        self.worker = Worker(self.log, agents, clock, self.metrics, slots=config.slots, debug=config.debug)
        self.gateway = Gateway(self.log, agents, config, self.metrics)

    async def start(self) -> None:
        """Opens the store, ends what a dead process left, takes up the queue."""
        await self.log.start()
        try:
            await self.worker.start()
        except BaseException:
            await self.log.stop()
            raise

    async def stop(self) -> None:
        """Streams are told first, then runs are let go of, then the log commits what was said. Safe twice."""
        await self.gateway.close()
        await self.worker.stop()
        await self.gateway.stop()
        await self.log.stop()

    async def failure(self) -> StoreFailed:
        """Returns when the store has failed."""
        await self.log.failed.wait()
        assert self.log.failure is not None
        return self.log.failure
