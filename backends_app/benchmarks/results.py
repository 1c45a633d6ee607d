"""Results of a benchmark: plain values, and their JSON form for storage."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..utils.figures import percentile

MODES: Mapping[str, str] = {
    "cold": "the first workload of a fresh backend",
    "warm": "one after the other",
    "parallel": "all slots at once",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One run: start and end on the monotonic clock in seconds, and the backend's own duration."""

    started: float
    ended: float
    own_ms: float
    waited: bool = False
    failure: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """One backend in one mode; times are those of successful runs.

    `own_…` is the backend's own measurement. `per_s` is successful runs per second in which any
    run was active. `waited` counts runs that waited for a slot. `ratio` is the median relative to
    that of the fastest backend in this mode.
    """

    runs: int
    at_once: int
    failures: int
    failure: str
    waited: int
    p50_ms: float | None = None
    p95_ms: float | None = None
    own_p50_ms: float | None = None
    own_p95_ms: float | None = None
    per_s: float | None = None
    ratio: float | None = None

    @classmethod
    def of(cls, samples: Sequence[Sample], at_once: int) -> "Figures":
        good = [one for one in samples if not one.failure]
        times = [1000 * (one.ended - one.started) for one in good]
        own = [one.own_ms for one in good]
        found = cls(
            runs=len(samples),
            at_once=at_once,
            failures=len(samples) - len(good),
            failure=next((one.failure for one in samples if one.failure), ""),
            waited=sum(one.waited for one in samples),
        )
        if not good:
            return found
        return replace(
            found,
            p50_ms=round(statistics.median(times), 4),
            p95_ms=round(percentile(times, 95), 4),
            own_p50_ms=statistics.median(own),
            own_p95_ms=percentile(own, 95),
            per_s=round(len(good) / max(busy_s(samples), 1e-9), 4),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendResult:
    """The figures of one backend in each mode, with the runtime and image it ran."""

    name: str
    runtime: str
    image: str | None
    modes: Mapping[str, Figures]


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A backend that was not measured, and why; `broken` if it should have worked."""

    name: str
    reason: str
    broken: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Results:
    """A whole benchmark. Loads are the host's one-minute load averages before and after."""

    task: str
    rounds: int
    processors: int
    load_before: float
    load_after: float
    measured: Sequence[BackendResult]
    left_out: Sequence[Skipped]

    @property
    def host_busy(self) -> bool:
        """Return whether others used much of the host when the benchmark started."""
        return self.load_before > self.processors / 2

    @property
    def succeeded(self) -> bool:
        """Return whether at least one run succeeded."""
        return any(
            figures.runs > figures.failures
            for one in self.measured
            for figures in one.modes.values()
        )

    def find(self, name: str) -> BackendResult | None:
        return next((one for one in self.measured if one.name == name), None)

    def with_ratios(self) -> "Results":
        fastest = {
            mode: min((one.p50_ms for one in found if one.p50_ms), default=None)
            for mode in MODES
            for found in [[each.modes[mode] for each in self.measured if mode in each.modes]]
        }

        def rated(mode: str, figures: Figures) -> Figures:
            best = fastest[mode]
            if figures.p50_ms is None or best is None:
                return figures
            return replace(figures, ratio=round(figures.p50_ms / best, 2))

        return replace(
            self,
            measured=[
                replace(
                    one, modes={mode: rated(mode, figures) for mode, figures in one.modes.items()}
                )
                for one in self.measured
            ],
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Results":
        """Restore `as_json` output, possibly of an older version: new fields need a default."""
        measured = [
            BackendResult(
                **{**one, "modes": {mode: Figures(**each) for mode, each in one["modes"].items()}}
            )
            for one in value["measured"]
        ]
        left_out = [Skipped(**one) for one in value["left_out"]]
        return cls(**{**value, "measured": measured, "left_out": left_out})


def busy_s(samples: Sequence[Sample]) -> float:
    """Return the seconds during which at least one run was active."""
    total, until = 0.0, -math.inf
    for one in sorted(samples, key=lambda one: one.started):
        total += max(0.0, one.ended - max(one.started, until))
        until = max(until, one.ended)
    return total
