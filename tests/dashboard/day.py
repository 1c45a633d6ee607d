"""A synthetic day of workloads, for tests of the dashboard and for trying it out."""

import math
import random
from collections.abc import Iterator
from datetime import datetime, timedelta

from backends_app.models import Workload
from backends_app.workloads import Status

# Weight, runtimes, and typical run time in milliseconds.
BACKENDS = {
    "isolate": (12, ("node", "node", "wasm"), 6),
    "gvisor": (3, ("oci",), 340),
    "microvm": (5, ("python", "python", "go"), 620),
}
FAILURES = {
    "exited": "TypeError: Cannot read properties of undefined (reading 'total')",
    "timeout": "time limit of 10 s exceeded",
    "memory_limit": "memory limit of 256 MB exceeded",
}


def workload(**overrides: object) -> Workload:
    """Return an unsaved workload with values for the fields without a default."""
    defaults = {"runtime": "node", "isolation_used": "isolate", "rule": "runtime node → isolate"}
    resources = {"cpus": 1, "mem_mb": 256, "timeout_s": 10}
    return Workload(**{**defaults, **resources, **overrides})


def ended(finished_at: datetime, **overrides: object) -> Workload:
    """Return an unsaved workload that completed after 5 ms unless given otherwise."""
    defaults = {
        "status": Status.COMPLETED,
        "exit_reason": "exited",
        "exit_code": 0,
        "duration_ms": 5,
        "created_at": finished_at,
        "started_at": finished_at,
    }
    return workload(finished_at=finished_at, **{**defaults, **overrides})


def day(now: datetime, count: int, owner: object = None, seed: int = 1) -> Iterator[Workload]:
    """Yield `count` workloads of one day: fewer at night, and a bad hour of one backend."""
    rng = random.Random(seed)
    made = 0
    while made < count:
        at = now - timedelta(seconds=86400 * rng.random() ** 1.15)
        demand = 0.55 + 0.45 * math.sin((at.hour + at.minute / 60 - 8) / 24 * 2 * math.pi)
        if rng.random() > demand:
            continue
        made += 1
        weights = [weight for weight, _, _ in BACKENDS.values()]
        backend = rng.choices(list(BACKENDS), weights)[0]
        _, runtimes, typical_ms = BACKENDS[backend]
        bad = backend == "microvm" and 3 * 3600 < (now - at).total_seconds() < 4.5 * 3600
        outcome = rng.random()
        overrides: dict[str, object] = {}
        if outcome < (0.4 if bad else 0.025):
            reason = rng.choice(list(FAILURES))
            overrides = {"status": Status.FAILED, "exit_reason": reason, "error": FAILURES[reason]}
            overrides["exit_code"] = 1 if reason == "exited" else None
        elif outcome > 0.99:
            overrides = {"status": Status.KILLED, "exit_reason": "killed", "exit_code": None}
        yield ended(
            at,
            owner=owner,
            isolation_used=backend,
            runtime=rng.choice(runtimes),
            duration_ms=max(1, int(typical_ms * rng.lognormvariate(0, 0.5) * (2 if bad else 1))),
            **overrides,
        )
