"""Run a workload: check its bounds → resolve → admit → execute → say what happened."""

import json
import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from .backends.base import Health
from .conf import limits, runtime_dir
from .exceptions import BackendUnavailable
from .registry import Registry, registry
from .routing import Resolution
from .slots import slot
from .workloads import UNSAID, ExitReason, Isolation, WorkloadResult, WorkloadSpec


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


def run(spec: WorkloadSpec, *, registry: Registry = registry) -> WorkloadReport:
    """Run the workload and wait for its end.

    Raises `InvalidRequest`, a `ResolutionError` or `BackendAtCapacity`; a program that fails is a
    report like any other. A backend whose infrastructure breaks under a workload is unhealthy from
    then on, until a probe says otherwise.
    """
    bound = limits()
    resources = bound.resources() if spec.resources is UNSAID else spec.resources
    spec = replace(spec, resources=resources, output_bytes=bound.output_bytes)
    bound.check(spec)
    created_at = datetime.now(UTC)
    resolution = registry.explain(spec.isolation, spec.runtime, spec.source_format)
    if resolution.error is not None:
        raise resolution.error
    name, backend, runtime = resolution.name, resolution.backend, resolution.runtime
    assert name is not None
    assert backend is not None
    assert runtime is not None
    with slot(name, backend.capabilities.max_concurrency, runtime_dir()):
        started_at = datetime.now(UTC)
        try:
            result = _checked(backend.execute(replace(spec, runtime=runtime)))
        except BackendUnavailable as fault:
            known = registry.snapshot.entries[name].health if name in registry else Health.unknown()
            if known.detected:  # what was never found here is for its probe to judge
                registry.publish(name, backend, Health.unhealthy(fault.reason, known.attributes))
            others = tuple(
                other.name
                for other in resolution.candidates
                if other.eligible and other.name != name
            )
            raise BackendUnavailable(fault.reason, name=name, eligible=others) from fault
        finally:
            backend.cleanup(spec.id)
    return WorkloadReport(
        id=spec.id,
        runtime=runtime,
        isolation=spec.isolation,
        isolation_used=name,
        resolution=resolution,
        node=socket.gethostname(),
        result=result,
        created_at=created_at,
        started_at=started_at,
        finished_at=datetime.now(UTC),
    )


def _checked(result: WorkloadResult) -> WorkloadResult:
    """A backend may be anybody's: an output that no answer could hold is none."""
    try:
        json.dumps(result.output, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError):
        reason = ExitReason.INVALID_OUTPUT
        return replace(result, output=None, exit_reason=reason, error="the output is no JSON")
    return result
