"""The outermost middleware: gives every request an id, and turns every bug into a logged 500."""

import re
import sys
import uuid
from collections.abc import Callable

from django.core.signals import got_request_exception
from django.http import HttpRequest, HttpResponse
from django.utils.log import log_response
from structlog.contextvars import bind_contextvars, clear_contextvars

MAX_PATH_CHARS = 200
HEADER = "X-Request-ID"
VALID_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
BODY = (
    b'{"type":"server_error","errors":[{"code":"error","detail":"Server Error (500)","attr":null}]}'
)


class LastResortMiddleware:
    """The first middleware. Its response needs no setting, URL, template or database.

    Django answers a bug in a view or a middleware by `handler500`. An exception that arrives here
    comes from a bug in that handler as well.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        client_id = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = client_id if VALID_ID.fullmatch(client_id) else uuid.uuid4().hex
        clear_contextvars()  # an earlier stream may have left some in this thread
        bind_contextvars(request_id=request_id)
        try:
            response = self._get_response(request)
            bug: BaseException | None = getattr(request, "bug", None)
        except Exception as error:  # noqa: BLE001 - logged below
            response = HttpResponse(BODY, status=500, content_type="application/json")
            bug = error
        response.headers[HEADER] = request_id
        if response.status_code >= 500:
            # No-op if already logged. Django would log it after this, without the id.
            log_response(
                *("%s: %s", response.reason_phrase, request.path[:MAX_PATH_CHARS]),
                response=response,
                request=request,
                exception=bug,
            )
        if not is_streaming(response):
            clear_contextvars()
        return response


def is_streaming(response: HttpResponse) -> bool:
    """Return whether the response is generated while it is sent, so that more may be logged."""
    return response.streaming and "Content-Length" not in response.headers


def _store_exception(sender: object, request: HttpRequest | None = None, **_: object) -> None:
    """Store the exception on the request: Django does not log it if an error handler fails."""
    if request is not None:
        request.bug = sys.exc_info()[1]  # type: ignore[attr-defined]


got_request_exception.connect(_store_exception, dispatch_uid=__name__)
