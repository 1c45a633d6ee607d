"""Is this server ready for requests? For load balancers: quick, whatever else hangs.

Not django-health-check: under WSGI its answer waits for a synchronous check that hangs, long after
the check has been given up, and each request puts one more thread there.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import DatabaseError, InterfaceError, connection

from .executors.base import Executor
from .inquiry import Call, CallTimeout, SingleFlight
from .models import Workload
from .registry import Registry

logger = logging.getLogger(__name__)

TIMEOUT_S = 1.0
OK = "ok"


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was found; only words of this module, and names of backends with their states."""

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
    """Looks at everything that requests need; `required` names the backends among it."""

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
        """Both are asked at once, so this takes no longer than one of them may."""
        calls = [check.start() for check in self._checks]
        database, executor = map(_status, calls)
        entries = self._registry.snapshot.entries
        backends = {
            name: entries[name].health.state if name in entries else "not registered"
            for name in self._required()
        }
        report = Report(database=database, executor=executor, backends=backends)
        if self._last is None or self._last.ready != report.ready:  # it is asked each second
            level = logging.INFO if report.ready else logging.WARNING
            logger.log(level, "this server answers that it is %s", report.as_json())
        self._last = report
        return report

    def _check_executor(self) -> str:
        executor = self._executor()
        executor.ensure_started(wait_s=0)  # who is not ready gets no request that would do it
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
        return "no answer in time"
    except (DatabaseError, InterfaceError):
        return "the database does not answer"
    except OSError:
        return "the host has no descriptors or memory left"
