"""django-prometheus' metrics of requests: those worth their cost, with labels no client chooses."""

from contextlib import suppress
from typing import Any

from django.http import HttpRequest
from django_prometheus.middleware import Metrics, PrometheusAfterMiddleware

KEPT = {
    "django_http_requests_latency_seconds_by_view_method",
    "django_http_requests_total_by_view_transport_method",
    "django_http_responses_total_by_status_view_method",
    "django_http_exceptions_total_by_type",
    "django_http_exceptions_total_by_view",
}
"""The rest is in these, or is what a client claims, such as the length of a body."""


class _Dropped:
    """Stands for a metric that is not kept."""

    def labels(self, **_: str) -> "_Dropped":
        return self

    def inc(self) -> None: ...

    def observe(self, amount: float) -> None: ...


class _KeptMetrics(Metrics):  # type: ignore[misc]
    _instance = None

    def register_metric(self, metric_cls: Any, name: str, *arguments: Any, **named: Any) -> Any:
        if name not in KEPT:
            return _Dropped()
        return super().register_metric(metric_cls, name, *arguments, **named)


class RequestMetricsMiddleware(PrometheusAfterMiddleware):  # type: ignore[misc]
    """Stands early, so that what other middlewares answer, and the time they take, is in it."""

    metrics_cls = _KeptMetrics

    def process_request(self, request: HttpRequest) -> None:
        with suppress(ValueError):  # of a Content-Length that is no number
            super().process_request(request)

    def label_metric(self, metric: Any, request: HttpRequest, *args: Any, **labels: str) -> Any:
        if "method" in labels:  # the method of a latency is as the client has spelled it
            labels["method"] = self._method(request)
        return super().label_metric(metric, request, *args, **labels)
