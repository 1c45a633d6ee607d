"""Real backends and executors with faults that cannot be caused from outside."""

import os
import signal

from backends_app.backends.isolate import IsolateBackend
from backends_app.backends.isolate.backend import IsolatePlan
from backends_app.executors.celery import CeleryExecutor
from backends_app.workloads import WorkloadResult

POISON = "// poison"


class PoisonableBackend(IsolateBackend):
    """The isolate backend, but one source kills the process that runs it."""

    def execute(self, plan: IsolatePlan) -> WorkloadResult:
        if plan.workload.code == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(plan)


class ImpatientExecutor(CeleryExecutor):
    """Redis redelivers messages that are not acknowledged within a second."""

    @property
    def app(self):
        app = super().app
        app.conf.broker_transport_options["visibility_timeout"] = 1
        return app
