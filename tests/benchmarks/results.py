"""Benchmark results for tests, made without measuring."""

from typing import Any

from backends_app.benchmarks import kept
from backends_app.benchmarks.results import MODES, BackendResult, Figures, Results, Skipped
from backends_app.models import Benchmark

VERSIONS = {"vulcan": "1", "python": "3", "backends": {"isolate": {"deno_version": "2.9"}}}


def figures(p50: float | None = 10.0, **overrides: Any) -> Figures:
    found = {"runs": 10, "at_once": 1, "failures": 0, "failure": "", "waited": 0}
    if p50 is not None:
        found |= {"p50_ms": p50, "p95_ms": 2 * p50, "own_p50_ms": p50 - 1, "own_p95_ms": 2 * p50}
        found |= {"per_s": 1000 / p50}
    return Figures(**found | overrides)


def measured(name: str = "isolate", p50: float = 10.0, **overrides: Any) -> BackendResult:
    modes = dict.fromkeys(MODES, figures(p50))
    return BackendResult(
        **{"name": name, "runtime": "node", "image": None, "modes": modes, **overrides}
    )


def results(
    *measured: BackendResult, left_out: tuple[Skipped, ...] = (), **overrides: Any
) -> Results:
    found = {"task": "a task", "rounds": 10, "processors": 2, "load_before": 0.1, "load_after": 1.0}
    return Results(
        **found | overrides, measured=list(measured), left_out=list(left_out)
    ).with_ratios()


def row(name: str = "first", *backends: BackendResult, **more: Any) -> Benchmark:
    return kept.save(name, results(*(backends or (measured(),)), **more), VERSIONS)
