"""What load balancers and Prometheus ask, answered before anything else looks at the request.

They know a server by its address instead of its name, speak no TLS to it, and have no session: what
comes later in the chain would redirect or refuse them. So this middleware stands first.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase

from . import metrics
from .conf import metrics_access, required_backends
from .executors import executor
from .readiness import Readiness
from .registry import registry


class OperationsMiddleware:
    """Answers `/healthz`, `/readyz` and, where it is not off, `/metrics`; the rest goes on."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        self._readiness = Readiness(registry, executor, required_backends)

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        match request.path_info.removesuffix("/"):
            case "/healthz":
                answer = self._alive
            case "/readyz":
                answer = self._ready
            case "/metrics" if metrics_access().access != "off":
                answer = self._metrics
            case _:
                return self._get_response(request)
        allowed = ["GET", "HEAD"]
        response = answer(request) if request.method in allowed else HttpResponseNotAllowed(allowed)
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Length"] = str(len(response.content))
        return response

    def _alive(self, request: HttpRequest) -> HttpResponse:
        """This process serves requests; nothing else is looked at."""
        return JsonResponse({"status": "alive"})

    def _ready(self, request: HttpRequest) -> HttpResponse:
        report = self._readiness.report()
        return JsonResponse(report.as_json(), status=200 if report.ready else 503)

    def _metrics(self, request: HttpRequest) -> HttpResponse:
        if not metrics.may_read(request.headers.get("Authorization", "")):
            headers = {"WWW-Authenticate": 'Bearer realm="metrics"'}
            text = "Send METRICS_TOKEN as a Bearer token.\n"
            return HttpResponse(text, status=401, content_type="text/plain", headers=headers)
        exposed = metrics.exposition(metrics.collectors())
        return HttpResponse(exposed, content_type=metrics.CONTENT_TYPE)
