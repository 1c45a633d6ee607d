"""The default executor: run workloads in threads of this process, without other services."""

import logging
import threading
from collections.abc import Sequence, Set
from typing import Any

from django.db import close_old_connections, connections

from ..health import monitor
from ..registry import BackendInfo, Registry
from ..utils.database import release_connection
from .base import Executor

logger = logging.getLogger(__name__)

IDLE_S = 10.0  # how long a thread waits for more before it ends


class BackendThreads:
    """The threads of this process that run the pending workloads of one backend."""

    def __init__(self, executor: "LocalExecutor", name: str) -> None:
        self._executor = executor
        self._name = name
        self._changed = threading.Condition()
        self._notices = self._threads = self._resting = 0

    def notify(self, most_threads: int) -> None:
        """Wake a resting thread, or start one while there are fewer than `most_threads`."""
        with self._changed:
            self._notices = min(self._notices + 1, most_threads)
            if self._notices > self._resting and self._threads < most_threads:
                self._threads += 1
                name = f"vulcan-{self._name}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
            self._changed.notify()

    def wake(self) -> None:
        """Wake all threads, so that they notice the shutdown."""
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while self._is_noticed():
            try:
                close_old_connections()
                while self._executor.run_next(self._name):
                    close_old_connections()
            except Exception:  # the rows are unchanged; maintenance notifies again
                logger.exception("running pending workloads of %s failed", self._name)
            release_connection()
        connections.close_all()

    def _is_noticed(self) -> bool:
        """Wait for a notification; return False after `IDLE_S` or at shutdown to end the thread."""
        with self._changed:
            self._resting += 1
            is_woken = self._changed.wait_for(
                lambda: self._notices or self._executor.draining, IDLE_S
            )
            self._resting -= 1
            if not is_woken or self._executor.draining:
                self._threads -= 1
                return False
            self._notices -= 1
            return True


class LocalExecutor(Executor):
    """Runs workloads in threads of this process, per backend as many as it has slots.

    All processes of all servers on one database share the pending workloads: when this process
    ends, another runs them.
    """

    requeue_after_s = 1.0

    def __init__(self, registry: Registry, **options: Any) -> None:
        super().__init__(registry, **options)

    def _init_process_state(self) -> None:
        super()._init_process_state()
        self._threads: dict[str, BackendThreads] = {}

    def notify(self, workload_id: str, name: str) -> None:
        if self.is_started and not self.draining:
            entry = self.registry.snapshot.entries.get(name)
            if entry is not None:
                threads = self._threads.setdefault(name, BackendThreads(self, name))
                threads.notify(entry.capabilities.max_concurrency)

    def queued_ids(self, name: str) -> Set[str] | None:
        """Return no ids: notifying again is harmless, and busy threads look by themselves."""
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
