"""Ratios of two sides measured in turns, so that a disturbance affects both sides of a round."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from backends_app.utils.figures import percentile

Measure = Callable[[], float]
"""Returns one measurement, in seconds or as a rate; the same for both sides of a ratio."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """The measurements of `subject` and `baseline`, by round, with the limit of their ratio."""

    name: str
    limit: float
    subject: Sequence[float]
    baseline: Sequence[float]
    unit: str
    scale: float = 1.0
    large_is_good: bool = False

    @property
    def rounds(self) -> list[float]:
        return [one / other for one, other in zip(self.subject, self.baseline, strict=True)]

    def row(self) -> list[str]:
        """Return name, p50 and p95 (on the bad side) of the ratio, bar, met, and both medians."""
        median = statistics.median(self.rounds)
        met = median >= self.limit if self.large_is_good else median <= self.limit
        return [
            self.name,
            f"{median:.2f}",
            f"{percentile(self.rounds, 5 if self.large_is_good else 95):.2f}",
            f"{'≥' if self.large_is_good else '≤'} {self.limit:g}",
            "yes" if met else "NO",
            *(
                f"{statistics.median(side) * self.scale:,.{self.digits}f} {self.unit}"
                for side in (self.subject, self.baseline)
            ),
        ]

    @property
    def digits(self) -> int:
        return 1 if self.unit == "ms" else 0


def in_turns(rounds: int, *sides: Measure) -> list[list[float]]:
    """Measure every side once in each round, in alternating order."""
    measured: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            measured[side].append(sides[side]())
    return measured


def timed(run: Callable[[], None], rest_s: float) -> Measure:
    """Return a measure of the seconds of a run, after a pause that is not measured."""

    def measure() -> float:
        time.sleep(rest_s)
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    return measure


def at_most(
    limit: float, name: str, subject: list[float], baseline: list[float], unit: str = "ns"
) -> Ratio:
    """Return a ratio of times in seconds, shown in `unit`; smaller is better."""
    scale = {"ns": 1e9, "ms": 1e3}[unit]
    return Ratio(name=name, limit=limit, subject=subject, baseline=baseline, unit=unit, scale=scale)


def at_least(limit: float, name: str, subject: list[float], baseline: list[float]) -> Ratio:
    """Return a ratio of rates; larger is better."""
    return Ratio(
        name=name, limit=limit, subject=subject, baseline=baseline, unit="/s", large_is_good=True
    )
