"""The cost of a workload on the gvisor backend, relative to `docker run` of the same command."""

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from backends_app.backends.base import Health
from backends_app.backends.gvisor import GVisorBackend
from backends_app.execution import services
from backends_app.registry import Registry
from backends_app.workloads import WorkloadSpec
from tests.backends.gvisor.engines import TestEngine, started

from .ratios import Ratio, at_most, in_turns, timed

ROUNDS = 25
AT_ONCE = 10
AT_ONCE_ROUNDS = 6
REFILL_S = 1.0  # for a pool to refill; not measured
IMAGE = "busybox:bench"
COMMAND = ("echo", "hello")


def ratios() -> Iterator[Ratio]:
    with ExitStack() as stack:
        engine = started(stack, IMAGE)
        cold = stack.enter_context(_services(engine, {}))
        pooled = stack.enter_context(_services(engine, {IMAGE: 2}))

        def bare() -> None:
            options = ["--rm", "--runtime=runsc", "--network=none"]
            command = ["docker", "-H", engine.address, "run", *options, IMAGE, *COMMAND]
            done = subprocess.run(command, capture_output=True, text=True)
            _expect(done.stdout)

        for side in (cold, pooled, bare):
            side()
        ours, theirs = in_turns(ROUNDS, timed(cold, REFILL_S), timed(bare, REFILL_S))
        yield at_most(1.15, "gvisor, through services : docker run", ours, theirs, "ms")
        ours, theirs = in_turns(ROUNDS, timed(pooled, REFILL_S), timed(bare, REFILL_S))
        yield at_most(0.6, "gvisor, warm : docker run", ours, theirs, "ms")
        many = in_turns(AT_ONCE_ROUNDS, lambda: _at_once(cold), lambda: _at_once(bare))
        yield at_most(1, f"gvisor, {AT_ONCE} at once : docker run", many[0], many[1], "ms")


@contextmanager
def _services(engine: TestEngine, pool: dict[str, int]) -> Iterator[Callable[[], None]]:
    """Yield a function that runs a workload through `services`, as views and commands do."""
    registry = Registry()
    backend = GVisorBackend(engine=engine.address, pool=pool, max_concurrency=AT_ONCE)
    registry.register("gvisor", backend)
    registry.set_health("gvisor", backend, Health.ok())

    def run() -> None:
        spec = WorkloadSpec(image=IMAGE, command=COMMAND)
        _expect(services.run(spec, registry=registry).result.stdout)

    try:
        yield run
    finally:
        backend.close()


def _at_once(run: Callable[[], None]) -> float:
    """Return the seconds per run of AT_ONCE concurrent runs."""
    done: list[bool] = []

    def work() -> None:
        run()
        done.append(True)

    time.sleep(REFILL_S)
    started = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(done) != AT_ONCE:
        raise RuntimeError("a concurrent run failed")
    return (time.perf_counter() - started) / AT_ONCE


def _expect(printed: str) -> None:
    if printed != "hello\n":
        raise RuntimeError(f"a run printed {printed!r}")
