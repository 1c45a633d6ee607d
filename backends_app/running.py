"""What runs in this process: its log is stored and its kill is heard of while it runs."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from django.db import DatabaseError, InterfaceError, transaction

from . import logs
from .backends.base import Backend
from .database import closing_connections
from .logs import LogBuffer
from .models import Workload
from .services import kill_workload

logger = logging.getLogger(__name__)

TICK_S = 0.25


@dataclass(eq=False)
class Execution:
    """One workload that runs here. `killed` says that its caller has asked for its end."""

    workload_id: str
    backend: Backend
    log: LogBuffer
    killed: bool = False
    store_lock: threading.Lock = field(default_factory=threading.Lock)


class Supervisor:
    """The executions of this process, and the one thread that looks after them.

    It begins with the first one and rests while there are none; what is over before it looks for
    the first time costs it nothing.
    """

    def __init__(self) -> None:
        self._reset_after_fork()

    def _reset_after_fork(self) -> None:
        """Begin anew: for a forked child, which has none of its parent's threads."""
        self._lock = threading.Lock()
        self._executions: dict[str, Execution] = {}
        self._some = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._started = False

    @contextmanager
    def supervise(self, execution: Execution) -> Iterator[None]:
        with self._lock:
            self._executions[execution.workload_id] = execution
            self._some.set()
            start, self._started = not self._started, True
        if start:
            threading.Thread(target=self._run, name="vulcan-running", daemon=True).start()
        try:
            yield
        finally:
            with self._lock:
                del self._executions[execution.workload_id]
                if not self._executions:
                    self._some.clear()
                    self._idle.notify_all()

    def all(self) -> list[Execution]:
        with self._lock:
            return list(self._executions.values())

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Has everything ended within this time?"""
        with self._lock:
            return self._idle.wait_for(lambda: not self._executions, timeout_s)

    def kill_all(self) -> None:
        """End what runs, though nobody has asked for that."""
        for execution in self.all():
            kill_workload(execution.backend, execution.workload_id)

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            self._some.wait()
            pause.wait(TICK_S)
            try:
                with closing_connections():
                    self.tick()
            except (DatabaseError, InterfaceError) as error:  # what it did not do, it does next
                logger.warning("the running workloads cannot be looked after: %s", error)
            except Exception:
                logger.exception("the running workloads cannot be looked after; it goes on")

    def tick(self) -> None:
        """Store what was printed since, and end what is to be killed."""
        executions = self.all()
        for execution in executions:
            with execution.store_lock:
                if blocks := execution.log.pending_blocks():
                    with transaction.atomic():
                        logs.store(execution.workload_id, blocks)
                    execution.log.acknowledge(len(blocks))
        asked = Workload.objects.filter(
            pk__in=[one.workload_id for one in executions], kill_requested_at__isnull=False
        )
        killed = set(asked.values_list("pk", flat=True)) if executions else set()
        for execution in executions:
            if execution.workload_id in killed:
                execution.killed = True
                # Each time, until it has ended: perhaps it has not even begun yet.
                kill_workload(execution.backend, execution.workload_id)


supervisor = Supervisor()
"""The executions of this process."""

os.register_at_fork(after_in_child=supervisor._reset_after_fork)
