"""The metrics of workers, on a port of their own: they serve nothing else."""

import threading
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest, HttpResponse, HttpResponseNotFound

from .operations import dispatch, liveness, metrics_response

CLIENT_S = 10.0  # for one request, at the most


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Handler(WSGIRequestHandler):
    timeout = CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are no news."""


def serve(host: str, port: int, exposition: Callable[[], bytes]) -> int:
    """Answer `/metrics`, and `/healthz`, in threads of this process; the port.

    Raises `OSError` when there is no such address, or somebody else has it.
    """

    def metrics(request: HttpRequest) -> HttpResponse:
        return metrics_response(request, exposition)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        answers = {"/healthz": liveness, "/metrics": metrics}
        response = dispatch(WSGIRequest(environ), answers) or HttpResponseNotFound()
        status = f"{response.status_code} {response.reason_phrase}"
        start_response(status, list(response.items()))
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else response.content]

    server = make_server(host, port, application, _Server, _Handler)
    threading.Thread(target=server.serve_forever, name="vulcan-metrics", daemon=True).start()
    return server.server_port
