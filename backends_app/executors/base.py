"""Base class of executors: accept submissions, run them or notify workers, start and shut down.

The row of a workload is the source of truth. A notification is only a hint to look at the row: it
may arrive late, twice or never, and the maintenance thread of each process repeats lost ones.
"""

import atexit
import logging
import os
import threading
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import ClassVar

from django.db.models import Count, Q

from ..backends import options
from ..conf import limits, runtime_dir
from ..exceptions import BackendAtCapacity, QueueFull
from ..execution import lifecycle, nodes, services
from ..execution.lifecycle import DuplicateSubmission, Submission
from ..execution.nodes import FailureDetector, Node
from ..execution.supervisor import supervisor
from ..models import Workload
from ..registry import BackendInfo, Registry
from ..utils import background
from ..utils.forks import reset_after_fork
from ..utils.lockfiles import ensure_private_dir
from ..workloads import Status
from .maintenance import Maintenance

logger = logging.getLogger(__name__)

MAINTENANCE_INTERVAL_S = 1.0
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
        self._grace_s = options.seconds("grace_s", grace_s)
        self._new_maintenance = partial(
            Maintenance,
            self,
            heartbeat_s=heartbeat_s,
            lost_after_s=lost_after_s,
            unserved_after_s=unserved_after_s,
        )
        self._start_lock = threading.Lock()
        self._started_pid = 0
        self._init_process_state()
        reset_after_fork(self)

    def _init_process_state(self) -> None:
        """Initialize the state of one serving process."""
        self._draining, self._drained = threading.Event(), threading.Event()
        self._first_round = threading.Event()
        self.maintenance = self._new_maintenance()

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
        return len({row.node_id for row in self.maintenance.detector.alive})

    def live_nodes(self) -> Sequence[Node]:
        """Return the live nodes, by name, with the workloads running on each."""
        if not self.is_started:  # otherwise the maintenance thread refreshes it
            self.maintenance.detector.refresh()
        return nodes.summarize(self.maintenance.detector.alive)

    def run_worker(self, name: str, should_run: Callable[[], bool]) -> None:
        """Run pending workloads of backend `name` until a signal or until `should_run()` is false.

        For remote executors; `manage.py run_worker` calls it.
        """
        raise NotImplementedError

    # Maintenance

    def _maintain(self) -> None:
        background.repeat(self._round, "maintenance", self._drained, MAINTENANCE_INTERVAL_S)
        background.run_round(self.maintenance.deregister, "deregistering this node")

    def _round(self) -> None:
        try:
            self.maintenance.run_round()
        finally:
            self._first_round.set()

    def on_nodes_changed(self, detector: FailureDetector) -> None:
        """Update what depends on the nodes, after the detector has been refreshed."""
