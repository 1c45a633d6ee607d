"""Running a workload: limits, slots, and faults of backends."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.exceptions import (
    BackendAtCapacity,
    BackendNotRegistered,
    BackendUnavailable,
    InvalidRequest,
)
from backends_app.execution import services
from backends_app.registry import Registry
from backends_app.workloads import ExitReason, Resources, Status, WorkloadResult, WorkloadSpec


def node(**given) -> WorkloadSpec:
    return WorkloadSpec(**{"runtime": "node", "code": "…", **given})


def test_the_report_has_the_backend_and_the_reason(filled: Registry):
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


def test_unspecified_resources_are_the_operators_defaults(filled: Registry, fakes, settings):
    settings.ISOLATION_LIMITS = {"mem_mb": {"default": 100}, "output_bytes": 7}
    services.run(node(), registry=filled)
    services.run(node(resources=Resources()), registry=filled)
    unsaid, said = fakes["isolate"].workloads
    assert (unsaid.resources.mem_mb, said.resources.mem_mb) == (100, 256)
    assert (unsaid.output_bytes, said.output_bytes) == (7, 7)


def in_a_thread(call: Callable[[], Any]) -> Any:
    """Call in a thread, as servers do, where no signal arrives; return the result."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(call).result()


@pytest.mark.parametrize("output", [{1, 2}, float("nan"), "\ud800", bytearray()], ids=ascii)
def test_an_output_that_is_not_json_is_invalid_output(registry: Registry, output):
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


def test_limits_are_checked_before_execution(filled: Registry, fakes):
    with pytest.raises(InvalidRequest):
        services.run(node(resources=Resources(timeout_s=1e9)), registry=filled)
    with pytest.raises(BackendNotRegistered):
        services.run(node(isolation="nobody"), registry=filled)
    assert all(not fake.workloads for fake in fakes.values())


def test_a_fault_is_reported_and_the_backend_is_unhealthy_at_once(filled: Registry, fakes):
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


def test_slots_are_released_after_every_outcome(registry: Registry):
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


@pytest.mark.parametrize(
    "bug", [ZeroDivisionError(), SystemExit(0), KeyboardInterrupt(), GeneratorExit()], ids=repr
)
def test_a_bug_in_a_backend_is_a_result_that_names_it(registry: Registry, bug: BaseException):
    class Buggy(FakeBackend):
        def execute(self, workload: WorkloadSpec):
            raise bug

        def kill(self, workload_id: str) -> None:
            raise SystemExit

    registry.register("isolate", Buggy(max_concurrency=1))
    for _ in range(2):  # the slot is free again
        result = in_a_thread(lambda: services.run(node(), registry=registry).result)
        assert result.exit_reason is ExitReason.BACKEND_ERROR
        assert "'isolate'" in result.error
        assert type(bug).__name__ in result.error


def test_ctrl_c_is_raised(registry: Registry):
    def program(workload: WorkloadSpec) -> None:
        raise KeyboardInterrupt

    registry.register("isolate", FakeBackend(program=program))
    with pytest.raises(KeyboardInterrupt):
        services.run(node(), registry=registry)


def test_a_bug_in_prepare_is_unavailable(registry: Registry):
    class Buggy(FakeBackend):
        def prepare(self, workload: WorkloadSpec) -> None:
            raise SystemExit(1)

    registry.register("isolate", Buggy())
    with pytest.raises(BackendUnavailable, match=r"its prepare\(\) raised SystemExit") as raised:
        services.run(node(), registry=registry)
    assert raised.value.name == "isolate"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("stdout", value) for value in (b"bytes", None, 1, "\ud800")),
        *(("stderr", ["a"]), ("error", "\udfff"), ("error", None)),
        *(("exit_code", value) for value in ("0", 1.5, True, 2**31)),
        *(("signal", value) for value in (9, "x" * 17, "SIG\0")),
        *(("duration_ms", value) for value in (-1, "1", None, float("nan"), 2**63)),
        *(("compile_ms", -1), ("cpu_time_ms", -0.5), ("memory_bytes", "1 MB")),
        *(("stdout_truncated", 0), ("stderr_truncated", None)),
        *(("stdout_encoding", "rot13"), ("stderr_encoding", None), ("exit_reason", "exited")),
    ],
)
def test_an_unrecordable_result_names_the_backend_and_the_field(
    registry: Registry, field: str, value: object
):
    given = {"exit_reason": ExitReason.EXITED, "exit_code": 0, field: value}
    registry.register("isolate", FakeBackend(program=lambda workload: WorkloadResult(**given)))
    result = services.run(node(), registry=registry).result
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.BACKEND_ERROR)
    assert f"backend 'isolate' returned an invalid result: {field} " in result.error


def test_a_workload_is_prepared_once_and_its_plan_executed(registry: Registry):
    prepared: list[str | None] = []

    class Planning(FakeBackend):
        def prepare(self, workload: WorkloadSpec) -> tuple[str, WorkloadSpec]:
            prepared.append(workload.runtime)
            return ("plan", workload)

        def execute(self, plan: tuple[str, WorkloadSpec]) -> WorkloadResult:
            name, workload = plan
            assert name == "plan"
            return super().execute(workload)

    registry.register("isolate", Planning())
    spec = WorkloadSpec(runtime="typescript", code="1", input=7)
    assert services.run(spec, registry=registry).result.output == 7
    assert prepared == ["node"]  # once, with the runtime that the alias stands for


def test_a_return_value_that_is_not_a_result_names_the_backend(registry: Registry):
    class Silent(FakeBackend):
        def execute(self, workload: WorkloadSpec):
            return None

    registry.register("isolate", Silent())
    result = services.run(node(), registry=registry).result
    assert result.exit_reason is ExitReason.BACKEND_ERROR
    assert "'isolate'" in result.error
    assert "NoneType" in result.error


def test_kill_follows_every_execution(registry: Registry):
    cleaned: list[str] = []

    class Tidy(FakeBackend):
        def kill(self, workload_id: str) -> None:
            cleaned.append(workload_id)

    def program(workload: WorkloadSpec) -> None:
        raise BackendUnavailable("no")

    registry.register("isolate", Tidy(program=program))
    spec = node()
    with pytest.raises(BackendUnavailable):
        services.run(spec, registry=registry)
    assert cleaned == [spec.id]
