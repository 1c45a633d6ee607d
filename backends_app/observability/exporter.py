"""Serve the metrics of workers on a port of their own."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound

from .probes import dispatch, liveness, metrics_response

CLIENT_TIMEOUT_S = 10.0  # for one request


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log scrapes."""


def serve(host: str, port: int, exposition: Callable[[], bytes]) -> int:
    """Serve `/metrics` and `/healthz` in threads of this process; return the port.

    Raise `OSError` when the address does not exist or is in use.
    """

    def metrics(request: HttpRequest) -> HttpResponse:
        return metrics_response(request, exposition)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        handlers = {"/healthz": liveness, "/metrics": metrics}
        response = dispatch(WSGIRequest(environ), handlers) or HttpResponseNotFound()
        status = f"{response.status_code} {response.reason_phrase}"
        start_response(status, list(response.items()))
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else response.content]

    server = make_server(host, port, application, _Server, _Handler)
    threading.Thread(target=server.serve_forever, name="vulcan-metrics", daemon=True).start()
    return server.server_port
