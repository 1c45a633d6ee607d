"""The same program has the same result on every backend that offers its runtime.

Intended differences are listed in docs/programs.md.
"""

from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import cache

import pytest

from backends_app.backends.base import Backend
from backends_app.backends.gvisor import GVisorBackend
from backends_app.backends.isolate import IsolateBackend
from backends_app.backends.microvm import MicroVMBackend
from backends_app.workloads import ExitReason, Resources, WorkloadSpec
from tests.backends import parity
from tests.backends.gvisor.engines import require, started
from tests.backends.gvisor.test_python import IMAGE, python_layer
from tests.backends.microvm.conftest import images
from tests.backends.parity import Program

PROGRAMS = {"node": parity.NODE, "python": parity.PYTHON, "go": parity.GO}
OFFERED = {"node": ("isolate", "microvm"), "python": ("gvisor", "microvm"), "go": ("microvm",)}
LANE: dict[str, tuple[pytest.MarkDecorator, ...]] = {
    "isolate": (pytest.mark.sandbox,),
    "gvisor": (pytest.mark.engine,),
    "microvm": (pytest.mark.machine,),
}
LATE_S = {"isolate": 2, "gvisor": 4, "microvm": 8}  # time for an endless program to print first


@pytest.fixture(scope="module")
def offers() -> Iterator[dict[str, Backend]]:
    """Yield a function that creates each backend on first use."""
    with ExitStack() as stack:

        @cache
        def made(name: str) -> Backend:
            if name == "isolate":
                return stack.enter_context(closing(IsolateBackend()))
            if name == "microvm":
                folder = str(images())
                return stack.enter_context(
                    closing(MicroVMBackend(folder=folder, accelerator="any"))
                )
            require()
            engine = started(stack, "busybox:test")
            with closing(engine.client()) as client:
                client.import_image_from_data(python_layer(), *IMAGE.split(":"))
            backend = GVisorBackend(engine=engine.address, runtimes={"python": IMAGE})
            return stack.enter_context(closing(backend))

        yield made


@pytest.mark.parametrize(
    ("backend", "runtime", "name"),
    [
        pytest.param(backend, runtime, name, marks=LANE[backend])
        for runtime, backends in OFFERED.items()
        for backend in backends
        for name in PROGRAMS[runtime]
    ],
)
def test_program_behaves_the_same_on_all_backends(offers, backend: str, runtime: str, name: str):
    program: Program = PROGRAMS[runtime][name]
    endless = program.exit_reason is ExitReason.TIMEOUT
    result = offers(backend).run(
        WorkloadSpec(
            runtime=runtime,
            code=program.code,
            input=program.input,
            resources=Resources(timeout_s=LATE_S[backend] if endless else 60),
        )
    )
    found = (result.exit_reason, result.output, result.stdout)
    assert found == (program.exit_reason, program.output, program.stdout), result
    if program.exit_reason is not ExitReason.MEMORY_LIMIT:  # the kernel denies memory, or kills
        assert result.exit_code == program.exit_code
    if program.error is not None:
        assert result.error.partition("\n")[0] == program.error
