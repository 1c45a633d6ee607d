"""A microVM backend on real images, with checks that it leaves nothing."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from backends_app.backends.microvm import MicroVMBackend, parts
from backends_app.backends.microvm.backend import _data_folder
from backends_app.backends.microvm.images import Images
from backends_app.backends.microvm.runtimes import RUNTIMES
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import Resources, WorkloadResult, WorkloadSpec
from tests.support.needs import need, without
from tests.support.processes import children
from tests.support.programs import PATIENCE_S

OUTPUT_BYTES = 20_000
ENDLESS = "import sys\nsys.stdout.write('begun\\n')\nwhile True: pass"  # in one piece


def images() -> Path:
    """Return this host's image folder; without images skip the test, or fail under CI."""
    need("qemu-system-x86_64")
    folder = Path(os.environ.get("MICROVM_FOLDER") or _data_folder())
    there = Images(folder)
    try:
        for artifact in (parts.kernel(), *map(parts.root, RUNTIMES)):
            there.verify(artifact)
    except BackendUnavailable as missing:
        without(f"{missing.reason}: run `make host`")
    return folder


@pytest.fixture(scope="session")
def folder() -> Path:
    return images()


@pytest.fixture
def make(folder: Path) -> Iterator[Callable[..., MicroVMBackend]]:
    """Create backends on the images. After the test they have to leave nothing: no process, no
    descriptor, and no new file in their folder.
    """
    descriptors = len(os.listdir("/proc/self/fd"))
    files = sorted(folder.rglob("*"))
    backends: list[MicroVMBackend] = []

    def make(**given) -> MicroVMBackend:
        backends.append(MicroVMBackend(**{"folder": str(folder), "accelerator": "any", **given}))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()
    assert children(os.getpid()) == set()
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert sorted(folder.rglob("*")) == files


@pytest.fixture
def backend(make) -> MicroVMBackend:
    return make()


def execute(backend: MicroVMBackend, code: str | None = None, **given) -> WorkloadResult:
    names = ("input", "archive", "command", "on_output")
    fields = {name: given.pop(name) for name in names if name in given}
    runtime, output_bytes = given.pop("runtime", "python"), given.pop("output_bytes", OUTPUT_BYTES)
    resources = Resources(**{"timeout_s": 60, **given})
    spec = WorkloadSpec(
        runtime=runtime, code=code, resources=resources, output_bytes=output_bytes, **fields
    )
    return backend.run(spec)


@pytest.fixture
def attacked(backend: MicroVMBackend) -> Iterator[MicroVMBackend]:
    """A backend that has to serve another workload after the test."""
    yield backend
    with suppress(BackendUnavailable):  # the test has closed it
        assert execute(backend, "print(input())", input="honest").output == "honest"


@pytest.fixture
def run(backend: MicroVMBackend):
    """Return a function that runs a program; other arguments are resources."""
    return lambda code=None, **given: execute(backend, code, **given)


def machines() -> set[int]:
    """Return the QEMU processes that this process's launchers have started."""
    return {pid for launcher in children(os.getpid()) for pid in children(launcher)}


def run_and(backend: MicroVMBackend, do: Callable[[int], None], **given) -> WorkloadResult:
    """Run an endless program, and act on its machine once it runs."""
    begun = threading.Event()

    def hear(stream: str, data: bytes) -> None:
        begun.set()

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(execute, backend, ENDLESS, on_output=hear, **given)
        assert begun.wait(PATIENCE_S)
        [pid] = machines()
        do(pid)
        return running.result(PATIENCE_S)
