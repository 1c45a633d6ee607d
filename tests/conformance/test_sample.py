"""Run a few tests of each third-party suite; `make conformance` runs the suites."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from backends_app.backends.base import Backend
from backends_app.backends.isolate import IsolateBackend
from backends_app.backends.microvm import MicroVMBackend
from tests.backends.microvm.conftest import images
from tests.conformance.suites import sample
from tests.conformance.tools import NotFetched
from tests.support.needs import need


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    need("mmdebstrap", "unsquashfs", "ip")
    folder = str(images())
    with (
        closing(IsolateBackend()) as isolate,
        closing(MicroVMBackend(folder=folder, accelerator="any")) as microvm,
    ):
        yield {"isolate": isolate, "microvm": microvm}


@pytest.mark.parametrize(
    ("suite", "count", "runs"),
    [("npm", 3, 6), ("test262", 30, 30), ("CPython", 2, 2), ("Go", 1, 1)],
)
def test_a_suite_has_the_results_of_the_plain_runtime(
    suite: str, count: int, runs: int, backends: dict[str, Backend]
):
    try:
        cases = list(sample(suite, count, backends))
    except NotFetched as failed:  # no test depends on the network, in CI neither
        pytest.skip(f"the suite cannot be fetched here: {failed}")
    assert len(cases) == runs
    assert [case for case in cases if not case.same and not case.why] == []
