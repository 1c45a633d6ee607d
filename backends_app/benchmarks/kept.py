"""Benchmarks that are kept: a row each, of which the newest stay."""

import platform
from datetime import UTC, datetime
from typing import Any

from drf_spectacular.settings import spectacular_settings

from ..models import MAX_BENCHMARK_NAME_CHARS, Benchmark
from ..nodes import node_name
from ..registry import Registry
from .results import Results

LATEST = "latest"
"""Stands for the newest one of this host, so none can be kept under this name."""

MAX_KEPT = 100


def name_problem(name: str) -> str | None:
    """Why no benchmark can be kept under this name, or None."""
    if name == LATEST:
        return f"{LATEST} always is the newest one of this host"
    if not 0 < len(name) <= MAX_BENCHMARK_NAME_CHARS or not name.isprintable() or name.isspace():
        return f"a name has 1 to {MAX_BENCHMARK_NAME_CHARS} characters that can be printed"
    return None


def versions(registry: Registry, results: Results) -> dict[str, Any]:
    """What was measured: Vulcan, Python, and the backends by their own attributes."""
    entries = registry.snapshot.entries
    return {
        "vulcan": spectacular_settings.VERSION,
        "python": platform.python_version(),
        "backends": {
            one.name: dict(entries[one.name].health.attributes)
            for one in results.measured
            if one.name in entries
        },
    }


def keep(name: str, results: Results, versions: dict[str, Any]) -> Benchmark:
    """Make the row, and delete the oldest ones beyond `MAX_KEPT`."""
    made = Benchmark.objects.create(
        name=name,
        node=node_name(),
        created_at=datetime.now(UTC),
        versions=versions,
        results=results.as_json(),
    )
    stay = list(Benchmark.objects.values_list("pk", flat=True)[:MAX_KEPT])
    Benchmark.objects.exclude(pk__in=stay).delete()
    return made


def latest_benchmark() -> Benchmark | None:
    """The newest one of all."""
    return Benchmark.objects.first()


def find(name: str) -> Benchmark | None:
    """The newest one of this name, of any host; `latest` is the newest of this host."""
    if name == LATEST:
        return Benchmark.objects.filter(node=node_name()).first()
    return Benchmark.objects.filter(name=name).first()


def before(benchmark: Benchmark) -> Benchmark | None:
    """The one that was kept before it on the same host."""
    return Benchmark.objects.filter(node=benchmark.node, pk__lt=benchmark.pk).first()
