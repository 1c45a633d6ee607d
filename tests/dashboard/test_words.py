"""Formatting of figures."""

import pytest

from backends_app.web.dashboard import words


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (0.0, "0 %"),
        (0.00001, "under 0.1 %"),
        (0.5, "50 %"),
        (0.987, "98.7 %"),
        (0.99999, "over 99.9 %"),
        (1.0, "100 %"),
    ],
)
def test_only_exact_shares_are_0_or_100_percent(share: float | None, text: str):
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (0.5, "0.5"), (400, "400"), (20_000, "20k"), (6_000_000, "6M")]
)
def test_axis_labels_use_si_suffixes(number: float, text: str):
    assert words.si(number) == text


def test_exit_reasons_are_described():
    assert words.exit_reason("memory_limit") == "memory limit"
    assert words.exit_reason("exited", 3) == "exit code 3"
    assert words.exit_reason("exited") == "exit code not 0"
