"""Run a workload: prepare (bounds, resolve) → admit → execute → say what happened."""

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from . import signals
from .backends.base import Backend, Health
from .conf import limits, runtime_dir
from .exceptions import BackendUnavailable, VulcanError
from .registry import Registry, registry
from .routing import Resolution
from .slots import acquire_slot
from .workloads import (
    UNSPECIFIED,
    ExitReason,
    Isolation,
    WorkloadResult,
    WorkloadSpec,
    validate_result,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadReport:
    """A workload that ran: what was asked, where it went and why, what came of it.

    `node` is the host's name. The three times are UTC; durations are in `result`, which measured
    them with a clock that nobody sets.
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
    """A workload that may run: within its bounds, with all of its resources and its backend."""

    spec: WorkloadSpec
    resolution: Resolution
    name: str
    backend: Backend
    created_at: datetime


def prepare(spec: WorkloadSpec, *, registry: Registry = registry) -> Prepared:
    """Everything that can be said against the workload before it runs.

    Raises `InvalidRequest` or a `ResolutionError`.
    """
    bound = limits()
    resources = bound.resources() if spec.resources is UNSPECIFIED else spec.resources
    asked = replace(spec, resources=resources, output_bytes=bound.output_bytes)
    bound.check(asked)
    created_at = datetime.now(UTC)
    signals.registry_read.send_robust(None, operation="resolve")
    resolution = registry.explain(spec.isolation, spec.runtime, spec.source_format)
    if resolution.error is not None:
        raise resolution.error
    assert resolution.name is not None
    assert resolution.backend is not None
    asked = replace(asked, runtime=resolution.runtime)
    with _broken_as_unavailable(resolution.name, "validate"):
        resolution.backend.validate(asked)
    return Prepared(
        spec=asked,
        resolution=resolution,
        name=resolution.name,
        backend=resolution.backend,
        created_at=created_at,
    )


def execute(
    spec: WorkloadSpec, name: str, backend: Backend, *, registry: Registry = registry
) -> WorkloadResult:
    """Run a prepared workload in a slot that the caller holds, and leave nothing behind.

    A backend whose infrastructure breaks under it is unhealthy from then on, until a probe says
    otherwise; that is a `BackendUnavailable`. A backend with a bug gives a result with
    `backend_error`: one workload may be what brings it out, and the others are not to suffer.
    """
    started = time.monotonic()
    try:
        result = _executed(spec, name, backend)
        signals.execution_ended.send_robust(
            None,
            name=name,
            runtime=spec.runtime,
            result=result,
            seconds=time.monotonic() - started,
        )
        return result
    except BackendUnavailable as fault:
        known = registry.snapshot.entries[name].health if name in registry else Health.unknown()
        if known.detected:  # what was never found here is for its probe to judge
            registry.set_health(name, backend, Health.unhealthy(fault.reason, known.attributes))
        asked = registry.explain(spec.isolation, spec.runtime, spec.source_format)
        others = tuple(one.name for one in asked.candidates if one.eligible and one.name != name)
        raise BackendUnavailable(fault.reason, name=name, eligible=others) from fault
    finally:
        kill_workload(backend, spec.id)


def run(spec: WorkloadSpec, *, registry: Registry = registry) -> WorkloadReport:
    """Run the workload and wait for its end; nothing is recorded, and no database needed.

    Raises `InvalidRequest`, a `ResolutionError` or `BackendAtCapacity`; a program that fails is a
    report like any other.
    """
    prepared = prepare(spec, registry=registry)
    name, backend = prepared.name, prepared.backend
    assert prepared.spec.runtime is not None
    with acquire_slot(name, backend.capabilities.max_concurrency, runtime_dir()):
        started_at = datetime.now(UTC)
        result = execute(prepared.spec, name, backend, registry=registry)
    return WorkloadReport(
        id=spec.id,
        runtime=prepared.spec.runtime,
        isolation=spec.isolation,
        isolation_used=name,
        resolution=prepared.resolution,
        node=socket.gethostname(),
        result=result,
        created_at=prepared.created_at,
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def kill_workload(backend: Backend, workload_id: str) -> None:
    """Call the backend's `kill`; a bug in it is logged, and keeps nobody from going on."""
    try:
        backend.kill(workload_id)
    except BaseException as bug:
        if is_interrupt(bug):
            raise
        logger.exception("%s failed to clean up a workload", type(backend).__name__)


def is_interrupt(error: BaseException) -> bool:
    """Tell whether somebody at a terminal has pressed Ctrl-C: that reaches the main thread alone.

    What else derives from `BaseException` has been raised by the code that was called.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and in_main_thread


@contextmanager
def _broken_as_unavailable(name: str, method: str) -> Iterator[None]:
    """Turn a bug in a backend's method into `BackendUnavailable`, which names both."""
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


def _executed(spec: WorkloadSpec, name: str, backend: Backend) -> WorkloadResult:
    """Return the backend's result, or `backend_error` where it has none that could be recorded."""
    try:
        result = backend.execute(spec)
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
    """Replace an output that no answer could hold by `invalid_output`."""
    try:
        json.dumps(result.output, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        reason = ExitReason.INVALID_OUTPUT
        return replace(result, output=None, exit_reason=reason, error="the output is no JSON")
    return result
