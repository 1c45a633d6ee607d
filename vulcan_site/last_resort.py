"""The outermost layer: every request has an id, and every bug ends in an answer and a line."""

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
GIVEN = re.compile(r"[A-Za-z0-9._-]{1,64}")
BODY = (
    b'{"type":"server_error","errors":[{"code":"error","detail":"Server Error (500)","attr":null}]}'
)


class LastResortMiddleware:
    """Stands before all others. It needs no setting, URL, template or database to answer.

    Django makes an answer of a bug in a view or in another middleware, by way of `handler500`. What
    comes here as an exception is a bug in that, too.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        given = request.META.get("HTTP_X_REQUEST_ID", "")
        request_id = given if GIVEN.fullmatch(given) else uuid.uuid4().hex
        clear_contextvars()  # what a stream before may have left there, in this thread
        bind_contextvars(request_id=request_id)
        try:
            response = self._get_response(request)
            bug: BaseException | None = getattr(request, "bug", None)
        except Exception as error:  # noqa: BLE001 - logged below
            response = HttpResponse(BODY, status=500, content_type="application/json")
            bug = error
        response.headers[HEADER] = request_id
        if response.status_code >= 500:
            # Unless it has been logged. Django would do it behind this, without the id.
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
    """Tell whether the answer is made while it is sent, so that more is logged about it."""
    return response.streaming and "Content-Length" not in response.headers


def _store_exception(sender: object, request: HttpRequest | None = None, **_: object) -> None:
    """Keep what Django answers, but does not log where a handler of errors fails."""
    if request is not None:
        request.bug = sys.exc_info()[1]  # type: ignore[attr-defined]


got_request_exception.connect(_store_exception, dispatch_uid=__name__)
