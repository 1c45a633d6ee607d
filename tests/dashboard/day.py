"""A made-up day of workloads, for tests of the dashboard and for who wants to look at it full."""

import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from backends_app.models import Workload
from backends_app.workloads import Status

# How often each is asked for, its runtimes, and its typical run time in milliseconds.
BACKENDS = {
    "isolate": (12, ("node", "node", "wasm"), 6),
    "gvisor": (3, ("oci",), 340),
    "microvm": (5, ("python", "python", "go"), 620),
}
FAILURES = {
    "exited": "TypeError: Cannot read properties of undefined (reading 'total')",
    "timeout": "it ran longer than its 10 s",
    "memory_limit": "it needed more than its 256 MB",
}


def workload(**given: object) -> Workload:
    """One row with what has no default, not saved."""
    defaults = {"runtime": "node", "isolation_used": "isolate", "rule": "runtime node → isolate"}
    resources = {"cpus": 1, "mem_mb": 256, "timeout_s": 10}
    return Workload(**{**defaults, **resources, **given})


def ended(finished_at: datetime, **given: object) -> Workload:
    """One that completed within 5 ms, if nothing else is said."""
    defaults = {
        "status": Status.COMPLETED,
        "exit_reason": "exited",
        "exit_code": 0,
        "duration_ms": 5,
        "created_at": finished_at,
        "started_at": finished_at,
    }
    return workload(finished_at=finished_at, **{**defaults, **given})


def day(now: datetime, count: int, owner: object = None, seed: int = 1) -> Iterator[Workload]:
    """More by day than by night, and a bad hour of one backend."""
    chance = random.Random(seed)
    begun = 0
    while begun < count:
        at = now - timedelta(seconds=86400 * chance.random() ** 1.15)
        busy = 0.55 + 0.45 * math.sin((at.hour + at.minute / 60 - 8) / 24 * 2 * math.pi)
        if chance.random() > busy:
            continue
        begun += 1
        weights = [weight for weight, _, _ in BACKENDS.values()]
        backend = chance.choices(list(BACKENDS), weights)[0]
        _, runtimes, typical_ms = BACKENDS[backend]
        bad = backend == "microvm" and 3 * 3600 < (now - at).total_seconds() < 4.5 * 3600
        fate = chance.random()
        given: dict[str, object] = {}
        if fate < (0.4 if bad else 0.025):
            reason = chance.choice(list(FAILURES))
            given = {"status": Status.FAILED, "exit_reason": reason, "error": FAILURES[reason]}
            given["exit_code"] = 1 if reason == "exited" else None
        elif fate > 0.99:
            given = {"status": Status.KILLED, "exit_reason": "killed", "exit_code": None}
        yield ended(
            at,
            owner=owner,
            isolation_used=backend,
            runtime=chance.choice(runtimes),
            duration_ms=max(1, int(typical_ms * chance.lognormvariate(0, 0.5) * (2 if bad else 1))),
            **given,
        )
