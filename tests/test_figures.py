"""Percentiles, and durations in words."""

from collections import Counter

import pytest

from backends_app.utils.figures import format_duration, percentile


@pytest.mark.parametrize(("percent", "value"), [(50, 10), (95, 19), (100, 20), (0, 1)])
def test_a_percentile_is_one_of_the_values(percent, value):
    assert percentile([*range(20, 0, -1)], percent) == value


@pytest.mark.parametrize(("percent", "value"), [(50, 1), (71, 1), (75, 5), (92, 5), (93, 900)])
def test_a_counted_value_counts_as_often_as_it_was_observed(percent, value):
    assert percentile(Counter({5: 3, 1: 10, 900: 1}), percent) == value


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (None, "–"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1 s"),
        (1_570, "1.57 s"),
        (12_300, "12.3 s"),
        (300_000, "300 s"),
        (7_200_000, "7,200 s"),
    ],
)
def test_durations_have_a_suitable_unit(ms: int | None, text: str):
    assert format_duration(ms) == text
