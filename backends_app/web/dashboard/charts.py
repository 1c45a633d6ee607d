"""Chart geometry: positions of bars, lines and labels. A template writes the SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from ...utils.figures import format_duration
from . import words
from .history import Stats, WindowStats

WIDTH, HEIGHT = 320, 132
LEFT, RIGHT, TOP, BOTTOM = 40, 314, 20, 110  # the plot area, in SVG user units
TALL, LEFT_OF_AXIS, BELOW_AXIS = BOTTOM - TOP, LEFT - 6, BOTTOM + 16
KINDS = ("completed", "failed", "killed")
HEADS = ("Time", *KINDS, "success", "p50", "p95")


@dataclass(frozen=True, slots=True)
class Label:
    """A label on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One segment of a stacked bar. `kind` is one of KINDS; `growing` marks the unfinished step."""

    kind: str
    growing: bool
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Line:
    """A line as an SVG path, and dots for isolated values that no segment reaches."""

    kind: str
    path: str
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Step:
    """The hover area of one time step, with its tooltip."""

    x: float
    width: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart of one backend. `unit` is the unit of the labels in `rows`."""

    key: str
    name: str
    legend: Sequence[str] = ()
    title: str
    description: str
    unit: str
    columns: Sequence[Label]
    rows: Sequence[Label]
    steps: Sequence[Step]
    bars: Sequence[Bar] = ()
    lines: Sequence[Line] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendCharts:
    """One backend over the window: summary, charts, and a table with the columns `HEADS`."""

    backend: str
    summary: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    table: Sequence[Sequence[str]]


def draw(stats: WindowStats, backend: str) -> BackendCharts:
    by_step = stats.for_backend(backend)
    total = Stats.total(by_step)
    times = [_time(stats, number) for number in range(len(by_step))]
    return BackendCharts(
        backend=backend,
        summary=[
            ("ended", words.count(total.ended)),
            ("succeeded", words.percent(total.success)),
            ("p50", format_duration(total.run_time(0.5))),
            ("p95", format_duration(total.run_time(0.95))),
        ],
        charts=[
            _throughput(stats, backend, by_step, times),
            _success(stats, backend, by_step, times),
            _run_time(stats, backend, by_step, times),
        ],
        table=[
            (
                time,
                words.count(step.completed),
                words.count(step.failed),
                words.count(step.killed),
                words.percent(step.success),
                format_duration(step.run_time(0.5)),
                format_duration(step.run_time(0.95)),
            )
            for step, time in zip(by_step, times, strict=True)
            if step.ended
        ],
    )


def _throughput(
    stats: WindowStats, backend: str, by_step: Sequence[Stats], times: list[str]
) -> Chart:
    top = ceiling(max((step.ended for step in by_step), default=0), whole=True)
    x, width = _across(len(by_step)), round((RIGHT - LEFT) / len(by_step) - 1, 2)
    last = len(by_step) - 1
    bars = []
    for number, step in enumerate(by_step):
        below = 0
        for kind in KINDS:
            height = getattr(step, kind)
            if height:
                y = _up(below + height, top)
                tall = round(_up(below, top) - y, 2)
                bars.append(Bar(kind, number == last, x(number) + 0.5, y, width, tall))
            below += height
    total = Stats.total(by_step)
    return Chart(
        key="throughput",
        name="Throughput",
        legend=KINDS,
        title=f"Throughput of {backend}",
        description=(
            f"{words.pluralize(total.ended, 'workload', 'workloads')} ended in the last "
            f"{stats.window.label}: {total.completed:,} completed, {total.failed:,} failed, "
            f"{total.killed:,} killed."
        ),
        unit=f"workloads per {stats.window.step_label}",
        columns=_columns(stats),
        rows=_rows(top),
        bars=bars,
        steps=_steps(
            times,
            [
                f"{step.completed:,} completed, {step.failed:,} failed, {step.killed:,} killed"
                for step in by_step
            ],
        ),
    )


def _success(stats: WindowStats, backend: str, by_step: Sequence[Stats], times: list[str]) -> Chart:
    shares = [step.success for step in by_step]
    total = Stats.total(by_step).success
    lowest = min((share for share in shares if share is not None), default=None)
    return Chart(
        key="success",
        name="Success rate",
        title=f"Success rate of {backend}",
        description=(
            f"Completed as a share of completed and failed: {words.percent(total)} in the last "
            f"{stats.window.label}; the lowest {stats.window.step_label} had "
            f"{words.percent(lowest)}."
        ),
        unit="% completed",
        columns=_columns(stats),
        rows=_rows(100),
        lines=[_line("success", [None if one is None else 100 * one for one in shares], 100)],
        steps=_steps(times, [f"{words.percent(share)} completed" for share in shares]),
    )


def _run_time(
    stats: WindowStats, backend: str, by_step: Sequence[Stats], times: list[str]
) -> Chart:
    p50s = [step.run_time(0.5) for step in by_step]
    p95s = [step.run_time(0.95) for step in by_step]
    total = Stats.total(by_step)
    longest = max((p95 for p95 in p95s if p95 is not None), default=0)
    unit, ms = ("seconds", 1000) if longest >= 1000 else ("milliseconds", 1)
    top = ceiling(longest / ms, whole=ms == 1)
    return Chart(
        key="run-time",
        name="Run time of completed workloads",
        legend=("p50", "p95"),
        title=f"Run time of {backend}",
        description=(
            f"Run time of the workloads that completed in the last {stats.window.label}: half took "
            f"at most {format_duration(total.run_time(0.5))} (p50), 95 % at most "
            f"{format_duration(total.run_time(0.95))} (p95)."
        ),
        unit=unit,
        columns=_columns(stats),
        rows=_rows(top),
        lines=[
            _line("p95", [None if p95 is None else p95 / ms for p95 in p95s], top),
            _line("p50", [None if p50 is None else p50 / ms for p50 in p50s], top),
        ],
        steps=_steps(
            times,
            [
                f"p50 {format_duration(p50)}, p95 {format_duration(p95)}"
                for p50, p95 in zip(p50s, p95s, strict=True)
            ],
        ),
    )


def ceiling(value: float, *, whole: bool) -> float:
    """Round up to 1, 2, 4, 6 or 10 times a power of ten, so that half of it is round as well."""
    if value <= 0:
        return 2 if whole else 1
    power = 10.0 ** math.floor(math.log10(value))
    rounded = next(power * factor for factor in (1, 2, 4, 6, 10) if value <= power * factor)
    return max(rounded, 2) if whole else rounded


def _across(steps: int) -> Callable[[float], float]:
    return lambda number: round(LEFT + (RIGHT - LEFT) * number / steps, 2)


def _up(value: float, top: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * value / top, 2)


def _columns(stats: WindowStats) -> list[Label]:
    """Label round times, except in the first and last step, where a label would not fit."""
    x = _across(len(stats.steps))
    return [
        Label(x(number), stats.begin(number).strftime(stats.window.tick))
        for number in range(1, len(stats.steps) - 1)
        if stats.begin(number).timestamp() % stats.window.tick_s == 0
    ]


def _rows(top: float) -> list[Label]:
    return [Label(_up(value, top), words.si(value)) for value in (0, top / 2, top)]


def _line(kind: str, values: Sequence[float | None], top: float) -> Line:
    """Join the midpoints of the steps; leave a gap where a value is missing."""
    x = _across(len(values))
    runs: list[list[tuple[float, float]]] = [[]]
    for number, value in enumerate(values):
        if value is not None:
            runs[-1].append((x(number + 0.5), _up(value, top)))
        elif runs[-1]:
            runs.append([])
    path = "".join("M" + "L".join(f"{x:g},{y:g}" for x, y in run) for run in runs if len(run) > 1)
    return Line(kind, path, [run[0] for run in runs if len(run) == 1])


def _steps(times: Sequence[str], texts: Sequence[str]) -> list[Step]:
    x = _across(len(times))
    width = round((RIGHT - LEFT) / len(times), 2)
    return [
        Step(x(number), width, f"{time}: {text}")
        for number, (time, text) in enumerate(zip(times, texts, strict=True))
    ]


def _time(stats: WindowStats, number: int) -> str:
    begin = stats.begin(number)
    end = begin + timedelta(seconds=stats.window.step_s)
    day = f"{begin:%a} " if stats.window.tick_s >= 24 * 3600 else ""
    return f"{day}{begin:%H:%M}–{end:%H:%M}" + (" so far" if end > stats.until else "")
