"""Executors for pages that are tested without a server: nothing starts behind the test."""

from backends_app.executors.base import Executor
from backends_app.executors.local import LocalExecutor


class Resting(LocalExecutor):
    """Takes orders; `run_next` runs one of them where the test stands."""

    def ensure_started(self, wait_s: float = 1.0) -> None:
        pass


class Elsewhere(Executor):
    """Workers on other hosts run what it takes; what they say of themselves is in the database."""

    remote = True
    requeue_after_s = 5.0

    def ensure_started(self, wait_s: float = 1.0) -> None:
        self._detector.refresh()

    def notify(self, workload_id: str, name: str) -> None:
        pass
