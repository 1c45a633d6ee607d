"""Measures the sides of a comparison in turns and judges their ratio against a bar.

A figure by itself says as much about the machine and its other work as about the code. Two sides
that take turns in short rounds meet the same weather, and the ratio of each round is what counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeAlias

Side: TypeAlias = Callable[[], float]
Rounds: TypeAlias = Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True)
class Bar:
    """Where a ratio has to stay: below `limit`, or above it."""

    limit: float
    above: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.above else '≤'} {self.limit:g}"

    def met(self, ratio: float) -> bool:
        return ratio >= self.limit if self.above else ratio <= self.limit


@dataclass(frozen=True, slots=True)
class Comparison:
    """One row of the table; `figures` are absolute, of this machine, and for orientation only."""

    what: str
    ratios: Sequence[float]
    figures: str
    bar: Bar | None = None

    @property
    def p50(self) -> float:
        return median(self.ratios)

    @property
    def p95(self) -> float:
        """The ratio that 95 % of the rounds keep to, on the side that the bar is about."""
        if len(self.ratios) == 1:
            return self.ratios[0]
        twentieths = quantiles(self.ratios, n=20, method="inclusive")
        return twentieths[0 if self.bar is not None and self.bar.above else -1]

    @property
    def met(self) -> bool | None:
        """Does the median keep to the bar? None without a bar."""
        return None if self.bar is None else self.bar.met(self.p50)


def in_turns(sides: Mapping[str, Side], rounds: int) -> dict[str, list[float]]:
    """What each side measured in each round.

    One more round comes first and is thrown away; every other one runs backwards, so that a drift
    favours nobody.
    """
    measured: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name in reversed(sides) if number % 2 else sides:
            figure = sides[name]()
            if number:
                measured[name].append(figure)
    return measured


def ratios(measured: Rounds, over: str, under: str) -> list[float]:
    """One side divided by another, round by round."""
    return [a / b for a, b in zip(measured[over], measured[under], strict=True)]


def medians(measured: Rounds, names: Iterable[str], form: Callable[[float], str]) -> str:
    """The absolute figures of some sides in words."""
    return " : ".join(form(median(measured[name])) for name in names)
