"""An isolate backend with a real Deno, with checks that it leaves nothing."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from backends_app.backends.isolate import IsolateBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import Resources, WorkloadResult, WorkloadSpec
from tests.support.processes import children

OUTPUT_BYTES = 20_000


@pytest.fixture
def backend():
    """An isolate backend. After the test it has to serve another workload, and to leave nothing:
    no process, folder or descriptor.
    """
    descriptors = len(os.listdir("/proc/self/fd"))
    backend = IsolateBackend()
    yield backend
    with suppress(BackendUnavailable):  # the test has closed it
        honest = WorkloadSpec(runtime="node", code="export default (x) => x", input="honest")
        assert backend.run(honest).output == "honest"
    backend.close()
    assert not list(Path(tempfile.gettempdir()).glob("*vulcan-isolate*"))
    assert children(os.getpid()) == set()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def workers() -> set[int]:
    """Return the Deno processes that this process's launchers have started."""
    return {pid for launcher in children(os.getpid()) for pid in children(launcher)}


@pytest.fixture
def run(backend: IsolateBackend):
    def run(code: str, input=None, **resources) -> WorkloadResult:
        spec = WorkloadSpec(
            runtime="node",
            code=code,
            input=input,
            resources=Resources(**{"timeout_s": 30, **resources}),
            output_bytes=OUTPUT_BYTES,
        )
        return backend.run(spec)

    return run


@pytest.fixture
def run_wasm(backend: IsolateBackend):
    def run_wasm(code: str, **resources) -> WorkloadResult:
        limits = Resources(**{"timeout_s": 30, **resources})
        return backend.run(WorkloadSpec(runtime="wasm", code=code, resources=limits))

    return run_wasm
