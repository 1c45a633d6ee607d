"""Supervise the workloads that run in this process: store their logs, apply requested kills."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import transaction

from ..backends.base import Backend
from ..logs import store
from ..logs.store import LogBuffer
from ..models import Workload
from ..utils import background
from ..utils.forks import reset_after_fork
from .services import kill_workload

TICK_S = 0.25


@dataclass(eq=False)
class Execution:
    """One running workload. `killed` is set when its kill has been requested."""

    workload_id: str
    backend: Backend
    log: LogBuffer
    killed: bool = False
    store_lock: threading.Lock = field(default_factory=threading.Lock)


class Supervisor:
    """The executions of this process, and one thread that supervises them.

    The thread starts with the first execution and sleeps while there are none. Executions that end
    before the first tick cost nothing.
    """

    def __init__(self) -> None:
        self._reset_after_fork()
        reset_after_fork(self)

    def _reset_after_fork(self) -> None:
        """Reset to the initial state: a forked child has none of its parent's threads."""
        self._lock = threading.Lock()
        self._executions: dict[str, Execution] = {}
        self._has_executions = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._started = False

    @contextmanager
    def supervise(self, execution: Execution) -> Iterator[None]:
        """Supervise an execution inside the block."""
        with self._lock:
            self._executions[execution.workload_id] = execution
            self._has_executions.set()
            start, self._started = not self._started, True
        if start:
            threading.Thread(target=self._run, name="vulcan-supervisor", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._executions[execution.workload_id]
                if not self._executions:
                    self._has_executions.clear()
                    self._idle.notify_all()

    def all(self) -> list[Execution]:
        """Return the current executions."""
        with self._lock:
            return list(self._executions.values())

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` for all executions to end; return whether they did."""
        with self._lock:
            return self._idle.wait_for(lambda: not self._executions, timeout_s)

    def kill_all(self) -> None:
        """Kill all executions, without marking them as killed on request."""
        for execution in self.all():
            kill_workload(execution.backend, execution.workload_id)

    def _run(self) -> None:
        while True:
            self._has_executions.wait()
            time.sleep(TICK_S)
            background.run_round(self.tick, "supervising the running workloads")

    def tick(self) -> None:
        """Store new log lines, and kill the executions whose kill has been requested."""
        executions = self.all()
        for execution in executions:
            with execution.store_lock:
                if blocks := execution.log.pending_blocks():
                    with transaction.atomic():
                        store.save_blocks(execution.workload_id, blocks)
                    execution.log.acknowledge(len(blocks))
        kill_requested = Workload.objects.filter(
            pk__in=[one.workload_id for one in executions], kill_requested_at__isnull=False
        )
        killed = set(kill_requested.values_list("pk", flat=True)) if executions else set()
        for execution in executions:
            if execution.workload_id in killed:
                execution.killed = True
                # Repeated until it has ended: it may not have started yet.
                kill_workload(execution.backend, execution.workload_id)


supervisor = Supervisor()
"""The supervisor of this process."""
