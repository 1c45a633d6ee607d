"""What an executor is: it takes orders, says to somebody that there is work, and keeps the books.

The row of a workload is the truth. What an executor sends is a hint that the row is worth a look:
it may come late, twice or never, and the keeper of each process sends it again where it got lost.
"""

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from datetime import UTC, datetime
from typing import ClassVar

from django.db import DatabaseError, InterfaceError
from django.db.models import Count, Q

from .. import lifecycle, nodes, services
from ..backends import options
from ..conf import limits, runtime_dir
from ..database import closing_connections
from ..exceptions import BackendAtCapacity, HostFault, InvalidOption, QueueFull
from ..lifecycle import DuplicateSubmission, Submission
from ..models import Workload
from ..nodes import Node
from ..registry import BackendInfo, Registry
from ..running import supervisor
from ..slots import ensure_private_dir, is_locked, remove_stale_locks
from ..workloads import ExitReason, Status, WorkloadResult

logger = logging.getLogger(__name__)

MAINTENANCE_INTERVAL_S = 1.0
SWEEP_INTERVAL_S = 60.0
SHUTTING_DOWN = "its server is being ended"
MAX_REQUEUED = 500  # for each backend in one round
KILL_TIMEOUT_S = 5.0
WAIT_MARGIN_S = 30.0


class Executor:
    """Base of all executors.

    OPTIONS: `queue_size`, how many workloads may wait for one backend (default: 1000);
    `queue_size_per_user`, how many of one user's (default: half of `queue_size`);
    `running_per_user`, how many of one user's may run on one backend at the same time (default: as
    many as it has slots);
    `heartbeat_s`, how often a node says that it lives (default: 2); `lost_after_s`, how long it may
    be silent before what it ran is given up (default: 30); `unserved_after_s`, how long workloads
    wait for a backend that works on no node before they fail (default: 3600); and `grace_s`, for
    how long a server that is told to end lets its workloads go on (default: 20).

    Nothing starts before `ensure_started`, which each process that serves calls for itself.
    """

    remote: ClassVar[bool] = False
    """Is it other processes that run what this one takes?"""

    requeue_after_s: ClassVar[float]
    """How long a workload waits, as a process has seen it, before it is looked after again."""

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
        self._queue_size = options.whole_number("queue_size", queue_size)
        if queue_size_per_user is None:
            queue_size_per_user = max(1, self._queue_size // 2)
        self._queue_size_per_user = options.whole_number("queue_size_per_user", queue_size_per_user)
        if running_per_user is not None:
            options.whole_number("running_per_user", running_per_user)
        self._running_per_user = running_per_user
        self._heartbeat_s = _seconds("heartbeat_s", heartbeat_s)
        self._lost_after_s = _seconds("lost_after_s", lost_after_s)
        self._unserved_after_s = _seconds("unserved_after_s", unserved_after_s)
        self._grace_s = _seconds("grace_s", grace_s)
        if self._lost_after_s < 2 * self._heartbeat_s:
            raise InvalidOption("lost_after_s", lost_after_s, "must be at least twice heartbeat_s")
        self._start_lock = threading.Lock()
        self._started_pid = 0  # the process
        self._begin()
        _executors.add(self)

    def _begin(self) -> None:
        """The state of one process that serves."""
        self._started_at = datetime.now(UTC)
        self._draining, self._drained = threading.Event(), threading.Event()
        self._first_round = threading.Event()
        self._detector = nodes.FailureDetector(self._lost_after_s)
        self._pending_since: dict[str, float] = {}  # since when this process sees them wait
        self._last_heartbeat = -self._heartbeat_s
        self._last_sweep = -SWEEP_INTERVAL_S
        self._announced: frozenset[str] = frozenset()
        self._unserved_since: dict[str, float] = {}  # since when no node serves what is waited for

    # Orders

    def submit(self, submission: Submission) -> Workload:
        """Record the workload as pending and return at once.

        Raises what `services.prepare` raises, `QueueFull` and `IdempotencyKeyConflict`; then there
        is no record.
        """
        try:
            lifecycle.check_idempotency(submission)
            prepared = services.prepare(submission.spec, registry=self.registry)
            self._check_queue(prepared.name, submission.owner_id)
            workload = lifecycle.create_workload(submission, prepared, Status.PENDING)
        except DuplicateSubmission as replayed:
            return replayed.workload
        self.notify(workload.pk, prepared.name)
        return workload

    def _check_queue(self, name: str, owner_id: int | None) -> None:
        """Raise `QueueFull` when no more workloads, or no more of this user, may wait."""
        waiting = Workload.objects.filter(isolation_used=name, status=Status.PENDING)
        own = Count("pk", filter=Q(owner_id=owner_id))
        found = waiting.aggregate(total=Count("pk"), own=own)
        if found["total"] >= self._queue_size:
            raise QueueFull(name, self._queue_size)
        if found["own"] >= self._queue_size_per_user:
            raise QueueFull(name, self._queue_size_per_user, own=True)

    def run(self, submission: Submission) -> Workload:
        """Run the workload in this thread, or in its turn where it has to wait; return at its end.

        The workload that comes back may still run when that takes longer than any should. Raises
        what `submit` and `services.run` raise.
        """
        wait_s = limits().timeout_s.max + WAIT_MARGIN_S
        if not self.remote:
            try:
                lifecycle.check_idempotency(submission)
                return lifecycle.run_inline(submission, self.registry, self._running_per_user)
            except BackendAtCapacity:
                if not self.is_started:  # nobody would take up what waits
                    raise
            except DuplicateSubmission as replayed:
                lifecycle.wait(replayed.workload, wait_s)
                if Workload.objects.filter(pk=replayed.workload.pk).exists():
                    return replayed.workload
                return self.run(
                    submission
                )  # who had the key found no slot and took the record back
        workload = self.submit(submission)
        lifecycle.wait(workload, wait_s)
        return workload

    def run_next(self, name: str) -> bool:
        """Run the next of the workloads that wait for a backend; False when there is none."""
        return lifecycle.run_next(
            name, self.registry, lambda: self.draining, self._running_per_user
        )

    def notify(self, workload_id: str, name: str) -> None:
        """Say that a workload waits for the backend `name`; no error if nobody can be told now."""
        raise NotImplementedError

    def queued_ids(self, name: str) -> Set[str] | None:
        """Those that wait for this backend and are known to somebody; None where nobody is to be
        told now.
        """
        raise NotImplementedError

    # Serving

    def local_backends(self) -> Sequence[BackendInfo]:
        """The backends whose workloads this process runs."""
        raise NotImplementedError

    def wait_for_health(self, wait_s: float) -> None:
        """See to it that the registry knows how its backends are, within this time if possible."""

    @property
    def is_started(self) -> bool:
        """Does this process serve?"""
        return self._started_pid == os.getpid()

    @property
    def draining(self) -> bool:
        return self._draining.is_set()

    def readiness_error(self) -> str:
        """Why it can take no orders now, or nothing; may take a moment: it asks whom it needs."""
        if self.draining:
            return "it ends"
        try:
            ensure_private_dir(runtime_dir())
        except OSError:
            return "its runtime folder cannot be used"
        return "" if self.is_started else "it has not started"

    def ensure_started(self, wait_s: float = 1.0) -> None:
        """Serve in this process, unless it does already. The first caller waits a little."""
        if self.is_started:
            return
        with self._start_lock:
            if self.is_started:
                return
            self._begin()
            self._started_pid = os.getpid()
        self._maintenance_thread = threading.Thread(
            target=self._maintain, name="vulcan-keeper", daemon=True
        )
        self._maintenance_thread.start()
        atexit.register(self.drain)
        self.wait_for_health(wait_s)

    def drain(self) -> None:
        """Take up nothing more, let what runs end within the grace time, and settle the rest."""
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
        """The process is being drained."""

    def _reset_after_fork(self) -> None:
        """In a forked child, which serves when it is asked to."""
        self._start_lock = threading.Lock()

    @property
    def node_count(self) -> int:
        """How many nodes live, as this process has heard."""
        return len({row.node_id for row in self._detector.alive})

    def live_nodes(self) -> Sequence[Node]:
        """The nodes that live, by name, with what runs on each."""
        if not self.is_started:  # or its keeper has looked just now
            self._detector.refresh()
        return nodes.summarize(self._detector.alive)

    def run_worker(self, name: str, wanted: Callable[[], bool]) -> None:
        """Run what waits for the backend `name`, until the process is told to end or not wanted.

        For executors that are remote; `manage.py run_worker` calls it.
        """
        raise NotImplementedError

    # The keeper

    def _maintain(self) -> None:
        while not self._drained.is_set():
            try:
                with closing_connections():
                    self.run_maintenance()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("the keeper cannot reach the database: %s", error)
            except HostFault as fault:
                logger.warning("the keeper goes on later: %s", fault)
            except Exception:
                logger.exception("the keeper failed; it goes on")
            self._first_round.set()
            self._drained.wait(MAINTENANCE_INTERVAL_S)
        try:
            with closing_connections():
                nodes.deregister(
                    nodes.node_id(runtime_dir()), [info.name for info in self.local_backends()]
                )
        except (DatabaseError, InterfaceError, HostFault) as error:
            logger.warning("this node could not take its leave: %s", error)

    def run_maintenance(self) -> None:
        """One round: say that this node lives, hear of others, settle what was lost."""
        now, mine = time.monotonic(), nodes.node_id(runtime_dir())
        served = self.local_backends()
        if self.draining:  # it lives, and takes up nothing more
            served = [
                replace(info, healthy=False, health_description=SHUTTING_DOWN) for info in served
            ]
        names = frozenset(info.name for info in served)
        if gone := self._announced - names:
            nodes.deregister(mine, gone)
        self._announced = names
        if served and now - self._last_heartbeat >= self._heartbeat_s:
            self._last_heartbeat = now
            nodes.heartbeat(mine, served, self._started_at)
        if now - self._last_sweep >= SWEEP_INTERVAL_S:
            self._last_sweep = now
            if count := remove_stale_locks(runtime_dir()):
                logger.info("%d lock files of processes that were killed were removed", count)
        self._detector.refresh()
        self.on_nodes_changed(self._detector)
        begun = Workload.objects.filter(status=Status.RUNNING).summaries()
        for workload in begun:
            if self._is_lost(workload, mine):
                lifecycle.recover_lost(workload)
                if workload.status == Status.PENDING:
                    self.notify(workload.pk, workload.isolation_used)
        self._requeue(now)
        if not self.draining:
            self._fail_unserved(now)

    def _is_lost(self, workload: Workload, mine: str) -> bool:
        """Is there nobody left who could say what becomes of it?"""
        if workload.node_id == mine:
            return not is_locked(workload.pk, runtime_dir())
        return self._detector.is_lost((workload.node_id, workload.isolation_used))

    def on_nodes_changed(self, watch: nodes.FailureDetector) -> None:
        """The nodes have been looked at."""

    def _requeue(self, now: float) -> None:
        """Tell somebody of what has waited for a while, where nobody knows of it any more."""
        pending = Workload.objects.filter(status=Status.PENDING).order_by("created_at")
        since: dict[str, float] = {}
        for name in self.registry:
            rows = pending.filter(isolation_used=name).values_list("pk", flat=True)[:MAX_REQUEUED]
            since |= {pk: self._pending_since.get(pk, now) for pk in rows}
            overdue = [pk for pk in rows if now - since[pk] >= self.requeue_after_s]
            known = self.queued_ids(name) if overdue else None
            if known is None:
                continue
            for pk in overdue:
                if pk not in known:
                    self.notify(pk, name)
                    since[pk] = now
        self._pending_since = since

    def _fail_unserved(self, now: float) -> None:
        """Fail what waits for a backend that is gone, or that has worked on no node for too long.

        Another node may serve what is not registered here: one with newer settings. So a backend is
        gone when no node that lives has it either, and has not had it for two heartbeats.
        """
        pending = Workload.objects.filter(status=Status.PENDING)
        alive = self._detector.alive
        registered = {*self.registry, *(row.name for row in alive)}
        working = {row.name for row in alive if row.healthy is not False}
        wanted = set(pending.order_by().values_list("isolation_used", flat=True).distinct())
        self._unserved_since = {
            name: self._unserved_since.get(name, now) for name in wanted - working
        }
        for name, since in self._unserved_since.items():
            if name in registered:
                timeout_s = self._unserved_after_s
                error = f"backend {name!r} has worked on no node for {timeout_s:,g} s"
            else:
                timeout_s = 2 * self._heartbeat_s
                error = f"backend {name!r} is not registered any more"
            if now - since >= timeout_s:
                result = WorkloadResult(exit_reason=ExitReason.BACKEND_ERROR, error=error)
                for workload in pending.filter(isolation_used=name).summaries()[:MAX_REQUEUED]:
                    lifecycle.finish(workload, result)


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise InvalidOption(name, value, "must be a number of seconds above 0")
    return float(value)


def _reset_executors() -> None:
    for executor in list(_executors):
        executor._reset_after_fork()


_executors: "weakref.WeakSet[Executor]" = weakref.WeakSet()
os.register_at_fork(after_in_child=_reset_executors)
