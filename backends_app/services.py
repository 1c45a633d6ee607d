"""Run a workload: check its bounds → resolve → admit → execute → say what happened."""

import socket
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from .backends.base import Health
from .conf import limits, runtime_dir
from .exceptions import BackendUnavailable
from .registry import Registry, registry
from .routing import Resolution
from .slots import slot
from .workloads import Isolation, WorkloadResult, WorkloadSpec


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
    limits().check(spec)
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
            result = backend.execute(replace(spec, runtime=runtime))
        except BackendUnavailable as fault:
            registry.publish(name, backend, Health.unhealthy(fault.reason))
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
