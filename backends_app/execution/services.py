"""Run a workload without a record: check limits, resolve, acquire a slot, execute, report."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from .. import signals
from ..backends.base import Backend, Health, Plan
from ..conf import limits, runtime_dir
from ..exceptions import BackendUnavailable, VulcanError
from ..registry import Registry, registry
from ..routing import Resolution
from ..workloads import (
    UNSPECIFIED,
    ExitReason,
    Isolation,
    WorkloadResult,
    WorkloadSpec,
    validate_result,
)
from .slots import acquire_slot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadReport:
    """A workload that ran, with its routing decision and its result.

    `node` is the host's name. The three times are UTC; the durations in `result` were measured with
    monotonic clocks.
    """

    id: str
    runtime: str
    isolation: Isolation
    isolation_used: str
    resolution: Resolution
    node: str
    result: WorkloadResult
    created_at: datetime
    started_at: datetime
    finished_at: datetime


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A workload as its backend has prepared it; `name` is the backend's in the registry."""

    spec: WorkloadSpec
    name: str
    backend: Backend
    plan: Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted(Prepared):
    """A workload that passed all checks, with the decision that chose its backend."""

    resolution: Resolution
    created_at: datetime


def admit(spec: WorkloadSpec, *, registry: Registry = registry) -> Admitted:
    """Check the workload against the limits, choose its backend, and let the backend prepare it.

    The resources that `spec` leaves open are the operator's defaults. Raise `InvalidRequest` or a
    `ResolutionError`.
    """
    bounds = limits()
    resources = bounds.resources() if spec.resources is UNSPECIFIED else spec.resources
    complete = replace(spec, resources=resources, output_bytes=bounds.output_bytes)
    bounds.check(complete)
    created_at = datetime.now(UTC)
    resolution = registry.explain(spec.isolation, spec.runtime, spec.source_format)
    if resolution.error is not None:
        raise resolution.error
    assert resolution.name is not None
    assert resolution.backend is not None
    if complete.runtime != resolution.runtime:  # an alias
        complete = replace(complete, runtime=resolution.runtime)
    return Admitted(
        spec=complete,
        name=resolution.name,
        backend=resolution.backend,
        plan=_plan(complete, resolution.name, resolution.backend),
        resolution=resolution,
        created_at=created_at,
    )


def prepare(spec: WorkloadSpec, name: str, backend: Backend) -> Prepared:
    """Let a chosen backend prepare the workload.

    Raise `InvalidRequest`, or `BackendUnavailable` for a bug in the backend.
    """
    return Prepared(spec=spec, name=name, backend=backend, plan=_plan(spec, name, backend))


def _plan(spec: WorkloadSpec, name: str, backend: Backend) -> Plan:
    with _bug_as_unavailable(name, "prepare"):
        return backend.prepare(spec)


def execute(prepared: Prepared, *, registry: Registry = registry) -> WorkloadResult:
    """Run a prepared workload in a slot that the caller holds, and clean up after it.

    When the backend's infrastructure fails, mark the backend unhealthy until its next successful
    probe and raise `BackendUnavailable`. A bug in the backend is a result with `backend_error`
    instead: a single workload may trigger it, and others must not suffer.
    """
    spec, name, backend = prepared.spec, prepared.name, prepared.backend
    started = time.monotonic()
    try:
        result = _call_execute(prepared)
        signals.execution_ended.send_robust(
            None,
            name=name,
            runtime=spec.runtime,
            result=result,
            seconds=time.monotonic() - started,
        )
        return result
    except BackendUnavailable as fault:
        health = registry.snapshot.entries[name].health if name in registry else Health.unknown()
        if health.detected:  # only its probe decides about a backend that was never detected
            registry.set_health(name, backend, Health.unhealthy(fault.reason, health.attributes))
        resolution = registry.explain(spec.isolation, spec.runtime, spec.source_format)
        others = tuple(
            one.name for one in resolution.candidates if one.eligible and one.name != name
        )
        raise BackendUnavailable(fault.reason, name=name, eligible=others) from fault
    finally:
        kill_workload(backend, spec.id)


def run(spec: WorkloadSpec, *, registry: Registry = registry) -> WorkloadReport:
    """Run the workload and wait for its end, without a record or a database.

    Raise `InvalidRequest`, a `ResolutionError` or `BackendAtCapacity`. A program that fails is not
    an error: its report has the failure.
    """
    admitted = admit(spec, registry=registry)
    name, backend = admitted.name, admitted.backend
    assert admitted.spec.runtime is not None
    with acquire_slot(name, backend.capabilities.max_concurrency, runtime_dir()):
        started_at = datetime.now(UTC)
        result = execute(admitted, registry=registry)
    return WorkloadReport(
        id=spec.id,
        runtime=admitted.spec.runtime,
        isolation=spec.isolation,
        isolation_used=name,
        resolution=admitted.resolution,
        node=socket.gethostname(),
        result=result,
        created_at=admitted.created_at,
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def kill_workload(backend: Backend, workload_id: str) -> None:
    """Call the backend's `kill`; log a bug in it and continue."""
    try:
        backend.kill(workload_id)
    except BaseException as bug:
        if is_interrupt(bug):
            raise
        logger.exception("%s failed to kill a workload", type(backend).__name__)


def is_interrupt(error: BaseException) -> bool:
    """Return whether the error is a Ctrl-C at a terminal, which only reaches the main thread.

    Any other `BaseException` was raised by the called code.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and in_main_thread


@contextmanager
def _bug_as_unavailable(name: str, method: str) -> Iterator[None]:
    """Turn a bug in a backend's method into `BackendUnavailable` that names both."""
    try:
        yield
    except VulcanError:
        raise
    except BaseException as bug:
        if is_interrupt(bug):
            raise
        logger.exception("backend %s has a bug in %s()", name, method)
        reason = f"its {method}() raised {type(bug).__name__}"
        raise BackendUnavailable(reason, name=name) from bug


def _call_execute(prepared: Prepared) -> WorkloadResult:
    """Return the backend's result, or `backend_error` when it cannot be recorded."""
    name = prepared.name
    try:
        result = prepared.backend.execute(prepared.plan)
        problem = validate_result(result)
        if problem:
            logger.error("backend %s returned an invalid result: %s", name, problem)
            problem = f"backend {name!r} returned an invalid result: {problem}"
    except VulcanError:
        raise
    except BaseException as bug:
        if is_interrupt(bug):
            raise
        logger.exception("backend %s has a bug in execute()", name)
        problem = f"backend {name!r} has a bug: its execute() raised {type(bug).__name__}"
    if problem:
        return WorkloadResult(exit_reason=ExitReason.BACKEND_ERROR, error=problem)
    return _with_json_output(result)


def _with_json_output(result: WorkloadResult) -> WorkloadResult:
    """Replace an output that cannot be rendered as JSON by `invalid_output`."""
    try:
        json.dumps(result.output, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        reason = ExitReason.INVALID_OUTPUT
        return replace(
            result, output=None, exit_reason=reason, error="the output is not valid JSON"
        )
    return result
