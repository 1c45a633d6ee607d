"""A backend that is unhealthy while a file with the reason exists."""

import tempfile
from pathlib import Path

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.utils.strict_json import JSON
from backends_app.workloads import WorkloadSpec

FILE = "fickle.says"


class FickleBackend(FakeBackend):
    """A fake that is unhealthy while FILE exists in the temporary folder of its process."""

    def __init__(self) -> None:
        super().__init__(runtimes=["python"], program=self._run)

    def probe(self) -> Health:
        reason = self._problem()
        return Health.unhealthy(reason) if reason else Health.ok("a fake workload ran")

    def _run(self, workload: WorkloadSpec) -> JSON:
        if reason := self._problem():
            raise BackendUnavailable(reason)
        return workload.input

    def _problem(self) -> str:
        file = Path(tempfile.gettempdir(), FILE)
        return file.read_text() if file.exists() else ""
