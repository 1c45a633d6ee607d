"""Concurrent readers and writers see only documented errors and no partial state."""

import threading
from collections.abc import Callable
from contextlib import suppress

import pytest

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import BackendAlreadyRegistered, ResolutionError
from backends_app.registry import Registry

pytestmark = pytest.mark.usefixtures("busy_interpreter")


def run_together(*works: Callable[[], None]) -> list[BaseException]:
    """Run every function in its own thread, all starting at once; return what they raised."""
    raised: list[BaseException] = []
    barrier = threading.Barrier(len(works))

    def run(work: Callable[[], None]) -> None:
        barrier.wait()
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - reported by the test's own thread
            raised.append(error)

    threads = [threading.Thread(target=run, args=[work]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


def test_one_of_a_hundred_threads_registers_a_name(registry: Registry):
    fakes = [FakeBackend() for _ in range(100)]
    raised = run_together(*(lambda fake=fake: registry.register("one", fake) for fake in fakes))
    assert len(raised) == 99
    assert all(isinstance(error, BackendAlreadyRegistered) for error in raised)
    assert registry.resolve("one", "node") in fakes


def test_concurrent_registrations_are_not_lost(registry: Registry):
    names = [f"backend-{number}" for number in range(100)]
    raised = run_together(
        *(lambda name=name: registry.register(name, FakeBackend()) for name in names)
    )
    assert raised == []
    assert [*registry] == sorted(names)


def test_a_hundred_threads_use_the_registry_without_unexpected_errors(registry: Registry):
    stable = FakeBackend()
    registry.register("stable", stable)
    coming = {name: FakeBackend() for name in ("isolate", "gvisor", "microvm")}

    def write(name: str) -> None:
        for _ in range(30):
            try:
                registry.register(name, coming[name])
            except BackendAlreadyRegistered:
                registry.set_health(name, coming[name], Health.ok())
            with suppress(ResolutionError):
                registry.unregister(name)

    def read() -> None:
        for _ in range(100):
            assert registry.resolve("stable", "node") is stable
            with suppress(ResolutionError):
                assert registry.resolve("auto", "python") is coming["microvm"]
            names = [info.name for info in registry.list()]
            assert names == sorted(names)
            assert "stable" in names
            snapshot = registry.snapshot
            for name in snapshot.entries:
                assert snapshot.decide(name, "node").error is None

    writers = [lambda name=name: write(name) for name in coming for _ in range(10)]
    assert run_together(*writers, *[read] * 70) == []
    assert [*registry] in [sorted({"stable", *left}) for left in _subsets([*coming])]


def test_a_swap_of_two_backends_is_atomic_for_readers(registry: Registry):
    """`replace_configured` swaps one for the other: a reader always sees exactly one."""
    left, right = FakeBackend(), FakeBackend()
    registry.register("left", left)
    done = threading.Event()

    def swap() -> None:
        try:
            for _ in range(500):
                registry.replace_configured(add={"right": right}, remove={"left": left})
                registry.replace_configured(add={"left": left}, remove={"right": right})
        finally:
            done.set()

    def watch() -> None:
        while not done.is_set():
            assert len(registry.list()) == 1

    assert run_together(swap, *[watch] * 7) == []


def _subsets(names: list[str]) -> list[list[str]]:
    if not names:
        return [[]]
    rest = _subsets(names[1:])
    return rest + [[names[0], *subset] for subset in rest]
