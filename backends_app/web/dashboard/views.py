"""The dashboard page, and its changing part as a fragment for the script that polls it."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from weakref import WeakKeyDictionary

from django.contrib.auth.models import AnonymousUser
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.template.loader import render_to_string
from django.utils.cache import get_conditional_response, patch_vary_headers
from django.utils.decorators import method_decorator
from django.utils.safestring import SafeString
from django.views.decorators.gzip import gzip_page

from ...benchmarks.kept import latest_benchmark
from ...conf import metrics_access
from ...executors.views import ExecutorView
from ...models import Workload
from ...utils.database import release_connection
from ...utils.etags import strong_etag
from ..benchmarks.charts import chart
from . import charts, present, words
from .history import WINDOWS, History, Stats, WindowStats, history

POLL_S = 3
OPEN = "open"


@method_decorator(gzip_page, name="dispatch")
class DashboardView(ExecutorView):
    """The whole page. Registry, executor and history default to those of the process."""

    http_method_names = ["get", "head", "options"]
    history: History = history

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        response = super().dispatch(request, *args, **kwargs)
        response.headers["Cache-Control"] = "private, no-cache"
        patch_vary_headers(response, ["Cookie"])
        return response

    def get(self, request: HttpRequest) -> HttpResponse:
        context = self.context()
        live = _live(context)
        with suppress(OperationalError, InterfaceError):
            context["benchmark"] = chart(latest_benchmark())
        return render(
            request,
            "backends_app/dashboard.html",
            {
                **context,
                "page": "dashboard",
                "live": live,
                "etag": strong_etag(live.encode()),
                "poll_s": POLL_S,
                "moment": datetime.now(UTC),
                "metrics_open": metrics_access().access == OPEN,
            },
        )

    def context(self) -> dict[str, Any]:
        window = WINDOWS.get(self.request.GET.get("window", ""), WINDOWS["hour"])
        snapshot = self.registry.snapshot
        try:
            user = self.request.user
            nodes = self.executor.live_nodes()
            loads = present.loads(nodes)
            stats = self.history.window_stats(window)
            figures: dict[str, Any] = {
                "user": user,
                "running": words.count(sum(load.running for load in loads.values())),
                "waiting": words.count(sum(load.waiting for load in loads.values())),
                "history": _render_history(stats),
            }
            if user.is_authenticated:
                visible = Workload.objects.all().visible_to(user)
                figures |= {
                    "nodes": nodes,
                    "unfinished": present.unfinished(visible),
                    "failures": present.failures(visible, stats.since),
                }
        except (OperationalError, InterfaceError):  # backend health needs no database
            figures, loads = {"user": AnonymousUser()}, None
        release_connection()
        targets = present.targets(snapshot, loads)
        return {
            **figures,
            "window": window,
            "windows": WINDOWS.values(),
            "targets": targets,
            "registered": len(snapshot.entries),
            "healthy": sum(target.state == "healthy" for target in targets),
        }


class LiveView(DashboardView):
    """The changing part of the page, with an ETag: 304 when nothing has changed."""

    def get(self, request: HttpRequest) -> HttpResponse:
        live = _live(self.context())
        etag = strong_etag(live.encode())
        response = HttpResponse(live, headers={"ETag": etag})
        return get_conditional_response(request, etag=etag, response=response) or response


def _live(context: dict[str, Any]) -> SafeString:
    return render_to_string("backends_app/dashboard/live.html", context)


@dataclass(frozen=True, slots=True)
class RenderedHistory:
    """Window statistics as rendered for the page; the same for every visitor."""

    since: datetime
    ended: str
    success: str
    failed: Sequence[dict[str, Any]]
    charts: SafeString


_rendered: WeakKeyDictionary[WindowStats, RenderedHistory] = WeakKeyDictionary()


def _render_history(stats: WindowStats) -> RenderedHistory:
    """Render window statistics, once for each instance."""
    rendered = _rendered.get(stats)
    if rendered is None:
        by_backend = {
            backend: Stats.total(stats.for_backend(backend)) for backend in stats.backends
        }
        total = Stats.total(by_backend.values())
        failed = [
            {"backend": backend, "reason": words.exit_reason(reason), "count": count}
            for backend, backend_stats in by_backend.items()
            for reason, count in backend_stats.failures.items()
        ]
        backend_charts = [charts.draw(stats, backend) for backend in by_backend]
        rendered = _rendered[stats] = RenderedHistory(
            since=stats.since,
            ended=words.count(total.ended),
            success=words.percent(total.success),
            failed=sorted(failed, key=lambda row: -row["count"]),
            charts=render_to_string(
                "backends_app/dashboard/charts.html",
                # The template reads the dimensions from the module.
                {"backends": backend_charts, "area": charts, "window": stats.window},
            ),
        )
    return rendered
