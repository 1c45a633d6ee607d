"""Real backends and executors with the faults that cannot be had from outside."""

import os
import signal

from backends_app.backends.isolate import IsolateBackend
from backends_app.executors.celery import CeleryExecutor
from backends_app.workloads import WorkloadResult, WorkloadSpec

POISON = "// poison"


class PoisonableBackend(IsolateBackend):
    """Isolates, but one source kills the process of whoever runs it."""

    def execute(self, workload: WorkloadSpec) -> WorkloadResult:
        if workload.code == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().execute(workload)


class ImpatientExecutor(CeleryExecutor):
    """Redis gives messages that were not acknowledged within a second to somebody else."""

    @property
    def app(self):
        app = super().app
        app.conf.broker_transport_options["visibility_timeout"] = 1
        return app
