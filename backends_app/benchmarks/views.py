"""The page of the benchmarks that were kept: the newest, or one of those before it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.views import View

from ..models import Benchmark
from . import kept
from .charts import chart
from .compare import Comparison, compare
from .results import MODES, Results
from .words import figure, ratio, share

MAX_ID_CHARS = 18  # what a database still takes as a number


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One backend in one mode, as the table has it."""

    backend: str
    ran: str
    mode: str
    figures: tuple[str, ...]
    change: str
    worse: bool
    failure: str


class BenchmarksView(View):
    """Open to all, as the backends are; hosts, versions and what a program said when it failed are
    for who has signed in.
    """

    http_method_names = ["get", "head", "options"]

    def get(self, request: HttpRequest) -> HttpResponse:
        shown = _asked_for(request.GET.get("id"))
        context: dict[str, Any] = {"known": request.user.is_authenticated}
        if shown is not None:
            results = Results.from_json(shown.results)
            earlier = kept.before(shown)
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
                "kept": Benchmark.objects.defer("results", "versions"),
            }
        response = render(request, "backends_app/benchmarks/page.html", context)
        response.headers["Cache-Control"] = "private, no-cache"
        return response


def _asked_for(wanted: str | None) -> Benchmark | None:
    if wanted is None:
        return kept.latest_benchmark()
    if wanted.isascii() and wanted.isdecimal() and len(wanted) <= MAX_ID_CHARS:
        found = Benchmark.objects.filter(pk=int(wanted)).first()
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
                change=share(change.share) if change else "",
                worse=bool(change and change.worse),
                failure=figures.failure,
            )
