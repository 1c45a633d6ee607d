"""Serve liveness, readiness and metrics to load balancers and Prometheus.

They address a server by IP instead of its name, use no TLS and have no session, so later middleware
would redirect or reject them. Hence this middleware comes first.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase

from ..conf import metrics_access, required_backends
from ..executors import get_executor
from ..registry import registry
from . import metrics
from .readiness import Readiness

METHODS = ("GET", "HEAD")

Handler: TypeAlias = Callable[[HttpRequest], HttpResponse]


class ProbeMiddleware:
    """Serves `/healthz`, `/readyz` and, unless it is off, `/metrics`; passes on other requests."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        readiness = Readiness(registry, get_executor, required_backends)
        self._handlers = {
            "/healthz": liveness,
            "/readyz": lambda request: readiness_response(readiness),
            "/metrics": lambda request: metrics_response(request, metrics.server_exposition),
        }

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return dispatch(request, self._handlers) or self._get_response(request)


def dispatch(request: HttpRequest, handlers: Mapping[str, Handler]) -> HttpResponse | None:
    """Return the uncacheable response of the path's handler, or None for other paths."""
    path = request.path_info.removesuffix("/")
    if path not in handlers or (path == "/metrics" and metrics_access().access == "off"):
        return None
    if request.method in METHODS:
        response = handlers[path](request)
    else:
        response = HttpResponseNotAllowed(METHODS)
    response.headers["Cache-Control"] = "no-store"
    # Django would log each 503, and probes repeat; `Readiness` logs changes instead.
    response._has_been_logged = True  # type: ignore[attr-defined]
    response.headers["X-Content-Type-Options"] = "nosniff"  # as SecurityMiddleware would
    response.headers["Content-Length"] = str(len(response.content))
    return response


def liveness(request: HttpRequest) -> HttpResponse:
    """Return 200: this process serves requests. Check nothing else."""
    return JsonResponse({"status": "alive"})


def readiness_response(readiness: Readiness) -> HttpResponse:
    """Return the readiness report, with 200 when ready and 503 otherwise."""
    report = readiness.report()
    return JsonResponse(report.as_json(), status=200 if report.ready else 503)


def metrics_response(request: HttpRequest, exposition: Callable[[], bytes]) -> HttpResponse:
    """Return the metrics, or 401 without the token."""
    if metrics.is_authorized(request.headers.get("Authorization", "")):
        return HttpResponse(exposition(), content_type=metrics.CONTENT_TYPE)
    return HttpResponse(
        "Send METRICS_TOKEN as a Bearer token.\n",
        status=401,
        content_type="text/plain",
        headers={"WWW-Authenticate": 'Bearer realm="metrics"'},
    )
