"""What load balancers and Prometheus ask, answered before anything else looks at the request.

They know a server by its address instead of its name, speak no TLS to it, and have no session: what
comes later in the chain would redirect or refuse them. So this middleware stands first.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias

from django.http import HttpRequest, HttpResponse, HttpResponseNotAllowed, JsonResponse
from django.http.response import HttpResponseBase

from . import metrics
from .conf import metrics_access, required_backends
from .executors import get_executor
from .readiness import Readiness
from .registry import registry

METHODS = ("GET", "HEAD")

Answer: TypeAlias = Callable[[HttpRequest], HttpResponse]


class ProbeMiddleware:
    """Answers `/healthz`, `/readyz` and, where it is not off, `/metrics`; the rest goes on."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response
        readiness = Readiness(registry, get_executor, required_backends)
        self._answers = {
            "/healthz": liveness,
            "/readyz": lambda request: readiness_response(readiness),
            "/metrics": lambda request: metrics_response(request, metrics.server_exposition),
        }

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return dispatch(request, self._answers) or self._get_response(request)


def dispatch(request: HttpRequest, answers: Mapping[str, Answer]) -> HttpResponse | None:
    """The answer to one of these paths, None for any other; nobody may keep it."""
    path = request.path_info.removesuffix("/")
    if path not in answers or (path == "/metrics" and metrics_access().access == "off"):
        return None
    if request.method in METHODS:
        response = answers[path](request)
    else:
        response = HttpResponseNotAllowed(METHODS)
    response.headers["Cache-Control"] = "no-store"
    # Django would log each 503, and who asks goes on asking; see `Readiness` for what is logged.
    response._has_been_logged = True  # type: ignore[attr-defined]
    response.headers["X-Content-Type-Options"] = "nosniff"  # as SecurityMiddleware would
    response.headers["Content-Length"] = str(len(response.content))
    return response


def liveness(request: HttpRequest) -> HttpResponse:
    """This process answers; nothing else is looked at."""
    return JsonResponse({"status": "alive"})


def readiness_response(readiness: Readiness) -> HttpResponse:
    report = readiness.report()
    return JsonResponse(report.as_json(), status=200 if report.ready else 503)


def metrics_response(request: HttpRequest, exposition: Callable[[], bytes]) -> HttpResponse:
    """The metrics, for who may read them."""
    if metrics.is_authorized(request.headers.get("Authorization", "")):
        return HttpResponse(exposition(), content_type=metrics.CONTENT_TYPE)
    return HttpResponse(
        "Send METRICS_TOKEN as a Bearer token.\n",
        status=401,
        content_type="text/plain",
        headers={"WWW-Authenticate": 'Bearer realm="metrics"'},
    )
