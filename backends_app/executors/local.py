"""The embedded default: threads of this process run what was submitted, nothing else is needed."""

import logging
import threading
from collections import deque
from collections.abc import Sequence, Set

from django.db import close_old_connections, connections
from structlog.contextvars import bound_contextvars

from .. import lifecycle
from ..database import let_go
from ..health import monitor
from ..registry import BackendInfo, Registry
from .base import Executor

logger = logging.getLogger(__name__)

IDLE_S = 10.0  # how long a thread waits for more before it ends


class Lane:
    """What waits for one backend in this process, and the threads that run it in order."""

    def __init__(self, executor: "LocalExecutor", name: str) -> None:
        self._executor = executor
        self._name = name
        self._changed = threading.Condition()
        self._waiting: deque[str] = deque()
        self._threads = self._resting = 0

    def put(self, workload_id: str, most_threads: int) -> None:
        with self._changed:
            if workload_id in self._waiting:
                return
            self._waiting.append(workload_id)
            if self._resting:
                self._changed.notify()
            elif self._threads < most_threads:
                self._threads += 1
                name = f"vulcan-{self._name}"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def wake(self) -> None:
        """Let the threads see that the executor is being drained."""
        with self._changed:
            self._changed.notify_all()

    def waiting(self) -> Set[str]:
        with self._changed:
            return frozenset(self._waiting)

    def _work(self) -> None:
        while (workload_id := self._next()) is not None:
            try:
                close_old_connections()
                self._executor.carry_out(workload_id)
            except Exception:  # the row is as it was; the keeper sends it again
                with bound_contextvars(workload_id=workload_id):
                    logger.exception("workload could not be taken up")
            let_go()
        connections.close_all()

    def _next(self) -> str | None:
        with self._changed:
            self._resting += 1
            found = self._changed.wait_for(lambda: self._waiting or self._executor.draining, IDLE_S)
            self._resting -= 1
            if not found or self._executor.draining:
                self._threads -= 1
                return None
            return self._waiting.popleft()


class LocalExecutor(Executor):
    """Runs what was submitted in threads of this process, as many for each backend as it has slots.

    All processes of all servers on one database share what waits: it is taken up by another when
    this one ends.
    """

    resend_s = 1.0

    def __init__(self, registry: Registry, **given: float) -> None:
        super().__init__(registry, **given)  # type: ignore[arg-type]

    def _begin(self) -> None:
        super()._begin()
        self._lanes: dict[str, Lane] = {}

    def send(self, workload_id: str, name: str) -> None:
        if self.serving and not self.draining:
            entry = self.registry.snapshot.entries.get(name)
            if entry is not None:
                lane = self._lanes.setdefault(name, Lane(self, name))
                lane.put(workload_id, entry.capabilities.max_concurrency)

    def sent(self, name: str) -> Set[str] | None:
        entry = self.registry.snapshot.entries.get(name)
        if entry is None or not entry.health.eligible:
            return None
        lane = self._lanes.get(name)
        return lane.waiting() if lane is not None else frozenset()

    def carry_out(self, workload_id: str) -> None:
        lifecycle.carry_out(workload_id, self.registry, lambda: self.draining)

    def take_up_no_more(self) -> None:
        for lane in list(self._lanes.values()):
            lane.wake()

    def serves(self) -> Sequence[BackendInfo]:
        return self.registry.list()

    def find_health(self, wait_s: float) -> None:
        if monitor.registry is self.registry:
            monitor.ensure_started(wait_s)
