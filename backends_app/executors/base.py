"""Base class of executors: accept submissions, notify workers, run periodic maintenance.

The row of a workload is the source of truth. A notification is only a hint to look at the row: it
may arrive late, twice or never, and the maintenance thread of each process repeats lost ones.
"""

import atexit
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar

from django.db.models import Count, Q

from ..backends import options
from ..conf import limits, runtime_dir
from ..exceptions import BackendAtCapacity, InvalidOption, QueueFull
from ..execution import lifecycle, nodes, services
from ..execution.lifecycle import DuplicateSubmission, Submission
from ..execution.nodes import Node
from ..execution.slots import ensure_private_dir, is_locked, remove_stale_locks
from ..execution.supervisor import supervisor
from ..models import Workload
from ..registry import BackendInfo, Registry
from ..utils import background
from ..utils.forks import reset_after_fork
from ..workloads import ExitReason, Status, WorkloadResult

logger = logging.getLogger(__name__)

MAINTENANCE_INTERVAL_S = 1.0
SWEEP_INTERVAL_S = 60.0
SHUTTING_DOWN = "its server is shutting down"
MAX_REQUEUED = 500  # per backend in one round of maintenance
KILL_TIMEOUT_S = 5.0
WAIT_MARGIN_S = 30.0


class Executor:
    """Base of all executors.

    OPTIONS: `queue_size`, how many workloads may wait for one backend (default: 1000);
    `queue_size_per_user`, how many of one user (default: half of `queue_size`);
    `running_per_user`, how many of one user may run on one backend at the same time (default: as
    many as it has slots);
    `heartbeat_s`, the interval of a node's heartbeats (default: 2); `lost_after_s`, how long a node
    may send none before its workloads count as lost (default: 30); `unserved_after_s`, how long
    workloads wait for a backend that works on no node before they fail (default: 3600); and
    `grace_s`, how long a server that is shutting down lets its workloads finish (default: 20).

    Nothing starts before `ensure_started`, which each serving process calls for itself.
    """

    remote: ClassVar[bool] = False
    """Whether other processes run the workloads that this one accepts."""

    requeue_after_s: ClassVar[float]
    """How long a process sees a workload wait before its maintenance notifies workers again."""

    def __init__(
        self,
        registry: Registry,
        *,
        queue_size: int = 1000,
        queue_size_per_user: int | None = None,
        running_per_user: int | None = None,
        heartbeat_s: float = 2.0,
        lost_after_s: float = 30.0,
        unserved_after_s: float = 3600.0,
        grace_s: float = 20.0,
    ) -> None:
        self.registry = registry
        self._queue_size = options.integer("queue_size", queue_size)
        if queue_size_per_user is None:
            queue_size_per_user = max(1, self._queue_size // 2)
        self._queue_size_per_user = options.integer("queue_size_per_user", queue_size_per_user)
        if running_per_user is not None:
            options.integer("running_per_user", running_per_user)
        self._running_per_user = running_per_user
        self._heartbeat_s = _seconds("heartbeat_s", heartbeat_s)
        self._lost_after_s = _seconds("lost_after_s", lost_after_s)
        self._unserved_after_s = _seconds("unserved_after_s", unserved_after_s)
        self._grace_s = _seconds("grace_s", grace_s)
        if self._lost_after_s < 2 * self._heartbeat_s:
            raise InvalidOption("lost_after_s", lost_after_s, "must be at least twice heartbeat_s")
        self._start_lock = threading.Lock()
        self._started_pid = 0
        self._init_process_state()
        reset_after_fork(self)

    def _init_process_state(self) -> None:
        """Initialize the state of one serving process."""
        self._started_at = datetime.now(UTC)
        self._draining, self._drained = threading.Event(), threading.Event()
        self._first_round = threading.Event()
        self._detector = nodes.FailureDetector(self._lost_after_s)
        self._pending_since: dict[str, float] = {}  # since when this process has seen them
        self._last_heartbeat = -self._heartbeat_s
        self._last_sweep = -SWEEP_INTERVAL_S
        self._announced: frozenset[str] = frozenset()
        self._unserved_since: dict[str, float] = {}  # by backend: since when no node serves it

    # Submissions

    def submit(self, submission: Submission) -> Workload:
        """Record the workload as pending and return at once.

        Raise what `services.admit` raises, `QueueFull` or `IdempotencyKeyConflict`; there is no
        record then.
        """
        try:
            workload = self._record(submission)
        except DuplicateSubmission as duplicate:
            return duplicate.workload
        self.notify(workload.pk, workload.isolation_used)
        return workload

    def _record(self, submission: Submission) -> Workload:
        lifecycle.check_idempotency(submission)
        admitted = services.admit(submission.spec, registry=self.registry)
        self._check_queue(admitted.name, submission.owner_id)
        return lifecycle.create_workload(submission, admitted, Status.PENDING)

    def _check_queue(self, name: str, owner_id: int | None) -> None:
        """Raise `QueueFull` when the queue is full, in total or for this user."""
        pending = Workload.objects.filter(isolation_used=name, status=Status.PENDING)
        own = Count("pk", filter=Q(owner_id=owner_id))
        counts = pending.aggregate(total=Count("pk"), own=own)
        if counts["total"] >= self._queue_size:
            raise QueueFull(name, self._queue_size)
        if counts["own"] >= self._queue_size_per_user:
            raise QueueFull(name, self._queue_size_per_user, own=True)

    def run(self, submission: Submission) -> Workload:
        """Run the workload in this thread, or queue it when all slots are in use; wait for its end.

        With an idempotency key it is recorded first, because duplicates wait for the record. The
        returned workload may still be running when it exceeds the longest allowed time. Raise what
        `submit` and `services.run` raise.
        """
        if not self.remote and submission.key is None:
            try:
                return lifecycle.run_inline(submission, self.registry, self._running_per_user)
            except BackendAtCapacity:
                if not self.is_started:  # nothing would run a queued workload
                    raise
        wait_s = limits().timeout_s.max + WAIT_MARGIN_S
        try:
            workload = self._record(submission)
        except DuplicateSubmission as duplicate:
            lifecycle.wait(duplicate.workload, wait_s)
            if Workload.objects.filter(pk=duplicate.workload.pk).exists():
                return duplicate.workload
            return self.run(submission)  # the first was refused where it ran, and left no record
        if self.remote or not self._run_now(workload):
            self.notify(workload.pk, workload.isolation_used)
            if self.remote or self.is_started:  # otherwise nothing runs it yet
                lifecycle.wait(workload, wait_s)
        return workload

    def _run_now(self, workload: Workload) -> bool:
        return lifecycle.run_now(workload, self.registry, self._running_per_user)

    def run_next(self, name: str) -> bool:
        """Run the next pending workload of a backend; return False when there is none."""
        return lifecycle.run_next(
            name, self.registry, lambda: self.draining, self._running_per_user
        )

    def notify(self, workload_id: str, name: str) -> None:
        """Notify workers that a workload waits for backend `name`; never fail."""
        raise NotImplementedError

    def queued_ids(self, name: str) -> Set[str] | None:
        """Return ids already queued for this backend, or None to skip requeueing this round."""
        raise NotImplementedError

    # Serving

    def local_backends(self) -> Sequence[BackendInfo]:
        """Return the backends whose workloads this process runs."""
        raise NotImplementedError

    def wait_for_health(self, wait_s: float) -> None:
        """Wait up to `wait_s` seconds for the first health results."""

    @property
    def is_started(self) -> bool:
        """Whether the executor has been started in this process."""
        return self._started_pid == os.getpid()

    @property
    def draining(self) -> bool:
        """Whether the executor is shutting down."""
        return self._draining.is_set()

    def readiness_error(self) -> str:
        """Return why submissions cannot be accepted now, or ""; may block on what it checks."""
        if self.draining:
            return "shutting down"
        try:
            ensure_private_dir(runtime_dir())
        except OSError:
            return "runtime folder unusable"
        return "" if self.is_started else "not started"

    def ensure_started(self, wait_s: float = 1.0) -> None:
        """Start the executor in this process unless it is started.

        The caller that starts it waits up to `wait_s` seconds for health results.
        """
        if self.is_started:
            return
        with self._start_lock:
            if self.is_started:
                return
            self._init_process_state()
            self._started_pid = os.getpid()
        self._maintenance_thread = threading.Thread(
            target=self._maintain, name="vulcan-maintenance", daemon=True
        )
        self._maintenance_thread.start()
        atexit.register(self.drain)
        self.wait_for_health(wait_s)

    def drain(self) -> None:
        """Shut down: accept no more work, let workloads finish within `grace_s`, kill the rest."""
        if not self.is_started or self.draining:
            return
        self._draining.set()
        self.stop_accepting()
        if not supervisor.wait_until_idle(self._grace_s):
            supervisor.kill_all()
            supervisor.wait_until_idle(KILL_TIMEOUT_S)
        self._drained.set()
        self._maintenance_thread.join(KILL_TIMEOUT_S)

    def stop_accepting(self) -> None:
        """Stop starting workloads: the executor is shutting down."""

    def _reset_after_fork(self) -> None:
        """Replace the lock in a forked child, which starts the executor for itself."""
        self._start_lock = threading.Lock()

    @property
    def node_count(self) -> int:
        """The number of live nodes, as observed by this process."""
        return len({row.node_id for row in self._detector.alive})

    def live_nodes(self) -> Sequence[Node]:
        """Return the live nodes, by name, with the workloads running on each."""
        if not self.is_started:  # otherwise the maintenance thread refreshes it
            self._detector.refresh()
        return nodes.summarize(self._detector.alive)

    def run_worker(self, name: str, should_run: Callable[[], bool]) -> None:
        """Run pending workloads of backend `name` until a signal or until `should_run()` is false.

        For remote executors; `manage.py run_worker` calls it.
        """
        raise NotImplementedError

    # Maintenance

    def _maintain(self) -> None:
        background.repeat(self._round, "maintenance", self._drained, MAINTENANCE_INTERVAL_S)
        background.run_round(self._deregister, "deregistering this node")

    def _round(self) -> None:
        try:
            self.run_maintenance()
        finally:
            self._first_round.set()

    def _deregister(self) -> None:
        names = [info.name for info in self.local_backends()]
        nodes.deregister(nodes.node_id(runtime_dir()), names)

    def run_maintenance(self) -> None:
        """Run one round: heartbeats, node failures, lost workloads, repeated notifications."""
        now, node_id = time.monotonic(), nodes.node_id(runtime_dir())
        backends = self.local_backends()
        if self.draining:  # alive, but accepts no more workloads
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
        self._detector.refresh()
        self.on_nodes_changed(self._detector)
        for workload in Workload.objects.filter(status=Status.RUNNING).summaries():
            if self._is_lost(workload, node_id):
                lifecycle.recover_lost(workload)
                if workload.status == Status.PENDING:
                    self.notify(workload.pk, workload.isolation_used)
        self._requeue(now)
        if not self.draining:
            self._fail_unserved(now)

    def _is_lost(self, workload: Workload, node_id: str) -> bool:
        """Return whether no process works on a running workload any more."""
        if workload.node_id == node_id:
            return not is_locked(workload.pk, runtime_dir())
        return self._detector.is_lost((workload.node_id, workload.isolation_used))

    def on_nodes_changed(self, detector: nodes.FailureDetector) -> None:
        """Update what depends on the nodes, after the detector has been refreshed."""

    def _requeue(self, now: float) -> None:
        """Notify workers again of workloads that have waited for a while and are not queued."""
        pending = Workload.objects.filter(status=Status.PENDING).order_by("created_at")
        since: dict[str, float] = {}
        for name in self.registry:
            rows = pending.filter(isolation_used=name).values_list("pk", flat=True)[:MAX_REQUEUED]
            since |= {pk: self._pending_since.get(pk, now) for pk in rows}
            overdue = [pk for pk in rows if now - since[pk] >= self.requeue_after_s]
            queued = self.queued_ids(name) if overdue else None
            if queued is None:
                continue
            for pk in overdue:
                if pk not in queued:
                    self.notify(pk, name)
                    since[pk] = now
        self._pending_since = since

    def _fail_unserved(self, now: float) -> None:
        """Fail pending workloads whose backend is gone, or has worked on no node for too long.

        Another node may serve a backend that is not registered here, for example with newer
        settings. So a backend is gone when no live node has had it for two heartbeats either.
        """
        pending = Workload.objects.filter(status=Status.PENDING)
        alive = self._detector.alive
        registered = {*self.registry, *(row.name for row in alive)}
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


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidOption(name, value, "must be a number of seconds above 0")
    return float(value)
