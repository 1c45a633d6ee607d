"""The gvisor backend behind Podman's compatible socket: the same promises, and its own ways."""

import re
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from backends_app.backends.gvisor import GVisorBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import WorkloadSpec
from tests.backends.gvisor.conftest import IMAGE
from tests.backends.gvisor.engines import TestEngine, TestPodman, require, started
from tests.backends.gvisor.test_faults import (  # noqa: F401 - the same, on this engine
    test_what_a_killed_server_left_is_removed_by_the_next,
)
from tests.backends.gvisor.test_gvisor import (  # noqa: F401
    TestContractOfMappedRuntimes,
    test_a_signal_is_named,
    test_a_spare_is_used_once,
    test_figures_are_the_kernels,
    test_streams_are_kept_apart_and_bounded,
    test_the_kernel_that_answers_is_gvisors,
    test_the_probe_says_what_it_found,
)
from tests.backends.gvisor.test_gvisor_attacks import (  # noqa: F401
    test_memory_of_files_counts,
    test_nothing_can_be_reached,
    test_nothing_of_the_host_is_to_be_seen,
    test_what_knows_no_bounds_is_ended,
    test_what_needs_a_right_is_denied,
)
from tests.needs import need


class PodmanOfOthers(TestPodman):
    """As it comes: nobody told its service to run everything with runsc."""

    default = "crun"


def on(kind: type[TestPodman]) -> Iterator[TestEngine]:
    require()
    need("podman", "catatonit")
    with ExitStack() as stack:
        yield started(stack, IMAGE, kind)


@pytest.fixture(scope="module")
def engine() -> Iterator[TestEngine]:
    yield from on(TestPodman)


@pytest.fixture
def own_engine() -> Iterator[TestEngine]:
    yield from on(PodmanOfOthers)


def test_a_service_that_would_run_it_with_another_runtime_is_refused(own_engine: TestEngine):
    """Podman takes the name of a runtime, answers 201, and runs the container with its default."""
    backend = GVisorBackend(engine=own_engine.address)
    try:
        found = backend.probe()
        assert found.state == "undetected"
        assert re.search(r"would run everything with 'crun'.*--runtime runsc", found.description)
        with pytest.raises(BackendUnavailable, match="would run everything with 'crun'"):
            backend.execute(WorkloadSpec(runtime="oci", image=IMAGE, command=("true",)))
        assert own_engine.containers() == []
    finally:
        backend.close()


def test_users_are_numbers_as_they_are_elsewhere(run):
    assert re.match(r"uid=65534\S* gid=65534", run("id").stdout)
