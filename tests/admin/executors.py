"""Executors that start no threads, for tests of pages without a server."""

from backends_app.executors.base import Executor
from backends_app.executors.local import LocalExecutor


class Resting(LocalExecutor):
    """Accepts submissions; a test runs them one by one with `run_next`."""

    def ensure_started(self, wait_s: float = 1.0) -> None:
        pass


class Elsewhere(Executor):
    """Stands for workers on other hosts, whose heartbeats are in the database."""

    remote = True
    requeue_after_s = 5.0

    def ensure_started(self, wait_s: float = 1.0) -> None:
        self.maintenance.detector.refresh()

    def notify(self, workload_id: str, name: str) -> None:
        pass
