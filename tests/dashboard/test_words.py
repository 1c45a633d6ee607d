"""Figures are written for people, and what strangers wrote can do no harm."""

import pytest

from backends_app.dashboard import words


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
def test_durations_have_the_unit_that_suits_them(ms: int | None, text: str):
    assert words.duration(ms) == text


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
def test_only_all_is_100_percent_and_only_nothing_is_0(share: float | None, text: str):
    assert words.percent(share) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0"), (0.5, "0.5"), (400, "400"), (20_000, "20k"), (6_000_000, "6M")]
)
def test_labels_of_axes_are_short(number: float, text: str):
    assert words.si(number) == text


def test_what_a_program_said_is_one_short_line():
    assert words.one_line("a\nb\tc  d") == "a b c d"
    assert words.one_line("x" * 10_000_000) == "x" * 199 + "…"
    assert words.one_line("short" + " " * 1_000 + "x") == "short…"
    assert words.one_line("") == ""


def test_what_a_program_said_cannot_turn_the_line_around_it():
    assert words.one_line("safe\u202eevil\u2066\x1b[31m\0\u200b") == "safe evil [31m"


def test_exit_reasons_are_words():
    assert words.exit_reason("memory_limit") == "memory limit"
    assert words.exit_reason("exited", 3) == "exit code 3"
    assert words.exit_reason("exited") == "exit code not 0"
