"""Geometry and texts of the charts."""

import itertools
import re
from datetime import timedelta

import pytest

from backends_app.web.dashboard import charts
from backends_app.web.dashboard.history import NO_STATS, WINDOWS, Stats, WindowStats
from backends_app.workloads import Status


def window_stats(clock, key: str = "hour", **by_step: Stats) -> WindowStats:
    """Return a window with statistics of `isolate` in the steps `s0`, `s1` and so on."""
    window = WINDOWS[key]
    steps: list[dict[str, Stats]] = [{} for _ in range(window.steps)]
    for name, stats in by_step.items():
        steps[int(name[1:])]["isolate"] = stats
    return WindowStats(window, clock.now, window.first_step(clock.now), steps)


def stats(completed: int = 0, failed: int = 0, killed: int = 0, run_time: int = 5) -> Stats:
    stats = Stats()
    stats.add(Status.COMPLETED, "exited", run_time, completed)
    stats.add(Status.FAILED, "timeout", None, failed)
    stats.add(Status.KILLED, "killed", None, killed)
    return stats


def draw(clock, key: str = "hour", **by_step: Stats) -> dict[str, charts.Chart]:
    return {
        chart.key: chart
        for chart in charts.draw(window_stats(clock, key, **by_step), "isolate").charts
    }


@pytest.mark.parametrize("count", [1, 3, 7, 11, 99, 100, 101, 12_345, 6_000_000])
def test_bars_are_stacked_within_the_axes(clock, count: int):
    chart = draw(clock, s0=stats(count), s3=stats(count, count, count), s29=stats(1))["throughput"]
    assert len(chart.bars) == 5
    for bar in chart.bars:
        assert bar.y >= charts.TOP
        assert bar.y + bar.height <= charts.BOTTOM + 0.02
        assert bar.x >= charts.LEFT
        assert bar.x + bar.width <= charts.RIGHT
    stack = [bar for bar in chart.bars if bar.x == chart.bars[1].x]
    assert [bar.kind for bar in stack] == ["completed", "failed", "killed"]
    for below, above in itertools.pairwise(stack):
        assert above.y + above.height == pytest.approx(below.y, abs=0.02)


def test_the_unfinished_step_is_marked(clock):
    chart = draw(clock, s0=stats(1), s29=stats(1))["throughput"]
    assert [bar.growing for bar in chart.bars] == [False, True]
    assert chart.steps[29].text == "17:00–17:02 so far: 1 completed, 0 failed, 0 killed"
    assert "so far" not in chart.steps[28].text


def test_a_line_has_gaps_for_empty_steps_and_dots_for_isolated_ones(clock):
    chart = draw(clock, s0=stats(3, 1), s1=stats(1), s5=stats(0, 1), s9=stats(0, 0, 7))["success"]
    (line,) = chart.lines
    assert line.path.count("M") == 1
    assert line.path.count("L") == 1
    assert line.dots == [(pytest.approx(90.25, abs=0.1), charts.BOTTOM)]


def test_the_unit_of_run_times_depends_on_the_longest(clock):
    quick = draw(clock, s0=stats(1, run_time=15))["run-time"]
    slow = draw(clock, s0=stats(1, run_time=1_500))["run-time"]
    assert (quick.unit, [row.text for row in quick.rows]) == ("milliseconds", ["0", "10", "20"])
    assert (slow.unit, [row.text for row in slow.rows]) == ("seconds", ["0", "1", "2"])


@pytest.mark.parametrize(
    ("value", "top"), [(0, 2), (1, 2), (3, 4), (5, 6), (7, 10), (10, 10), (11, 20), (450, 600)]
)
def test_axes_end_with_a_round_number(value: float, top: float):
    assert charts.ceiling(value, whole=True) == top


def test_small_numbers_have_axes_too():
    assert charts.ceiling(1.5, whole=False) == 2
    assert charts.ceiling(0, whole=False) == 1


@pytest.mark.parametrize(
    ("key", "labels"),
    [
        ("hour", ["16:20", "16:40"]),
        ("day", ["00:00", "06:00", "12:00"]),
        ("week", ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]),
    ],
)
def test_round_times_label_the_axis(clock, key: str, labels: list[str]):
    for hours in (0, 1, 5, 11):
        clock.now += timedelta(hours=hours)
        columns = draw(clock, key)["throughput"].columns
        assert all(charts.LEFT < column.at < charts.RIGHT for column in columns)
    clock.now -= timedelta(hours=17)
    assert [column.text for column in draw(clock, key)["throughput"].columns] == labels


def test_every_chart_has_a_text_alternative(clock):
    found = draw(clock, s0=stats(3, 1, 1), s4=stats(1, 1))
    assert found["throughput"].description == (
        "7 workloads ended in the last hour: 4 completed, 2 failed, 1 killed."
    )
    assert found["success"].description == (
        "Completed as a share of completed and failed: 66.7 % in the last hour; "
        "the lowest 2 minutes had 50 %."
    )
    assert "at most 5 ms (p95)" in found["run-time"].description
    for chart in found.values():
        assert chart.unit
        assert re.fullmatch(r".+ of isolate", chart.title)


def test_the_table_has_a_row_for_each_step_with_ended_workloads(clock):
    table = charts.draw(window_stats(clock, s0=stats(3, 1, 1), s4=stats(1)), "isolate").table
    assert table == [
        ("16:02–16:04", "3", "1", "1", "75 %", "5 ms", "5 ms"),
        ("16:10–16:12", "1", "0", "0", "100 %", "5 ms", "5 ms"),
    ]
    assert all(len(row) == len(charts.HEADS) for row in table)


def test_an_empty_window_has_no_bars_and_no_lines(clock):
    for chart in draw(clock).values():
        assert not chart.bars
        assert not any(line.path or line.dots for line in chart.lines)
    assert NO_STATS.ended == 0
