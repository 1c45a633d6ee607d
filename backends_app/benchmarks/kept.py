"""Stored benchmarks: one row each; only the newest are kept."""

import platform
from datetime import UTC, datetime
from typing import Any

from drf_spectacular.settings import spectacular_settings

from ..execution.nodes import node_name
from ..models import MAX_BENCHMARK_NAME_CHARS, Benchmark
from ..registry import Registry
from ..utils.text import escape
from .results import Results

LATEST = "latest"
"""Reserved name for the newest benchmark of this host."""

MAX_STORED = 100


def name_problem(name: str) -> str | None:
    """Return why a benchmark cannot have this name, or None."""
    if name == LATEST:
        return f"{LATEST!r} is reserved for the newest benchmark of this host"
    printable = escape(name, keep="") == name and not name.isspace()
    if not 0 < len(name) <= MAX_BENCHMARK_NAME_CHARS or not printable:
        return f"a name has 1 to {MAX_BENCHMARK_NAME_CHARS} printable characters"
    return None


def versions(registry: Registry, results: Results) -> dict[str, Any]:
    """Return the versions of Vulcan and Python, and the attributes of the measured backends."""
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


def save(name: str, results: Results, versions: dict[str, Any]) -> Benchmark:
    """Store a benchmark, and delete the oldest ones beyond `MAX_STORED`."""
    benchmark = Benchmark.objects.create(
        name=name,
        node=node_name(),
        created_at=datetime.now(UTC),
        versions=versions,
        results=results.as_json(),
    )
    newest = list(Benchmark.objects.values_list("pk", flat=True)[:MAX_STORED])
    Benchmark.objects.exclude(pk__in=newest).delete()
    return benchmark


def latest_benchmark() -> Benchmark | None:
    """Return the newest benchmark of all hosts."""
    return Benchmark.objects.first()


def find(name: str) -> Benchmark | None:
    """Return the newest benchmark with this name on any host; `latest`: the newest on this host."""
    if name == LATEST:
        return Benchmark.objects.filter(node=node_name()).first()
    return Benchmark.objects.filter(name=name).first()


def previous(benchmark: Benchmark) -> Benchmark | None:
    """Return the benchmark stored before it on the same host."""
    return Benchmark.objects.filter(node=benchmark.node, pk__lt=benchmark.pk).first()
