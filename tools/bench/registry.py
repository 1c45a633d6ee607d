"""The cost of a routing decision made before, and of a busy writer for readers."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from timeit import Timer

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.registry import Registry

from .ratios import Measure, Ratio, at_least, at_most, in_turns

ROUNDS = 40
LOOPS = 50_000
READERS = 8
READ_S = 0.5


def filled(count: int) -> Registry:
    registry = Registry()
    for name in ["isolate", "gvisor", "microvm", *(f"other-{n}" for n in range(count - 3))]:
        registry.register(name, FakeBackend())
    return registry


def ratios() -> Iterator[Ratio]:
    yield from lookups()
    yield beside_a_writer(3)
    yield beside_a_writer(1000)


def lookups() -> Iterator[Ratio]:
    small, large = filled(3), filled(1000)
    lookup = _timer("d['isolate']", d={name: name for name in small})
    explicit = _timer("resolve('isolate', 'node')", resolve=small.resolve)
    auto = _timer("resolve('auto', 'node')", resolve=small.resolve)
    explain = _timer("explain('auto', 'node')", explain=small.explain)
    explicit_1000 = _timer("resolve('isolate', 'node')", resolve=large.resolve)
    auto_1000 = _timer("resolve('auto', 'node')", resolve=large.resolve)
    explain_1000 = _timer("explain('auto', 'node')", explain=large.explain)
    sides = in_turns(
        ROUNDS, lookup, explicit, auto, explain, explicit_1000, auto_1000, explain_1000
    )
    yield at_most(10, "resolve, explicit : dict lookup", sides[1], sides[0])
    yield at_most(10, "resolve, auto : dict lookup", sides[2], sides[0])
    yield at_most(20, "explain, auto : dict lookup", sides[3], sides[0])
    yield at_most(1.2, "resolve, explicit: 1,000 backends : 3", sides[4], sides[1])
    yield at_most(1.2, "resolve, auto: 1,000 backends : 3", sides[5], sides[2])
    yield at_most(1.2, "explain, auto: 1,000 backends : 3", sides[6], sides[3])


def beside_a_writer(count: int) -> Ratio:
    registry = filled(count)

    def alone() -> float:
        return _reads_per_second(registry)

    def beside() -> float:
        with _busy_writer(registry):
            return _reads_per_second(registry)

    measured = in_turns(20, beside, alone)
    name = f"{READERS} readers, {count:,} backends, beside a writer : alone"
    return at_least(0.9, name, measured[0], measured[1])


def _timer(statement: str, **names: object) -> Measure:
    timer = Timer(statement, globals=names)
    return lambda: timer.timeit(LOOPS) / LOOPS


def _reads_per_second(registry: Registry) -> float:
    """Return the reads per second of all readers together; raise if one of them failed."""
    counts: list[int] = []
    until = time.perf_counter() + READ_S

    def read() -> None:
        count = 0
        while time.perf_counter() < until:
            for _ in range(100):
                registry.resolve("auto", "node")
            count += 100
        counts.append(count)

    threads = [threading.Thread(target=read) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) != READERS:
        raise RuntimeError("a reader failed")
    return sum(counts) / READ_S


@contextmanager
def _busy_writer(registry: Registry) -> Iterator[None]:
    """Run a thread that registers, updates and unregisters a backend in a loop."""
    done = threading.Event()

    def write() -> None:
        fake = FakeBackend()
        while not done.wait(0.001):
            registry.register("coming-and-going", fake)
            registry.set_health("coming-and-going", fake, Health.ok())
            registry.unregister("coming-and-going")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
