"""Prometheus metrics: counted when events happen, or looked up during a scrape.

Events arrive by the signals in `signals`. The processes of one server count in one folder (see
`multiprocess_dir`), and whichever is scraped returns the sum. Values that are looked up are the
same in all processes, so only the scraped process exports them.

Every label value is the server's own: a registered backend, a runtime that it supports, a member of
an enum. Nothing that a client sends becomes a label.
"""

import os
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db import DatabaseError, InterfaceError, connection
from django.utils.crypto import constant_time_compare
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from .. import signals
from ..backends.base import Health
from ..conf import metrics_access, runtime_dir
from ..execution.slots import slots_in_use
from ..executors import get_executor
from ..executors.base import Executor
from ..models import Workload
from ..registry import Registry, registry
from ..utils.singleflight import CallTimeout, SingleFlight
from ..workloads import ExitReason, Status, WorkloadResult
from . import multiprocess_dir

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
DATABASE_TIMEOUT_S = 1.0  # how long a scrape waits for the database
STATES = tuple(Health.STATES.values())

# They add many series for little use, and multiprocess mode does not support them.
disable_created_metrics()  # type: ignore[no-untyped-call]

WORKLOADS = Counter(
    "vulcan_workloads_total",
    "Recorded workloads that have ended.",
    ["backend", "runtime", "exit_reason"],
)
DURATION = Histogram(
    "vulcan_workload_duration_seconds",
    "How long programs ran, as their backend measured it.",
    ["backend", "runtime"],
    buckets=[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300],
)
STARTUP = Histogram(
    "vulcan_workload_startup_seconds",
    "Duration of executions beyond the program's own: start-up and clean-up.",
    ["backend", "runtime"],
    buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)
QUEUE = Histogram(
    "vulcan_workload_queue_seconds",
    "Time from the submission of a workload until it started.",
    ["backend"],
    buckets=[0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900],
)
PROBE = Histogram(
    "vulcan_probe_duration_seconds",
    "Duration of probes; a hanging probe is counted when it ends.",
    ["backend"],
    buckets=[0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
)
THREADS_HELD = Gauge(
    "vulcan_threads_held",
    "Threads that requests hold while they wait or stream, in all processes.",
    multiprocess_mode="livesum",
)
THREADS_LIMIT = Gauge(
    "vulcan_threads_held_limit",
    "How many threads may be held, over all processes that have held one.",
    multiprocess_mode="livesum",
)
THREADS_REFUSED = Counter(
    "vulcan_threads_refused_total",
    "Requests refused because too many were waiting or streaming.",
)
STREAMS_OPEN = Gauge(
    "vulcan_log_streams",
    "Log streams without a thread of their own, in all processes.",
    multiprocess_mode="livesum",
)
STREAMS_LIMIT = Gauge(
    "vulcan_log_streams_limit",
    "How many of these may be open, over all processes that have had one.",
    multiprocess_mode="livesum",
)
STREAMS_REFUSED = Counter(
    "vulcan_log_streams_refused_total",
    "Log streams refused because too many were open.",
)
WARM_INSTANCES = Gauge(
    "vulcan_warm_instances",
    "Warm instances that wait for workloads, in all processes, as of the last probe.",
    ["backend"],
    multiprocess_mode="livesum",
)


# Events


def subscribe() -> None:
    """Connect the receivers of the signals; a second call changes nothing."""
    for signal, receiver in (
        (signals.workload_ended, _workload_ended),
        (signals.execution_ended, _execution_ended),
        (signals.probe_ended, _probe_ended),
        (signals.threads_held, _threads_held),
        (signals.streams_open, _streams_open),
    ):
        signal.connect(receiver, dispatch_uid=f"{__name__}.{receiver.__name__}")


def _workload_ended(workload: Workload, **_: Any) -> None:
    name, runtime = workload.isolation_used, workload.runtime
    WORKLOADS.labels(name, runtime, workload.exit_reason).inc()
    if workload.started_at is not None:  # possibly by another host's clock
        delay = workload.started_at - workload.created_at
        QUEUE.labels(name).observe(max(0.0, delay.total_seconds()))


def _execution_ended(
    name: str, runtime: str, result: WorkloadResult, seconds: float, **_: Any
) -> None:
    if result.exit_reason is not ExitReason.BACKEND_ERROR:
        duration_s = result.duration_ms / 1000
        DURATION.labels(name, runtime).observe(duration_s)
        STARTUP.labels(name, runtime).observe(max(0.0, seconds - duration_s))


def _probe_ended(name: str, seconds: float, warm_count: int | None, **_: Any) -> None:
    PROBE.labels(name).observe(seconds)
    if warm_count is not None:
        WARM_INSTANCES.labels(name).set(warm_count)


def _threads_held(held: int, limit: int, refused: bool, **_: Any) -> None:
    THREADS_HELD.set(held)
    THREADS_LIMIT.set(limit)
    if refused:
        THREADS_REFUSED.inc()


def _streams_open(held: int, limit: int, refused: bool, **_: Any) -> None:
    STREAMS_OPEN.set(held)
    STREAMS_LIMIT.set(limit)
    if refused:
        STREAMS_REFUSED.inc()


class MultiprocessCollector(Collector):
    """Sums what all processes of one server have counted, each in files of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # MultiProcessCollector itself would fail on a file that was just created.
        files = [str(file) for file in self._folder.glob("*.db") if _has_content(file)]
        merged: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return merged


def _has_content(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # its process has just ended
        return False


# Collectors that look values up


class SlotCollector(Collector):
    """Collects the slots on this host of the backends whose workloads run here."""

    def __init__(self, registry: Registry, names: Iterable[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterator[Metric]:
        used = _gauge("vulcan_slots_used", "Slots in use on this host.", "backend")
        limit = _gauge("vulcan_slots_limit", "Slots on this host.", "backend")
        for name in self._names:
            entry = self._registry.snapshot.entries.get(name)
            if entry is not None:
                max_slots = entry.capabilities.max_concurrency
                limit.add_metric([name], max_slots)
                with suppress(OSError):  # omit a value that cannot be read
                    used.add_metric([name], slots_in_use(name, max_slots, runtime_dir()))
        yield used
        yield limit


class SiteCollector(Collector):
    """Collects the state of the whole site: health, nodes, pending and running workloads."""

    def __init__(self, registry: Registry, executor: Executor) -> None:
        self._registry = registry
        self._executor = executor

    def collect(self) -> Iterator[Metric]:
        entries = self._registry.snapshot.entries
        health = _gauge(
            "vulcan_backend_health", "1 for the current state of the backend.", "backend", "state"
        )
        for name, entry in entries.items():
            for state in STATES:
                health.add_metric([name, state], entry.health.state == state)
        yield health
        alive = _gauge("vulcan_nodes_alive", "Nodes that run workloads and are alive.")
        alive.add_metric([], self._executor.node_count)
        yield alive
        database_up = _gauge("vulcan_database_up", "1 when the database responded to this scrape.")
        try:
            counts = _active.start().result()
        except (DatabaseError, InterfaceError, CallTimeout):
            database_up.add_metric([], 0)
        else:
            database_up.add_metric([], 1)
            for status in (Status.PENDING, Status.RUNNING):
                gauge = _gauge(
                    f"vulcan_workloads_{status}", f"Workloads that are {status}.", "backend"
                )
                for name in sorted({*entries, *(name for name, _ in counts)}):
                    gauge.add_metric([name], counts[name, status])
                yield gauge
        yield database_up


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=labels)


def _count_active() -> "Tally[tuple[str, str]]":
    try:
        return Workload.objects.active_counts()
    finally:
        connection.close()  # it belongs to this thread


_active = SingleFlight(_count_active, DATABASE_TIMEOUT_S)


# Expositions


def server_exposition() -> bytes:
    """Return the metrics of a server; with slots when it runs workloads itself."""
    collectors: list[Collector] = [SiteCollector(registry, get_executor())]
    if not get_executor().remote:
        collectors.append(SlotCollector(registry, registry))
    return _exposition(collectors, os.environ.get(multiprocess_dir.ENV_VAR))


def worker_exposition(names: Iterable[str], folder: Path) -> bytes:
    """Return the metrics of the workers of these backends, which count in `folder`."""
    return _exposition([SlotCollector(registry, names)], str(folder))


def forget_process(pid: int, folder: Path) -> None:
    """Remove the gauges of a process that has ended; its counters stay."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _exposition(collectors: Iterable[Collector], folder: str | None) -> bytes:
    """Return all metrics in Prometheus' text format; without a folder, those of this process."""
    collector_registry = CollectorRegistry()
    if folder:
        collector_registry.register(MultiprocessCollector(Path(folder)))
    else:
        collector_registry.register(REGISTRY)
    for collector in collectors:
        collector_registry.register(collector)
    return generate_latest(collector_registry)


def is_authorized(authorization: str) -> bool:
    """Return whether an Authorization header allows reading the metrics, in constant time."""
    settings = metrics_access()
    if settings.access == "open":
        return True
    scheme, _, token = authorization.partition(" ")
    return (
        settings.access == "token"
        and settings.token != ""
        and scheme.lower() == "bearer"
        and constant_time_compare(token.strip(), settings.token)
    )
