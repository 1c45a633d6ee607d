"""The gVisor backend on Podman's compatible socket: the same guarantees, and differences."""

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
    test_containers_of_a_killed_server_are_removed_by_the_next,
)
from tests.backends.gvisor.test_gvisor import (  # noqa: F401
    TestContractOfMappedRuntimes,
    test_figures_come_from_the_kernel,
    test_kernel_is_gvisors,
    test_probe_reports_versions_and_options,
    test_signal_is_named,
    test_streams_are_separate_and_bounded,
    test_warm_container_is_used_once,
)
from tests.backends.gvisor.test_gvisor_attacks import (  # noqa: F401
    test_files_count_as_memory,
    test_host_is_not_visible,
    test_network_is_unreachable,
    test_privileged_operations_are_denied,
    test_unbounded_programs_are_killed,
)
from tests.support.needs import need


class PodmanOfOthers(TestPodman):
    """With Podman's default configuration, in which runsc is not the default runtime."""

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


def test_podman_with_another_default_runtime_is_rejected(own_engine: TestEngine):
    """Podman accepts a runtime's name, returns 201, and runs the container with its default."""
    backend = GVisorBackend(engine=own_engine.address)
    try:
        found = backend.probe()
        assert found.state == "undetected"
        assert re.search(r"would run everything with 'crun'.*--runtime runsc", found.description)
        with pytest.raises(BackendUnavailable, match="would run everything with 'crun'"):
            backend.run(WorkloadSpec(runtime="oci", image=IMAGE, command=("true",)))
        assert own_engine.containers() == []
    finally:
        backend.close()


def test_numeric_users_are_accepted(run):
    assert re.match(r"uid=65534\S* gid=65534", run("id").stdout)
