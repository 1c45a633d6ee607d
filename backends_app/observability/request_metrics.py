"""Record django-prometheus' request metrics with labels that no client can choose.

django-prometheus' own middleware uses the method as the client spelled it, so that anyone can
create new series; responds with 500 to a Content-Length that is not a number; counts a request that
raises twice; and takes five times as long. This middleware records its metrics under their names,
except those that duplicate others and those that depend on a client's claims.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django_prometheus.middleware import Metrics
from prometheus_client import Counter, Histogram

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
OTHER_METHOD = "<invalid method>"
NO_VIEW = "<unnamed view>"


class _SelectedMetrics(Metrics):  # type: ignore[misc]
    NAMES = {
        "django_http_requests_latency_seconds_by_view_method",
        "django_http_responses_total_by_status_view_method",
        "django_http_exceptions_total_by_type",
        "django_http_exceptions_total_by_view",
    }

    def register_metric(self, metric_cls: Any, name: str, *arguments: Any, **named: Any) -> Any:
        if name in self.NAMES:
            return super().register_metric(metric_cls, name, *arguments, **named)
        return None


class RequestMetricsMiddleware:
    """Comes early in the chain, to include the responses and the duration of other middleware."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        self._metrics = _SelectedMetrics.get_instance()

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        started = time.perf_counter()
        response = self._get_response(request)
        method = request.method if request.method in METHODS else OTHER_METHOD
        latency, responses = _label_metrics(
            self._metrics, _view(request), method, response.status_code
        )
        latency.observe(time.perf_counter() - started)
        responses.inc()
        return response

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        self._metrics.exceptions_by_type.labels(type(exception).__name__).inc()
        self._metrics.exceptions_by_view.labels(_view(request)).inc()


@functools.cache
def _label_metrics(
    metrics: Metrics, view: str, method: str, status: int
) -> tuple[Histogram, Counter]:
    """Return the labelled metrics; the cache is bounded by the views, methods and statuses."""
    return (
        metrics.requests_latency_by_view_method.labels(view, method),
        metrics.responses_by_status_view_method.labels(str(status), view, method),
    )


def _view(request: HttpRequest) -> str:
    """Return the name of the matched URL pattern."""
    match = request.resolver_match
    return NO_VIEW if match is None else match.view_name or NO_VIEW
