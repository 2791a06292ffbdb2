"""The composition root: settings in, a running system and its ASGI application out.

The only file that picks implementations.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from typing import Any, Self

import structlog
from starlette.types import Receive, Scope, Send

from runstone.audit import Audit
from runstone.broker import Broker
from runstone.brokers.local import LocalBroker
from runstone.clock import Clock, SystemClock
from runstone.config import Config
from runstone.errors import BadConfig, ShutdownUnfinished
from runstone.gateway.app import Gateway
from runstone.gateway.gate import is_loopback
from runstone.gateway.listener import Server, event_loop_factory
from runstone.log import Log
from runstone.metrics import Metrics
from runstone.runtime.breakers import Breakers
from runstone.runtime.definitions import Agents
from runstone.runtime.worker import Worker
from runstone.service import Tasks
from runstone.stores.migrations import Applied, Step
from runstone.stores.sqlite import SqliteStore, maintenance
from runstone.stores.sqlite.audit import audit as audit_sqlite

logger = structlog.get_logger(__name__)


class System:
    """A store, a log, a worker and a gateway that belong together: started together, stopped together."""

    def __init__(
        self, config: Config, agents: Agents, *, clock: Clock | None = None, broker: Broker | None = None
    ) -> None:
        clock = clock or SystemClock()
        self.config = config
        self.metrics = Metrics()
        self.log = Log(SqliteStore(config.store, clock), broker or LocalBroker(), clock, self.metrics)
        breakers = Breakers(clock, self.metrics, failures=config.breaker_failures, recovery_s=config.breaker_recovery_s)
        self.worker = Worker(
            self.log,
            agents,
            breakers,
            clock,
            self.metrics,
            slots=config.slots,
            lease_s=config.lease_s,
            grace_s=config.grace_s,
            debug=config.debug,
        )
        self.gateway = Gateway(self.log, agents, breakers, config, self.metrics)

    async def start(self) -> None:
        """Opens the store, takes up the queue and what a dead process left."""
        await self.log.start()
        try:
            await self.worker.start()
        except BaseException:
            await self.log.stop()
            raise

    async def drain(self) -> None:
        """Before a stop: runs may end by themselves for a while; streams still show them."""
        self.gateway.drain()
        await self.worker.drain()

    async def stop(self) -> None:
        """Streams are told first, then runs are let go of, then the log commits what was said. Safe twice."""
        await self.gateway.close()
        await self.worker.stop()
        await self.gateway.stop()
        await self.log.stop()


GC_THRESHOLDS = (50_000, 50, 100)  # with Python's own, full collections held 500 streams up: p99 190 ms became 100
SWITCH_INTERVAL_S = (
    0.0001  # with Python's 5 ms a busy event loop starves the writer's thread: 54,000 events/s became 746
)


LATE_S = 25.0  # for a whole shutdown; more than its steps take together
LATE_HURRY_S = 8.0  # from the second signal on


class _Served:
    """A system as an ASGI application with a lifespan."""

    def __init__(self, system: System) -> None:
        self._system = system

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self._system.gateway(scope, receive, send)
            return
        await receive()
        await self._system.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._system.stop()
        await send({"type": "lifespan.shutdown.complete"})


def serve(config: Config, agents: Agents, *, ready: Callable[[str, int], None]) -> None:
    """Serves until SIGTERM or SIGINT. Raises StoreFailed when the store failed, and what start refuses.

    `ready` is called with the host and port once requests are answered.
    """
    if not is_loopback(config.host):
        raise BadConfig(
            f"{config.host} is reached from other machines, and no auth is configured.",
            remedy="Listen on 127.0.0.1, the default.",
        )
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()  # what was imported stays: there is no need to look through it again and again
    gc.set_threshold(*GC_THRESHOLDS)
    runner = asyncio.Runner(loop_factory=event_loop_factory)
    with _Signals() as signals:
        try:
            runner.run(_serve(System(config, agents), config, ready, signals))
        finally:
            if not asyncio.all_tasks(runner.get_loop()):
                runner.close()  # which waits for every task, also for an agent that ignores its cancel


class _Signals:
    """SIGTERM and SIGINT stop the server; code that holds the event loop, and cannot be stopped, ends with the process.

    The handlers run between two instructions of whatever the main thread is doing, also where the loop does not turn.
    """

    def __init__(self) -> None:
        self._stop: Callable[[], object] = lambda: None
        self._before: dict[signal.Signals, Any] = {}
        self._timers: list[threading.Timer] = []

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(self, *_error: object) -> None:
        for timer in self._timers:
            timer.cancel()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_with(self, stop: Callable[[], None]) -> None:
        """From now on they call `stop`, on the running loop."""
        self._stop = partial(asyncio.get_running_loop().call_soon_threadsafe, stop)
        if self._timers:
            stop()  # asked for before there was anything to stop

    def _received(self, _number: int, _frame: object) -> None:
        timer = threading.Timer(LATE_HURRY_S if self._timers else LATE_S, _give_up)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)
        with suppress(RuntimeError):  # the loop has ended: there is nothing left to stop
            self._stop()


def _give_up() -> None:
    logger.critical(
        "the shutdown did not end in time: the process ends as it is; nothing acknowledged is lost",
        remedy="Look for code that holds the event loop: it is named above.",
    )
    sys.stderr.flush()
    os._exit(1)


async def _serve(system: System, config: Config, ready: Callable[[str, int], None], signals: _Signals) -> None:
    server = Server(
        _Served(system),
        config.host,
        config.port,
        ready=ready,
        before_shutdown=system.gateway.close,
        signals=False,
    )
    tasks = Tasks("serve")
    signals.stop_with(_Stopping(system, server, tasks).stop)
    tasks.run(_stop_on_failure(system, server), "failure")
    try:
        await server.serve()
    except TimeoutError as error:
        if system.log.failure is None:
            raise ShutdownUnfinished(f"{str(error).capitalize()}.") from None
    finally:
        await tasks.stop()
    if system.log.failure is not None:
        raise system.log.failure


class _Stopping:
    """The first request drains, then stops the server; the second cuts the grace short; later ones hurry."""

    def __init__(self, system: System, server: Server, tasks: Tasks) -> None:
        self._system = system
        self._server = server
        self._tasks = tasks
        self._draining: asyncio.Task[None] | None = None

    def stop(self) -> None:
        if self._draining is None:
            self._draining = self._tasks.start(self._system.drain(), "drain")
            self._draining.add_done_callback(lambda _done: self._server.stop())
        elif not self._draining.done():
            self._draining.cancel()
        else:
            self._server.stop()


async def _stop_on_failure(system: System, server: Server) -> None:
    """Fail-stop: after a moment in which `store_failed` is answered, the process ends."""
    await system.log.failed.wait()
    await system.gateway.close("store_failed")
    server.stop()


def audit(store_url: str) -> AbstractContextManager[Audit]:
    """A store, opened to be checked, beside whoever serves it; raises NotFound, StoreTooNew or StoreOutdated."""
    return audit_sqlite(store_url, SystemClock())


def migrations_applied(store_url: str) -> list[Applied]:
    """The migrations that made a store."""
    return maintenance.applied(store_url)


def migration_steps(store_url: str, target: int | None) -> list[Step]:
    """The steps from a store as it is to a version (default: the newest); changes nothing."""
    return maintenance.steps(store_url, target)


def migrate(store_url: str, target: int | None) -> list[Step]:
    """Carries those steps out; raises StoreLocked while somebody serves the store."""
    return maintenance.move(store_url, target)
