"""The charts as geometry: where each bar, line and label stands; a template writes the SVG."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from . import words
from .history import Past, Tally

WIDTH, HEIGHT = 320, 132
LEFT, RIGHT, TOP, BOTTOM = 40, 314, 20, 110  # of what is drawn between the axes
TALL, LEFT_OF_AXIS, BELOW_AXIS = BOTTOM - TOP, LEFT - 6, BOTTOM + 16
KINDS = ("completed", "failed", "killed")
HEADS = ("Time", *KINDS, "success", "p50", "p95")


@dataclass(frozen=True, slots=True)
class Label:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One part of a pile; of `kind`, one of KINDS, and perhaps not over yet."""

    kind: str
    growing: bool
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart as SVG's path; and dots for what has no neighbour to be joined with."""

    kind: str
    path: str
    dots: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the time, and what it is called when somebody points at it."""

    x: float
    width: float
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One chart of one backend. `unit` belongs to the labels in `rows`."""

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
class Drawn:
    """One backend over the time: in one line, as charts, and as a table with the heads `HEADS`."""

    backend: str
    summary: Sequence[tuple[str, str]]
    charts: Sequence[Chart]
    table: Sequence[Sequence[str]]


def draw(past: Past, backend: str) -> Drawn:
    tallies = past.of(backend)
    total = Tally.total(tallies)
    times = [_time(past, number) for number in range(len(tallies))]
    return Drawn(
        backend=backend,
        summary=[
            ("ended", words.count(total.ended)),
            ("succeeded", words.share(total.success)),
            ("p50", words.duration(total.run_time(0.5))),
            ("p95", words.duration(total.run_time(0.95))),
        ],
        charts=[
            _throughput(past, backend, tallies, times),
            _success(past, backend, tallies, times),
            _run_time(past, backend, tallies, times),
        ],
        table=[
            (
                time,
                words.count(tally.completed),
                words.count(tally.failed),
                words.count(tally.killed),
                words.share(tally.success),
                words.duration(tally.run_time(0.5)),
                words.duration(tally.run_time(0.95)),
            )
            for tally, time in zip(tallies, times, strict=True)
            if tally.ended
        ],
    )


def _throughput(past: Past, backend: str, tallies: Sequence[Tally], times: list[str]) -> Chart:
    most = ceiling(max((tally.ended for tally in tallies), default=0), whole=True)
    x, width = _across(len(tallies)), round((RIGHT - LEFT) / len(tallies) - 1, 2)
    last = len(tallies) - 1
    bars = []
    for number, tally in enumerate(tallies):
        below = 0
        for kind in KINDS:
            height = getattr(tally, kind)
            if height:
                y = _up(below + height, most)
                tall = round(_up(below, most) - y, 2)
                bars.append(Bar(kind, number == last, x(number) + 0.5, y, width, tall))
            below += height
    total = Tally.total(tallies)
    return Chart(
        key="throughput",
        name="Throughput",
        legend=KINDS,
        title=f"Throughput of {backend}",
        description=(
            f"In the last {past.window.label}, {words.times(total.ended, 'workload', 'workloads')} "
            f"ended: {total.completed:,} completed, {total.failed:,} failed, "
            f"{total.killed:,} were killed."
        ),
        unit=f"workloads per {past.window.step_label}",
        columns=_columns(past),
        rows=_rows(most),
        bars=bars,
        steps=_steps(
            times,
            [
                f"{tally.completed:,} completed, {tally.failed:,} failed, {tally.killed:,} killed"
                for tally in tallies
            ],
        ),
    )


def _success(past: Past, backend: str, tallies: Sequence[Tally], times: list[str]) -> Chart:
    shares = [tally.success for tally in tallies]
    total = Tally.total(tallies).success
    lowest = min((share for share in shares if share is not None), default=None)
    return Chart(
        key="success",
        name="Success rate",
        title=f"Success rate of {backend}",
        description=(
            f"The completed among the completed and failed: {words.share(total)} in the last "
            f"{past.window.label}, at the lowest {words.share(lowest)} within "
            f"{past.window.step_label}."
        ),
        unit="% completed",
        columns=_columns(past),
        rows=_rows(100),
        lines=[_line("success", [None if one is None else 100 * one for one in shares], 100)],
        steps=_steps(times, [f"{words.share(share)} completed" for share in shares]),
    )


def _run_time(past: Past, backend: str, tallies: Sequence[Tally], times: list[str]) -> Chart:
    halves = [tally.run_time(0.5) for tally in tallies]
    mosts = [tally.run_time(0.95) for tally in tallies]
    total = Tally.total(tallies)
    longest = max((most for most in mosts if most is not None), default=0)
    unit, ms = ("seconds", 1000) if longest >= 1000 else ("milliseconds", 1)
    most = ceiling(longest / ms, whole=ms == 1)
    return Chart(
        key="run-time",
        name="Run time of the completed",
        legend=("p50", "p95"),
        title=f"Run time of {backend}",
        description=(
            f"How long the completed ran in the last {past.window.label}: half of them at most "
            f"{words.duration(total.run_time(0.5))} (p50), 95 % of them at most "
            f"{words.duration(total.run_time(0.95))} (p95)."
        ),
        unit=unit,
        columns=_columns(past),
        rows=_rows(most),
        lines=[
            _line("p95", [None if one is None else one / ms for one in mosts], most),
            _line("p50", [None if one is None else one / ms for one in halves], most),
        ],
        steps=_steps(
            times,
            [
                f"p50 {words.duration(half)}, p95 {words.duration(most)}"
                for half, most in zip(halves, mosts, strict=True)
            ],
        ),
    )


def ceiling(value: float, *, whole: bool) -> float:
    """The next round number: 1, 2, 4, 6 or 10 times a power of ten, so that half of it is round."""
    if value <= 0:
        return 2 if whole else 1
    power = 10.0 ** math.floor(math.log10(value))
    top = next(power * times for times in (1, 2, 4, 6, 10) if value <= power * times)
    return max(top, 2) if whole else top


def _across(steps: int) -> Callable[[float], float]:
    return lambda number: round(LEFT + (RIGHT - LEFT) * number / steps, 2)


def _up(value: float, most: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * value / most, 2)


def _columns(past: Past) -> list[Label]:
    """Round times on the axis, and none so near its ends that its label would not fit."""
    x = _across(len(past.steps))
    return [
        Label(x(number), past.begin(number).strftime(past.window.tick))
        for number in range(1, len(past.steps) - 1)
        if past.begin(number).timestamp() % past.window.tick_s == 0
    ]


def _rows(most: float) -> list[Label]:
    return [Label(_up(value, most), words.short(value)) for value in (0, most / 2, most)]


def _line(kind: str, values: Sequence[float | None], most: float) -> Line:
    """Through the middles of the steps, with a gap where there is no value."""
    x = _across(len(values))
    runs: list[list[tuple[float, float]]] = [[]]
    for number, value in enumerate(values):
        if value is not None:
            runs[-1].append((x(number + 0.5), _up(value, most)))
        elif runs[-1]:
            runs.append([])
    path = "".join("M" + "L".join(f"{x:g},{y:g}" for x, y in run) for run in runs if len(run) > 1)
    return Line(kind, path, [run[0] for run in runs if len(run) == 1])


def _steps(times: Sequence[str], said: Sequence[str]) -> list[Step]:
    x = _across(len(times))
    width = round((RIGHT - LEFT) / len(times), 2)
    return [
        Step(x(number), width, f"{time}: {text}")
        for number, (time, text) in enumerate(zip(times, said, strict=True))
    ]


def _time(past: Past, number: int) -> str:
    begin = past.begin(number)
    end = begin + timedelta(seconds=past.window.step_s)
    day = f"{begin:%a} " if past.window.tick_s >= 24 * 3600 else ""
    return f"{day}{begin:%H:%M}–{end:%H:%M}" + (" so far" if end > past.until else "")
