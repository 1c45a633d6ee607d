"""A gVisor backend on a real engine, with checks that it leaves nothing."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from backends_app.backends.gvisor import GVisorBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import Resources, WorkloadResult, WorkloadSpec
from tests.backends.gvisor.engines import TestEngine, require, started

IMAGE = "busybox:test"
OUTPUT_BYTES = 20_000


@pytest.fixture(scope="session")
def engine() -> Iterator[TestEngine]:
    """An engine shared by all tests of a process that do not change it."""
    require()
    with ExitStack() as stack:
        yield started(stack, IMAGE)


@pytest.fixture
def own_engine() -> Iterator[TestEngine]:
    """An engine that a test may stop, kill and change."""
    require()
    with ExitStack() as stack:
        yield started(stack, IMAGE)


@pytest.fixture
def make(engine: TestEngine) -> Iterator[Callable[..., GVisorBackend]]:
    """Create backends on the engine. After the test each has to serve another workload, and to
    leave nothing: no container, descriptor or thread.
    """
    descriptors = len(os.listdir("/proc/self/fd"))
    threads = threading.active_count()
    backends: list[GVisorBackend] = []

    def make(**given) -> GVisorBackend:
        backends.append(GVisorBackend(**{"engine": engine.address, **given}))
        return backends[-1]

    yield make
    for backend in backends:
        serves_the_next(backend)
        backend.close()
    for thread in threading.enumerate():
        if thread.name.startswith("vulcan-gvisor"):
            thread.join(30)
    nothing_is_left(engine)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


@pytest.fixture
def shared(engine: TestEngine) -> Iterator[Callable[..., GVisorBackend]]:
    """Give backends that other tests use, too, as long as none has closed them: a new one would
    prove its engine first. After each test no container is left.
    """

    def shared(**given) -> GVisorBackend:
        key = repr(sorted(given.items()))
        if key not in engine.backends or engine.backends[key]._closed:
            engine.backends[key] = GVisorBackend(engine=engine.address, **given)
        return engine.backends[key]

    yield shared
    nothing_is_left(engine)


def serves_the_next(backend: GVisorBackend) -> None:
    """Run an honest program, unless the test has closed the backend."""
    with suppress(BackendUnavailable):
        honest = WorkloadSpec(image=IMAGE, command=("cat",), input="honest", runtime="oci")
        assert backend.run(honest).output == "honest"


def nothing_is_left(engine: TestEngine) -> None:
    assert engine.containers() == []
    at_the_latest = time.monotonic() + 10  # the engine removes first, and then tells the rest
    while engine.sandboxes() and time.monotonic() < at_the_latest:
        time.sleep(0.05)
    assert engine.sandboxes() == []


@pytest.fixture
def attacked(backend: GVisorBackend) -> Iterator[GVisorBackend]:
    """Whatever was done to it: the next workload is served."""
    yield backend
    serves_the_next(backend)


@pytest.fixture
def backend(shared) -> GVisorBackend:
    return shared()


@pytest.fixture
def run(backend: GVisorBackend):
    """Return a function that runs a command, or a shell script, in busybox."""

    def run(command: str | tuple[str, ...], input=None, image=IMAGE, **resources) -> WorkloadResult:
        if isinstance(command, str):
            command = ("sh", "-c", command)
        spec = WorkloadSpec(
            runtime="oci",
            image=image,
            command=command,
            input=input,
            resources=Resources(**{"timeout_s": 30, **resources}),
            output_bytes=OUTPUT_BYTES,
        )
        return backend.run(spec)

    return run
