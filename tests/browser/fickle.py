"""A backend that is unhealthy while a file says why."""

import tempfile
from pathlib import Path

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.strict_json import JSON
from backends_app.workloads import WorkloadSpec

FILE = "fickle.says"


class FickleBackend(FakeBackend):
    """Looks for its file in the temporary folder of its process."""

    def __init__(self) -> None:
        super().__init__(runtimes=["python"], program=self._run)

    def probe(self) -> Health:
        trouble = self._trouble()
        return Health.unhealthy(trouble) if trouble else Health.ok("a fake workload ran")

    def _run(self, workload: WorkloadSpec) -> JSON:
        if trouble := self._trouble():
            raise BackendUnavailable(trouble)
        return workload.input

    def _trouble(self) -> str:
        file = Path(tempfile.gettempdir(), FILE)
        return file.read_text() if file.exists() else ""
