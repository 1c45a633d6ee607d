"""The cost of restoring a machine from its snapshot, relative to booting it, and its memory."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from backends_app.backends.base import Health
from backends_app.backends.microvm import MicroVMBackend
from backends_app.execution import services
from backends_app.registry import Registry
from backends_app.sandbox.client import ProcessLimits
from backends_app.sandbox.streams import Capture
from backends_app.workloads import Resources, WorkloadSpec
from tests.backends.microvm.conftest import images, machines

from .ratios import Measure, Ratio, at_most, in_turns, timed

ROUNDS = 12
STARTS = 25
REST_S = 0.2
MB = 1024 * 1024
FIRST_BYTE_S = 0.1
CLONES, SHARED_FACTOR, OWN_BYTES = 8, 1.5, 40 * MB
MEMORY_ROUNDS = 3
SETTLE_S = 1.0


def ratios() -> Iterator[Ratio]:
    folder = images()
    with ExitStack() as stack:
        without_snapshot = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in folder.iterdir():
            if "snapshot" not in part.name:
                (without_snapshot / part.name).symlink_to(part)
        clone, backend = stack.enter_context(_services(folder))
        cold, _ = stack.enter_context(_services(without_snapshot))
        warm, _ = stack.enter_context(_services(folder, pool_size=1))
        accelerator = backend.probe().attributes["accelerator"]
        for side in (clone, cold, warm):
            side()
        starts = [_first_byte(backend) for _ in range(STARTS)]
        yield at_most(
            1,
            f"microvm ({accelerator}), snapshot to first byte : 100 ms",
            starts,
            [FIRST_BYTE_S] * STARTS,
            "ms",
        )
        ours, theirs = in_turns(ROUNDS, timed(clone, REST_S), timed(cold, REST_S))
        yield at_most(
            1 / 8, f"microvm ({accelerator}), python from snapshot : cold boot", ours, theirs, "ms"
        )
        ours, theirs = in_turns(ROUNDS, timed(warm, SETTLE_S), timed(clone, SETTLE_S))
        yield at_most(1, f"microvm ({accelerator}), python, warm : snapshot", ours, theirs, "ms")
    eight, one = in_turns(MEMORY_ROUNDS, _memory(folder, CLONES), _memory(folder, 1))
    allowed = [SHARED_FACTOR * each + CLONES * OWN_BYTES for each in one]
    yield Ratio(
        name=f"microvm ({accelerator}), memory of {CLONES} idle clones : 1.5 × one + 40 MB each",
        limit=1,
        subject=eight,
        baseline=allowed,
        unit="MB",
        scale=1 / MB,
    )


@contextmanager
def _services(folder: Path, **options) -> Iterator[tuple[Callable[[], None], MicroVMBackend]]:
    """Yield a function that runs a workload through `services`, as views and commands do."""
    registry = Registry()
    backend = MicroVMBackend(folder=str(folder), accelerator="any", **options)
    registry.register("microvm", backend)
    registry.set_health("microvm", backend, Health.ok())

    def run() -> None:
        spec = WorkloadSpec(
            runtime="python", code="print('hello')", resources=Resources(timeout_s=60)
        )
        printed = services.run(spec, registry=registry).result.stdout
        if printed != "hello\n":
            raise RuntimeError(f"a run printed {printed!r}")

    with closing(backend):
        yield run, backend


def _first_byte(backend: MicroVMBackend) -> float:
    """Return the seconds from the start of a process until the agent's ready byte."""
    start = backend._start("python", Resources())
    limits = ProcessLimits(timeout_s=0.001, memory_bytes=2**40, threads=100, output_bytes=MB)
    process = start.launcher.process(start.command, limits)
    started = time.perf_counter()
    exit = process.run(b"", Capture(1), Capture(1), hold_stdin=True)
    return time.perf_counter() - started - exit.duration_ms / 1000


def _memory(folder: Path, clones: int) -> Measure:
    """Return a measure of the proportional memory in bytes of idle clones."""

    def measure() -> float:
        with _services(folder, pool_size=clones) as (run, _):
            run()
            while len(machines()) < clones:
                time.sleep(0.05)
            time.sleep(SETTLE_S)
            return float(sum(_proportional(pid) for pid in machines()))

    return measure


def _proportional(pid: int) -> int:
    """Return the proportional set size in bytes (`smaps_rollup` in proc(5))."""
    with open(f"/proc/{pid}/smaps_rollup") as file:
        lines = dict(line.split(":", 1) for line in list(file)[1:])
    return int(lines["Pss"].split()[0]) * 1024
