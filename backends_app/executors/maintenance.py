"""Periodic work of a serving process: heartbeats, lost workloads, repeated notifications."""

import logging
import time
from collections.abc import Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from typing import Protocol

from ..backends import options
from ..conf import runtime_dir
from ..exceptions import InvalidOption
from ..execution import lifecycle, nodes
from ..execution.nodes import FailureDetector
from ..execution.slots import is_locked, remove_stale_locks
from ..models import Workload
from ..registry import BackendInfo, Registry
from ..workloads import ExitReason, Status, WorkloadResult

logger = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 60.0
SHUTTING_DOWN = "its server is shutting down"
MAX_REQUEUED = 500  # per backend in one round


class Serving(Protocol):
    """An executor, as far as its maintenance uses it."""

    registry: Registry

    @property
    def requeue_after_s(self) -> float: ...

    @property
    def draining(self) -> bool: ...

    def local_backends(self) -> Sequence[BackendInfo]: ...

    def notify(self, workload_id: str, name: str) -> None: ...

    def queued_ids(self, name: str) -> Set[str] | None: ...

    def on_nodes_changed(self, detector: FailureDetector) -> None: ...


class Maintenance:
    """The maintenance of one serving process; `run_round` is called about once a second.

    The options are those of `Executor`, in seconds.
    """

    def __init__(
        self,
        executor: Serving,
        *,
        heartbeat_s: float,
        lost_after_s: float,
        unserved_after_s: float,
    ) -> None:
        self._executor = executor
        self._heartbeat_s = options.seconds("heartbeat_s", heartbeat_s)
        self._unserved_after_s = options.seconds("unserved_after_s", unserved_after_s)
        if options.seconds("lost_after_s", lost_after_s) < 2 * self._heartbeat_s:
            raise InvalidOption("lost_after_s", lost_after_s, "must be at least twice heartbeat_s")
        self.detector = FailureDetector(lost_after_s)
        self._started_at = datetime.now(UTC)
        self._pending_since: dict[str, float] = {}  # since when this process has seen them
        self._last_heartbeat = -self._heartbeat_s
        self._last_sweep = -SWEEP_INTERVAL_S
        self._announced: frozenset[str] = frozenset()
        self._unserved_since: dict[str, float] = {}  # by backend: since when no node serves it

    def run_round(self) -> None:
        """Run one round: heartbeats, node failures, lost workloads, repeated notifications."""
        now, node_id = time.monotonic(), nodes.node_id(runtime_dir())
        backends = self._executor.local_backends()
        if self._executor.draining:  # alive, but accepts no more workloads
            backends = [
                replace(info, healthy=False, health_description=SHUTTING_DOWN) for info in backends
            ]
        names = frozenset(info.name for info in backends)
        if removed := self._announced - names:
            nodes.deregister(node_id, removed)
        self._announced = names
        if backends and now - self._last_heartbeat >= self._heartbeat_s:
            self._last_heartbeat = now
            nodes.heartbeat(node_id, backends, self._started_at)
        if now - self._last_sweep >= SWEEP_INTERVAL_S:
            self._last_sweep = now
            if count := remove_stale_locks(runtime_dir()):
                logger.info("removed %d lock files of killed processes", count)
        self.detector.refresh()
        self._executor.on_nodes_changed(self.detector)
        for workload in Workload.objects.filter(status=Status.RUNNING).summaries():
            if self._is_lost(workload, node_id):
                lifecycle.recover_lost(workload)
                if workload.status == Status.PENDING:
                    self._executor.notify(workload.pk, workload.isolation_used)
        self._requeue(now)
        if not self._executor.draining:
            self._fail_unserved(now)

    def deregister(self) -> None:
        """Delete the rows of this node: its process ends."""
        names = [info.name for info in self._executor.local_backends()]
        nodes.deregister(nodes.node_id(runtime_dir()), names)

    def _is_lost(self, workload: Workload, node_id: str) -> bool:
        """Return whether no process works on a running workload any more."""
        if workload.node_id == node_id:
            return not is_locked(workload.pk, runtime_dir())
        return self.detector.is_lost((workload.node_id, workload.isolation_used))

    def _requeue(self, now: float) -> None:
        """Notify workers again of workloads that have waited for a while and are not queued."""
        pending = Workload.objects.filter(status=Status.PENDING).order_by("created_at")
        since: dict[str, float] = {}
        for name in self._executor.registry:
            rows = pending.filter(isolation_used=name).values_list("pk", flat=True)[:MAX_REQUEUED]
            since |= {pk: self._pending_since.get(pk, now) for pk in rows}
            overdue = [pk for pk in rows if now - since[pk] >= self._executor.requeue_after_s]
            queued = self._executor.queued_ids(name) if overdue else None
            if queued is None:
                continue
            for pk in overdue:
                if pk not in queued:
                    self._executor.notify(pk, name)
                    since[pk] = now
        self._pending_since = since

    def _fail_unserved(self, now: float) -> None:
        """Fail pending workloads whose backend is gone, or has worked on no node for too long.

        Another node may serve a backend that is not registered here, for example with newer
        settings. So a backend is gone when no live node has had it for two heartbeats either.
        """
        pending = Workload.objects.filter(status=Status.PENDING)
        alive = self.detector.alive
        registered = {*self._executor.registry, *(row.name for row in alive)}
        working = {row.name for row in alive if row.healthy is not False}
        awaited = set(pending.order_by().values_list("isolation_used", flat=True).distinct())
        self._unserved_since = {
            name: self._unserved_since.get(name, now) for name in awaited - working
        }
        for name, since in self._unserved_since.items():
            if name in registered:
                timeout_s = self._unserved_after_s
                error = f"backend {name!r} has worked on no node for {timeout_s:,g} s"
            else:
                timeout_s = 2 * self._heartbeat_s
                error = f"backend {name!r} is no longer registered"
            if now - since >= timeout_s:
                result = WorkloadResult(exit_reason=ExitReason.BACKEND_ERROR, error=error)
                for workload in pending.filter(isolation_used=name).summaries()[:MAX_REQUEUED]:
                    lifecycle.finish(workload, result)
