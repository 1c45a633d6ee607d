"""The embedded default: threads of this process run what was submitted, nothing else is needed."""

import logging
import threading
from collections.abc import Sequence, Set
from typing import Any

from django.db import close_old_connections, connections

from ..database import release_connection
from ..health import monitor
from ..registry import BackendInfo, Registry
from .base import Executor

logger = logging.getLogger(__name__)

IDLE_S = 10.0  # how long a thread waits for more before it ends


class BackendThreads:
    """The threads of this process that run what waits for one backend."""

    def __init__(self, executor: "LocalExecutor", name: str) -> None:
        self._executor = executor
        self._name = name
        self._changed = threading.Condition()
        self._notices = self._threads = self._resting = 0

    def notify(self, most_threads: int) -> None:
        """Let one thread more, of at most this many, see what waits."""
        with self._changed:
            self._notices = min(self._notices + 1, most_threads)
            if self._notices > self._resting and self._threads < most_threads:
                self._threads += 1
                name = f"vulcan-{self._name}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
            self._changed.notify()

    def wake(self) -> None:
        """Let the threads see that the executor is being drained."""
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while self._is_noticed():
            try:
                close_old_connections()
                while self._executor.run_next(self._name):
                    close_old_connections()
            except Exception:  # the rows are as they were; the keeper gives notice again
                logger.exception("what waits for %s could not be taken up", self._name)
            release_connection()
        connections.close_all()

    def _is_noticed(self) -> bool:
        """Wait for a notice; False when there has been none for long, and the thread ends."""
        with self._changed:
            self._resting += 1
            found = self._changed.wait_for(lambda: self._notices or self._executor.draining, IDLE_S)
            self._resting -= 1
            if not found or self._executor.draining:
                self._threads -= 1
                return False
            self._notices -= 1
            return True


class LocalExecutor(Executor):
    """Runs what was submitted in threads of this process, as many for each backend as it has slots.

    All processes of all servers on one database share what waits: it is taken up by another when
    this one ends.
    """

    requeue_after_s = 1.0

    def __init__(self, registry: Registry, **given: Any) -> None:
        super().__init__(registry, **given)

    def _begin(self) -> None:
        super()._begin()
        self._threads: dict[str, BackendThreads] = {}

    def notify(self, workload_id: str, name: str) -> None:
        if self.is_started and not self.draining:
            entry = self.registry.snapshot.entries.get(name)
            if entry is not None:
                threads = self._threads.setdefault(name, BackendThreads(self, name))
                threads.notify(entry.capabilities.max_concurrency)

    def queued_ids(self, name: str) -> Set[str] | None:
        """Threads that are busy look by themselves; to notify them again does no harm."""
        entry = self.registry.snapshot.entries.get(name)
        return frozenset() if entry is not None and entry.health.eligible else None

    def stop_accepting(self) -> None:
        for threads in list(self._threads.values()):
            threads.wake()

    def local_backends(self) -> Sequence[BackendInfo]:
        return self.registry.list()

    def wait_for_health(self, wait_s: float) -> None:
        if monitor.registry is self.registry:
            monitor.ensure_started(wait_s)
