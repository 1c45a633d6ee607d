"""Running a workload: the bounds, the slots, and what a broken backend leaves behind."""

import threading

import pytest

from backends_app import services
from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import (
    BackendAtCapacity,
    BackendNotRegistered,
    BackendUnavailable,
    InvalidRequest,
)
from backends_app.registry import Registry
from backends_app.workloads import ExitReason, Resources, Status, WorkloadSpec


def node(**given) -> WorkloadSpec:
    return WorkloadSpec(**{"runtime": "node", "code": "…", **given})


def test_the_report_says_what_went_where_and_why(filled: Registry):
    spec = node(runtime="typescript", input={"a": 1})
    report = services.run(spec, registry=filled)
    assert (report.id, report.runtime, report.isolation) == (spec.id, "node", "auto")
    assert report.isolation_used == "isolate"
    assert report.resolution.rule == "runtime node → isolate"
    assert (report.result.status, report.result.output) == (Status.COMPLETED, {"a": 1})
    assert report.created_at <= report.started_at <= report.finished_at


def test_the_backend_gets_the_canonical_runtime(filled: Registry, fakes):
    services.run(node(runtime="javascript"), registry=filled)
    services.run(WorkloadSpec(image="busybox"), registry=filled)
    assert fakes["isolate"].workloads[-1].runtime == "node"
    assert fakes["gvisor"].workloads[-1].runtime == "oci"


def test_what_the_caller_does_not_name_is_the_operators(filled: Registry, fakes, settings):
    settings.ISOLATION_LIMITS = {"mem_mb": {"default": 100}, "output_bytes": 7}
    services.run(node(), registry=filled)
    services.run(node(resources=Resources()), registry=filled)
    unsaid, said = fakes["isolate"].workloads
    assert (unsaid.resources.mem_mb, said.resources.mem_mb) == (100, 256)
    assert (unsaid.output_bytes, said.output_bytes) == (7, 7)


@pytest.mark.parametrize("output", [{1, 2}, float("nan"), "\ud800", bytearray()], ids=ascii)
def test_an_output_that_no_answer_could_hold_is_invalid(registry: Registry, output):
    registry.register("isolate", FakeBackend(program=lambda workload: output))
    result = services.run(node(), registry=registry).result
    assert (result.exit_reason, result.output) == (ExitReason.INVALID_OUTPUT, None)
    assert result.status is Status.FAILED


def test_a_program_that_fails_is_a_report(registry: Registry):
    def program(workload: WorkloadSpec) -> None:
        raise KeyError("boom")

    registry.register("isolate", FakeBackend(program=program))
    result = services.run(node(), registry=registry).result
    assert (result.status, result.exit_code) == (Status.FAILED, 1)
    assert "boom" in result.stderr


def test_bounds_are_checked_before_anything_is_run(filled: Registry, fakes):
    with pytest.raises(InvalidRequest):
        services.run(node(resources=Resources(timeout_s=1e9)), registry=filled)
    with pytest.raises(BackendNotRegistered):
        services.run(node(isolation="nobody"), registry=filled)
    assert all(not fake.workloads for fake in fakes.values())


def test_a_fault_is_named_and_the_backend_unhealthy_at_once(filled: Registry, fakes):
    def program(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("the disk is full")

    fakes["isolate"].program = program
    with pytest.raises(BackendUnavailable) as raised:
        services.run(node(), registry=filled)
    assert raised.value.name == "isolate"
    assert raised.value.reason == "the disk is full"
    assert raised.value.eligible == ("microvm",)
    assert filled.get("isolate").health == Health.unhealthy("the disk is full")
    fakes["isolate"].program = None
    with pytest.raises(BackendUnavailable, match="the disk is full"):
        services.run(node(), registry=filled)


def test_slots_are_counted_and_freed_whatever_happens(registry: Registry):
    inside, release = threading.Semaphore(0), threading.Event()

    def program(workload: WorkloadSpec) -> None:
        inside.release()
        release.wait(60)
        raise RuntimeError("and it fails, too")

    registry.register("isolate", FakeBackend(max_concurrency=2, program=program))
    threads = [
        threading.Thread(target=services.run, args=[node()], kwargs={"registry": registry})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
        inside.acquire(timeout=60)
    with pytest.raises(BackendAtCapacity) as raised:
        services.run(node(), registry=registry)
    assert (raised.value.name, raised.value.limit) == ("isolate", 2)
    release.set()
    for thread in threads:
        thread.join()
    for _ in range(3):
        assert services.run(node(), registry=registry).result.exit_reason is ExitReason.EXITED


def test_a_slot_is_freed_when_the_backend_has_a_bug(registry: Registry):
    class Buggy(FakeBackend):
        def execute(self, workload: WorkloadSpec):
            raise ZeroDivisionError

    registry.register("isolate", Buggy(max_concurrency=1))
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            services.run(node(), registry=registry)


def test_cleanup_follows_every_execution(registry: Registry):
    cleaned: list[str] = []

    class Tidy(FakeBackend):
        def cleanup(self, workload_id: str) -> None:
            cleaned.append(workload_id)

    def program(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("no")

    registry.register("isolate", Tidy(program=program))
    spec = node()
    with pytest.raises(BackendUnavailable):
        services.run(spec, registry=registry)
    assert cleaned == [spec.id]
