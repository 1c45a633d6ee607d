"""Two sides of a ratio, measured in turns: what disturbs one round disturbs both of its sides."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Measure = Callable[[], float]
"""One measurement: seconds, or a rate; both sides of a ratio give the same."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """How `subject` compares to `baseline`, round by round."""

    name: str
    bar: str
    met: bool
    worst_percent: int
    subject: Sequence[float]
    baseline: Sequence[float]
    unit: str
    scale: float = 1.0

    @property
    def rounds(self) -> list[float]:
        return [one / other for one, other in zip(self.subject, self.baseline, strict=True)]

    def row(self) -> list[str]:
        """Name, p50 and p95 (towards the bad side) of the ratio, bar, met or not, both medians."""
        return [
            self.name,
            f"{statistics.median(self.rounds):.2f}",
            f"{percentile(self.rounds, self.worst_percent):.2f}",
            self.bar,
            "yes" if self.met else "NO",
            *(
                f"{statistics.median(side) * self.scale:,.0f} {self.unit}"
                for side in (self.subject, self.baseline)
            ),
        ]


def in_turns(rounds: int, *sides: Measure) -> list[list[float]]:
    """Measure every side once in each round, in alternating order."""
    measured: list[list[float]] = [[] for _ in sides]
    for number in range(rounds):
        order = range(len(sides)) if number % 2 == 0 else reversed(range(len(sides)))
        for side in order:
            measured[side].append(sides[side]())
    return measured


def percentile(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def at_most(limit: float, name: str, subject: list[float], baseline: list[float]) -> Ratio:
    """A ratio of times, in nanoseconds; small is good."""
    met = statistics.median(a / b for a, b in zip(subject, baseline, strict=True)) <= limit
    return Ratio(
        name=name,
        bar=f"≤ {limit:g}",
        met=met,
        worst_percent=95,
        subject=subject,
        baseline=baseline,
        unit="ns",
        scale=1e9,
    )


def at_least(limit: float, name: str, subject: list[float], baseline: list[float]) -> Ratio:
    """A ratio of rates; large is good."""
    met = statistics.median(a / b for a, b in zip(subject, baseline, strict=True)) >= limit
    return Ratio(
        name=name,
        bar=f"≥ {limit:g}",
        met=met,
        worst_percent=5,
        subject=subject,
        baseline=baseline,
        unit="/s",
    )
