"""The benchmark page: the newest stored benchmark, or an older one by its id."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views import View

from ...benchmarks import kept
from ...benchmarks.compare import Comparison, compare
from ...benchmarks.results import MODES, Results
from ...models import Benchmark
from .charts import chart
from .words import figure, percent_change, ratio

MAX_ID_CHARS = 18  # more digits overflow the database's integers


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of the table: one backend in one mode."""

    backend: str
    ran: str
    mode: str
    figures: tuple[str, ...]
    change: str
    worse: bool
    failure: str


class BenchmarksView(View):
    """The page. It is public; hosts, versions and program errors need a signed-in user."""

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest) -> HttpResponse:
        shown = _requested(request.GET.get("id"))
        context: dict[str, Any] = {"page": "benchmarks", "user": request.user}
        if shown is not None:
            results = Results.from_json(shown.results)
            earlier = kept.previous(shown)
            comparison = None
            if earlier is not None:
                comparison = compare(Results.from_json(earlier.results), results)
            context |= {
                "shown": shown,
                "results": results,
                "charts": [
                    (f"{mode.capitalize()}: {words}", chart(shown, mode))
                    for mode, words in MODES.items()
                ],
                "rows": list(_rows(results, comparison)),
                "earlier": earlier,
                "comparison": comparison,
                "saved": Benchmark.objects.defer("results", "versions"),
            }
        response = render(request, "backends_app/benchmarks/page.html", context)
        response.headers["Cache-Control"] = "private, no-cache"
        return response


def _requested(benchmark_id: str | None) -> Benchmark | None:
    """Return the benchmark with this id, or the newest; raise Http404."""
    if benchmark_id is None:
        return kept.latest_benchmark()
    if benchmark_id.isascii() and benchmark_id.isdecimal() and len(benchmark_id) <= MAX_ID_CHARS:
        found = Benchmark.objects.filter(pk=int(benchmark_id)).first()
        if found is not None:
            return found
    raise Http404


def _rows(results: Results, comparison: Comparison | None) -> Iterator[Row]:
    changes = {
        (one.backend, one.mode): one
        for one in (comparison.changes if comparison else ())
        if one.figure == "p50_ms"
    }
    for one in results.measured:
        for mode, figures in one.modes.items():
            change = changes.get((one.name, mode))
            yield Row(
                backend=one.name,
                ran=one.image or one.runtime,
                mode=mode,
                figures=(
                    figure(figures.p50_ms),
                    figure(figures.p95_ms),
                    ratio(figures.ratio),
                    figure(figures.own_p50_ms),
                    figure(figures.per_s),
                    str(figures.at_once),
                    f"{figures.failures} of {figures.runs}",
                ),
                change=percent_change(change.share) if change else "",
                worse=bool(change and change.worse),
                failure=figures.failure,
            )
