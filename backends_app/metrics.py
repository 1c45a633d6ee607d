"""What Prometheus reads: counted where it happens, or looked up in the moment of a scrape.

What happens is heard of by the signals of `signals`. Several processes of one server count in one
folder (see `metrics_folder`), and whichever of them is scraped gives the sum; what is looked up is
the same in all of them, so only the one that is scraped says it.

Every label is a name of this server's own: a registered backend, a runtime that it runs, a word of
an enum. Nothing that a client sends becomes one.
"""

import functools
import os
from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.db import DatabaseError, InterfaceError, connection
from django.db.models import Count
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

from . import metrics_folder, signals
from .backends.base import Health
from .conf import metrics_access, runtime_dir
from .executors import get_executor
from .executors.base import Executor
from .inquiry import CallTimeout, SingleFlight
from .models import Workload
from .registry import Registry, registry
from .slots import slots_in_use
from .workloads import ExitReason, Status, WorkloadResult

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
DATABASE_S = 1.0  # how long a scrape waits for the database
STATES = tuple(Health.STATES.values())

# They are more series than they are worth, and several processes would have none.
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
    "What executions took beyond the program's own duration: to begin, and to clean up.",
    ["backend", "runtime"],
    buckets=[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10],
)
QUEUE = Histogram(
    "vulcan_workload_queue_seconds",
    "From when a workload was submitted until it began.",
    ["backend"],
    buckets=[0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900],
)
PROBE = Histogram(
    "vulcan_probe_duration_seconds",
    "How long probes took; a hanging one is counted when it ends.",
    ["backend"],
    buckets=[0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30],
)
READS = Counter(
    "vulcan_registry_reads_total",
    "What requests and workloads asked the registry.",
    ["operation"],
)
THREADS_HELD = Gauge(
    "vulcan_threads_held",
    "Threads that requests hold while they wait or stream, in all processes.",
    multiprocess_mode="livesum",
)
THREADS_LIMIT = Gauge(
    "vulcan_threads_held_limit",
    "How many threads may be held, in all processes that had to ask.",
    multiprocess_mode="livesum",
)
THREADS_REFUSED = Counter(
    "vulcan_threads_refused_total",
    "Requests that were not to wait or stream, since too many did.",
)
WARM_INSTANCES = Gauge(
    "vulcan_warm_instances",
    "What waits prepared for the next workloads, in all processes; as old as the last probe.",
    ["backend"],
    multiprocess_mode="livesum",
)


# What happens


def subscribe() -> None:
    """Count from now on; a second call changes nothing."""
    for signal, receiver in (
        (signals.workload_ended, _workload_ended),
        (signals.execution_ended, _execution_ended),
        (signals.probe_ended, _probe_ended),
        (signals.registry_read, _registry_read),
        (signals.threads_held, _threads_held),
    ):
        signal.connect(receiver, dispatch_uid=f"{__name__}.{receiver.__name__}")


def _workload_ended(workload: Workload, **_: Any) -> None:
    name, runtime = workload.isolation_used, workload.runtime
    WORKLOADS.labels(name, runtime, workload.exit_reason).inc()
    if workload.started_at is not None:  # perhaps by another host's clock
        waited = workload.started_at - workload.created_at
        QUEUE.labels(name).observe(max(0.0, waited.total_seconds()))


def _execution_ended(
    name: str, runtime: str, result: WorkloadResult, seconds: float, **_: Any
) -> None:
    if result.exit_reason is not ExitReason.BACKEND_ERROR:
        ran = result.duration_ms / 1000
        DURATION.labels(name, runtime).observe(ran)
        STARTUP.labels(name, runtime).observe(max(0.0, seconds - ran))


def _probe_ended(name: str, seconds: float, warm_count: int | None, **_: Any) -> None:
    PROBE.labels(name).observe(seconds)
    if warm_count is not None:
        WARM_INSTANCES.labels(name).set(warm_count)


def _registry_read(operation: str, **_: Any) -> None:
    _reads(operation).inc()


def _threads_held(held: int, limit: int, refused: bool, **_: Any) -> None:
    THREADS_HELD.set(held)
    THREADS_LIMIT.set(limit)
    if refused:
        THREADS_REFUSED.inc()


_reads = functools.cache(READS.labels)  # there are few, and this is counted often


class MultiprocessCollector(Collector):
    """What all processes of one server have counted, each in files of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        # MultiProcessCollector itself would fail over a file that has just been made.
        files = [str(file) for file in self._folder.glob("*.db") if _has_begun(file)]
        found: Iterable[Metric] = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        return found


def _has_begun(file: Path) -> bool:
    try:
        return file.stat().st_size > 0
    except FileNotFoundError:  # its process has just ended
        return False


# What is looked up


class SlotCollector(Collector):
    """The slots of this host, of the backends whose workloads run here."""

    def __init__(self, registry: Registry, names: Iterable[str]) -> None:
        self._registry = registry
        self._names = names

    def collect(self) -> Iterator[Metric]:
        used = _gauge("vulcan_slots_used", "Slots that are taken on this host.", "backend")
        limit = _gauge("vulcan_slots_limit", "Slots that there are on this host.", "backend")
        for name in self._names:
            entry = self._registry.snapshot.entries.get(name)
            if entry is not None:
                most = entry.capabilities.max_concurrency
                limit.add_metric([name], most)
                with suppress(OSError):  # what cannot be counted is not said
                    used.add_metric([name], slots_in_use(name, most, runtime_dir()))
        yield used
        yield limit


class SiteCollector(Collector):
    """What a server knows of the whole site: health, nodes, and what waits and runs."""

    def __init__(self, registry: Registry, executor: Executor) -> None:
        self._registry = registry
        self._executor = executor

    def collect(self) -> Iterator[Metric]:
        entries = self._registry.snapshot.entries
        health = _gauge(
            "vulcan_backend_health", "1 for the state that the backend is in.", "backend", "state"
        )
        for name, entry in entries.items():
            for state in STATES:
                health.add_metric([name, state], entry.health.state == state)
        yield health
        alive = _gauge("vulcan_nodes_alive", "Nodes that run workloads and are heard from.")
        alive.add_metric([], self._executor.node_count)
        yield alive
        reached = _gauge("vulcan_database_up", "1 when the database answered this scrape.")
        try:
            found = _active.start().result()
        except (DatabaseError, InterfaceError, CallTimeout):
            reached.add_metric([], 0)
        else:
            reached.add_metric([], 1)
            for status in (Status.PENDING, Status.RUNNING):
                several = _gauge(
                    f"vulcan_workloads_{status}", f"Workloads that are {status}.", "backend"
                )
                for name in sorted({*entries, *(name for _, name in found)}):
                    several.add_metric([name], found[status, name])
                yield several
        yield reached


def _gauge(name: str, documentation: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, labels=labels)


def _count_active() -> "Tally[tuple[str, str]]":
    """How many workloads of each backend wait, and run. The bounds of queues bound this."""
    try:
        active = Workload.objects.filter(status__in=[Status.PENDING, Status.RUNNING])
        rows = active.order_by().values_list("status", "isolation_used").annotate(Count("pk"))
        return Tally({(status, name): count for status, name, count in rows})
    finally:
        connection.close()  # it is this thread's own


_active = SingleFlight(_count_active, DATABASE_S)


# What is read


def server_exposition() -> bytes:
    """What a server says; slots where it runs workloads itself."""
    looked_up: list[Collector] = [SiteCollector(registry, get_executor())]
    if not get_executor().remote:
        looked_up.append(SlotCollector(registry, registry))
    return _exposition(looked_up, os.environ.get(metrics_folder.ENV_VAR))


def worker_exposition(names: Iterable[str], folder: Path) -> bytes:
    """What workers of these backends say, which count in `folder`."""
    return _exposition([SlotCollector(registry, names)], str(folder))


def forget_process(pid: int, folder: Path) -> None:
    """A process has ended: what it was the only one to know ends with it, what it counted stays."""
    mark_process_dead(pid, str(folder))  # type: ignore[no-untyped-call]


def _exposition(looked_up: Iterable[Collector], folder: str | None) -> bytes:
    """Everything in Prometheus' text format; without a folder, what this process has counted."""
    together = CollectorRegistry()
    if folder:
        together.register(MultiprocessCollector(Path(folder)))
    else:
        together.register(REGISTRY)
    for collector in looked_up:
        together.register(collector)
    return generate_latest(together)


def is_authorized(authorization: str) -> bool:
    """By the value of an Authorization header; in constant time."""
    wanted = metrics_access()
    if wanted.access == "open":
        return True
    scheme, _, given = authorization.partition(" ")
    return (
        wanted.access == "token"
        and wanted.token != ""
        and scheme.lower() == "bearer"
        and constant_time_compare(given.strip(), wanted.token)
    )
