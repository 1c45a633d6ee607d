"""Check whether this server is ready for requests, quickly even when a dependency hangs.

django-health-check is not used: under WSGI its response waits for a hanging synchronous check, long
after the check has timed out, and each request adds one more waiting thread.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, connection

from ..executors.base import Executor
from ..models import Workload
from ..registry import Registry
from ..utils.singleflight import Call, CallTimeout, SingleFlight

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
OK = "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """The results of all checks: fixed texts of this module, and backend names with states."""

    database: str
    executor: str
    backends: Mapping[str, str]

    @property
    def ready(self) -> bool:
        healthy = all(state == "healthy" for state in self.backends.values())
        return self.database == self.executor == OK and healthy

    def as_json(self) -> dict[str, Any]:
        return {
            "status": "ready" if self.ready else "not ready",
            "database": self.database,
            "executor": self.executor,
            "backends": dict(self.backends),
        }


class Readiness:
    """Checks everything that requests need; `required` returns the names of required backends."""

    def __init__(
        self,
        registry: Registry,
        executor: Callable[[], Executor],
        required: Callable[[], Sequence[str]],
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._registry = registry
        self._executor = executor
        self._required = required
        self._last: Report | None = None
        self._checks = [
            SingleFlight(check, timeout_s) for check in (_check_database, self._check_executor)
        ]

    def report(self) -> Report:
        """Run all checks at the same time, within the timeout of one, and log a change."""
        calls = [check.start() for check in self._checks]
        database, executor = map(_status, calls)
        entries = self._registry.snapshot.entries
        backends = {
            name: entries[name].health.state if name in entries else "not registered"
            for name in self._required()
        }
        report = Report(database=database, executor=executor, backends=backends)
        if self._last is None or self._last.ready != report.ready:  # probes come each second
            level = logging.INFO if report.ready else logging.WARNING
            logger.log(level, "readiness changed: %s", report.as_json())
        self._last = report
        return report

    def _check_executor(self) -> str:
        executor = self._executor()
        executor.ensure_started(wait_s=0)  # without readiness no request would start it
        return executor.readiness_error() or OK


def _check_database() -> str:
    try:
        Workload.objects.values_list("pk").first()  # `SELECT 1` would not even open a file
        return OK
    finally:
        connection.close()  # it is this thread's own


def _status(call: Call[str]) -> str:
    try:
        return call.result()
    except CallTimeout:
        return "timed out"
    except (DatabaseError, InterfaceError):
        return "the database is unreachable"
    except OSError:
        return "the host is out of file descriptors or memory"
