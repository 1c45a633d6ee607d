"""Measuring over fake backends, which can be slow, wrong or broken."""

import threading

import pytest

from backends_app.backends.base import Backend, Health
from backends_app.backends.fake import FakeBackend
from backends_app.benchmarks import measure
from backends_app.benchmarks.measure import Bench, probe, targets
from backends_app.benchmarks.programs import program_for
from backends_app.benchmarks.results import MODES
from backends_app.exceptions import BackendUnavailable
from backends_app.execution import slots
from backends_app.execution.slots import acquire_slot, slots_in_use
from backends_app.registry import Registry
from backends_app.workloads import ExitReason, WorkloadResult
from tests.benchmarks.results import results


def registered(**backends: Backend) -> Registry:
    registry = Registry()
    for name, backend in backends.items():
        registry.register(name, backend)
    probe(registry, registry)
    return registry


def bench(registry: Registry, rounds: int = 3, factory=lambda name, backend: FakeBackend()):
    found, left_out = targets(registry)
    return Bench(registry, found, rounds, left_out=left_out, factory=factory)


def test_every_backend_is_measured_in_every_mode():
    one, two = FakeBackend(max_concurrency=4), FakeBackend(max_concurrency=2)
    progress = []
    measuring = bench(registered(one=one, two=two))
    found = measuring.run(lambda done, total: progress.append((done, total)))
    assert [each.name for each in found.measured] == ["one", "two"]
    for each, at_once in zip(found.measured, (4, 2), strict=True):
        assert list(each.modes) == list(MODES)
        assert [each.modes[mode].runs for mode in MODES] == [3, 3, 3 * at_once]
        assert [each.modes[mode].at_once for mode in MODES] == [1, 1, at_once]
        assert all(each.modes[mode].failures == 0 for mode in MODES)
        assert all(each.modes[mode].p50_ms <= each.modes[mode].p95_ms for mode in MODES)
        assert all(each.modes[mode].per_s > 0 for mode in MODES)
    assert progress == [(done, measuring.total) for done in range(measuring.total + 1)]
    for mode in MODES:
        assert min(each.modes[mode].ratio for each in found.measured) == 1


def test_cold_runs_use_a_fresh_instance_that_is_closed():
    created: list[FakeBackend] = []

    def factory(name: str, backend: Backend) -> Backend:
        created.append(FakeBackend())
        return created[-1]

    warm = FakeBackend(max_concurrency=1)
    bench(registered(one=warm), factory=factory).run()
    assert [len(each.workloads) for each in created] == [1, 1, 1]
    assert all(each.closed for each in created)
    assert (len(warm.workloads), warm.closed) == (1 + 3 + 3, False)


def test_a_backend_not_built_from_settings_has_no_cold_figures():
    measuring = bench(registered(one=FakeBackend(max_concurrency=1)), factory=measure.new_instance)
    progress = []
    found = measuring.run(lambda done, total: progress.append(done))
    assert list(found.measured[0].modes) == ["warm", "parallel"]
    assert progress[-1] == measuring.total


def test_parallel_runs_use_all_slots_and_no_more(runtime_dir):
    barrier, used = threading.Barrier(3, timeout=60), []

    def program(workload):
        if len(fake.workloads) > 1 + 3:  # warm is over
            barrier.wait()
        used.append(slots_in_use("one", 10, runtime_dir))
        return workload.input

    fake = FakeBackend(max_concurrency=3, program=program)
    found = bench(registered(one=fake)).run()
    assert found.measured[0].modes["parallel"].failures == 0
    assert max(used) <= 3


def test_a_run_that_never_gets_a_slot_is_a_failure(monkeypatch, runtime_dir):
    monkeypatch.setattr(measure, "SLOT_S", 0.0)
    fake = FakeBackend(max_concurrency=1)
    with acquire_slot("one", 1, runtime_dir):
        found = bench(registered(one=fake), rounds=1).run()
    figures = found.measured[0].modes["warm"]
    assert (figures.failures, len(fake.workloads)) == (1, 0)
    assert "at capacity (1 running)" in figures.failure


def test_a_run_without_a_free_slot_waits_for_one(runtime_dir, monkeypatch):
    waits = threading.Event()

    def wait_for_slot(name, limit, folder, should_stop):
        def is_over() -> bool:
            over = should_stop()
            waits.set()
            return over

        return slots.wait_for_slot(name, limit, folder, is_over)

    monkeypatch.setattr(measure, "wait_for_slot", wait_for_slot)
    measuring = bench(registered(one=FakeBackend(max_concurrency=1)), rounds=1)
    found = []
    with acquire_slot("one", 1, runtime_dir):
        thread = threading.Thread(target=lambda: found.append(measuring.run()))
        thread.start()
        assert waits.wait(60)
    thread.join(60)
    assert found[0].measured[0].modes["cold"].waited == 1
    assert found[0].measured[0].modes["cold"].failures == 0


def broken(workload):
    raise BackendUnavailable("its engine is gone")


def failing(workload):
    raise ValueError("\x1b[2Joh\nno")


def test_a_host_is_busy_if_it_is_loaded_before_the_benchmark():
    assert results(load_before=1.1).host_busy
    assert not results(load_before=0.9, load_after=9.0).host_busy


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (lambda workload: {"number": -1}, "unexpected output {'number': -1}"),
        (failing, "exited 1: ValueError: \\x1b[2Joh no"),
        (broken, "its engine is gone"),
        (lambda workload: WorkloadResult(exit_reason=ExitReason.TIMEOUT, error="late"), "timeout"),
        (lambda workload: WorkloadResult(exit_reason=ExitReason.EXITED, exit_code=7), "exited 7"),
    ],
)
def test_every_error_is_counted_and_described(program, words):
    fake = FakeBackend(max_concurrency=1, program=program)
    found = bench(registered(one=fake, well=FakeBackend(max_concurrency=1))).run()
    figures = found.measured[0].modes["warm"]
    assert (figures.failures, figures.p50_ms, figures.ratio) == (3, None, None)
    assert words in figures.failure
    assert found.measured[1].modes["warm"].failures == 0
    assert found.measured[1].modes["warm"].ratio == 1
    assert found.succeeded


def test_a_bug_of_a_backend_is_a_failure():
    class Buggy(FakeBackend):
        def execute(self, workload):
            raise KeyError("a bug")

    found = bench(registered(one=Buggy(max_concurrency=1)), factory=lambda *_: None).run()
    failure = found.measured[0].modes["warm"].failure
    assert failure == "backend_error: backend 'one' has a bug: its execute() raised KeyError"
    assert not found.succeeded


def test_an_interruption_kills_running_workloads_and_starts_none():
    class Endless(FakeBackend):
        """Finishes sequential workloads at once; parallel ones run until they are killed."""

        def __init__(self) -> None:
            super().__init__(max_concurrency=3, program=self.run)
            self.ended = threading.Event()
            self.running = 0

        def run(self, workload):
            if len(self.workloads) <= 1 + 5:
                return workload.input
            if len(self.workloads) == 1 + 5 + 1:
                return workload.input  # reported as done, then interrupted
            self.running += 1
            self.ended.wait(60)
            self.running -= 1
            return WorkloadResult(exit_reason=ExitReason.KILLED)

        def kill(self, workload_id):
            if self.running:
                self.ended.set()

    def advance(done: float, total: float) -> None:
        if done == 5 + 1 + 5 + 1:
            raise KeyboardInterrupt

    fake = Endless()
    with pytest.raises(KeyboardInterrupt):
        bench(registered(one=fake), rounds=5).run(advance)
    assert fake.running == 0
    assert len(fake.workloads) <= 1 + 5 + 1 + 3
    assert not [one for one in threading.enumerate() if one.name.startswith("vulcan-benchmark")]


def test_backends_that_cannot_be_measured_are_skipped_with_a_reason():
    registry = registered(
        well=FakeBackend(),
        ill=FakeBackend(health=Health.unhealthy("broken\nfor good")),
        absent=FakeBackend(health=Health.undetected("not here")),
        pictures=FakeBackend(runtimes=["oci"], source_formats=["image"]),
        strange=FakeBackend(runtimes=["shout"]),
    )
    found, left_out = targets(registry)
    assert [one.name for one in found] == ["well"]
    reasons = {one.name: (one.reason, one.broken) for one in left_out}
    assert reasons["ill"] == ("unhealthy: broken for good", True)
    assert reasons["absent"] == ("undetected: not here", True)
    assert reasons["strange"] == ("it does not run any of the benchmark programs", False)
    assert "--image" in reasons["pictures"][0]
    found, _ = targets(registry, image="busybox")
    assert [(one.name, one.image) for one in found] == [("pictures", "busybox"), ("well", None)]
    found, left_out = targets(registry, runtime="go")
    assert [(one.name, one.program.runtime) for one in found] == [("well", "go")]


@pytest.mark.parametrize(
    ("runtimes", "options", "chosen"),
    [
        (["go", "python", "node"], {}, "node"),
        (["go", "python"], {}, "python"),
        (["wasm", "node"], {"runtime": "wasm"}, "wasm"),
        (["node", "oci"], {"image": "busybox"}, "node"),
        (["oci"], {"image": "busybox"}, "oci"),
        (["oci"], {}, None),
        (["node"], {"runtime": "go"}, None),
    ],
)
def test_the_program_depends_on_runtimes_and_options(runtimes, options, chosen):
    capabilities = FakeBackend(runtimes=runtimes).capabilities
    program = program_for(capabilities, **options)
    assert (program and program.runtime) == chosen
