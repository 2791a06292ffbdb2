"""What a server counts and times, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_SIZES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)


class Deliveries(Collector):
    """Events handed to connections, by protocol.

    Counted by the event loop's thread alone: the lock of a `Counter` would cost a tenth of a delivery.
    """

    def __init__(self) -> None:
        self._tallies: dict[str, Tally] = {}

    def labels(self, *, protocol: str) -> Tally:
        return self._tallies.setdefault(protocol, Tally())

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily("runstone_events_delivered", "Events handed to connections", labels=["protocol"])
        for protocol, tally in self._tallies.items():
            family.add_metric([protocol], tally.count)
        yield family


class Tally:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self, count: int) -> None:
        self.count += count


class Metrics:
    """One registry per running system, so that two in one process do not mix."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.commit_seconds = Histogram(
            "runstone_commit_seconds",
            "Duration of a commit, fsync included",
            registry=registry,
            buckets=_SECONDS,
        )
        self.batch_events = Histogram("runstone_batch_events", "Events in a commit", registry=registry, buckets=_SIZES)
        self.tail_lag_seconds = Histogram(
            "runstone_tail_lag_seconds",
            "From commit to the hand-over to a connection",
            registry=registry,
            buckets=_SECONDS,
        )
        self.events_appended = Counter("runstone_events_appended", "Events committed", registry=registry)
        self.events_delivered = Deliveries()
        registry.register(self.events_delivered)
        self.connections = Gauge("runstone_connections", "Open streams", ["protocol"], registry=registry)
        self.connections_aborted = Counter(
            "runstone_connections_aborted", "Streams cut off because nothing was read", registry=registry
        )
        self.runs = Gauge("runstone_runs", "Unfinished runs, by status", ["status"], registry=registry)
        self.runs_ended = Counter("runstone_runs_ended", "Runs ended, by status", ["status"], registry=registry)
        self.loop_blocked = Counter(
            "runstone_loop_blocked", "Times that code held the event loop for too long", registry=registry
        )
        self.breaker_state = Gauge(
            "runstone_breaker_state", "0 closed, 1 half-open, 2 open", ["breaker"], registry=registry
        )
        self.breaker_refusals = Counter(
            "runstone_breaker_refusals", "Calls and starts that an open breaker refused", ["breaker"], registry=registry
        )
        self.tool_retries = Counter("runstone_tool_retries", "Calls made once more", ["tool"], registry=registry)
        self.buffer_bytes = Gauge("runstone_buffer_bytes", "Said by runs and not yet committed", registry=registry)

    def exposition(self) -> bytes:
        return generate_latest(self.registry)
