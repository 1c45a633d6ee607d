"""Bar chart geometry of a benchmark. A template writes the SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.template.loader import render_to_string
from django.utils.safestring import SafeString

from ...benchmarks.results import MODES, Figures, Results
from ...models import Benchmark
from ...utils.text import shorten
from .words import figure, ratio

WIDTH, ROW = 320, 56
MAX_NAME_CHARS = 30  # leaves room for the ratio; the table beside the chart has the full name


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """The bar of one backend: its median, and its 95th percentile behind it."""

    name: str
    ratio: str
    text: str
    top: int
    p50: float
    p95: float


def chart(benchmark: Benchmark | None, mode: str = "warm") -> SafeString:
    """Return one mode of a benchmark as an SVG without styles or scripts; "" without results.

    It inherits the text colour of its page; `base.css` has the colours of the bars.
    """
    if benchmark is None:
        return SafeString("")
    results = Results.from_json(benchmark.results)
    found = [(one.name, one.modes[mode]) for one in results.measured if mode in one.modes]
    if not found:
        return SafeString("")
    context = {
        "mode": mode,
        "title": f"{mode.capitalize()}: {MODES[mode]}",
        "description": "; ".join(f"{name}: {_text(figures)}" for name, figures in found),
        "bars": _bars(found),
        "width": WIDTH,
        "height": ROW * len(found),
    }
    return render_to_string("backends_app/benchmarks/chart.html", context)


def _bars(found: Sequence[tuple[str, Figures]]) -> list[Bar]:
    longest_ms = max((figures.p95_ms or 0 for _, figures in found), default=0) or 1
    return [
        Bar(
            name=shorten(name, MAX_NAME_CHARS),
            ratio=ratio(figures.ratio),
            text=_text(figures),
            top=ROW * number,
            p50=_width(figures.p50_ms, longest_ms),
            p95=_width(figures.p95_ms, longest_ms),
        )
        for number, (name, figures) in enumerate(found)
    ]


def _width(value: float | None, longest: float) -> float:
    return 0 if value is None else round(max(2.0, WIDTH * value / longest), 1)


def _text(figures: Figures) -> str:
    """Return the figures that fit on one line; the table has the rest."""
    failed = f"{figures.failures} of {figures.runs} failed" if figures.failures else ""
    if figures.p50_ms is None:
        return failed
    times = f"p50 {figure(figures.p50_ms)} ms, p95 {figure(figures.p95_ms)} ms"
    return f"{times}, {failed or f'{figure(figures.per_s)}/s'}"
