"""Percentiles, and durations in words."""

import math
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

Number = TypeVar("Number", int, float)


def percentile(values: Iterable[Number] | Counter[Number], percent: float) -> Number:
    """Return the percentile by nearest rank; `percent` is 0 to 100.

    A counter has how often each value was observed. There must be at least one value.
    """
    counts = Counter(values)
    rank = max(1, math.ceil(counts.total() * percent / 100))
    for value in sorted(counts):
        rank -= counts[value]
        if rank <= 0:
            break
    return value


def format_duration(ms: int | None) -> str:
    """Format milliseconds to three digits, as ms or s."""
    if ms is None:
        return "–"
    if ms < 1_000:
        return f"{ms} ms"
    return f"{ms / 1_000:.3g} s" if ms < 100_000 else f"{ms // 1_000:,} s"
