"""Map errors to responses with a status and a code."""

import errno
import logging
import sys
from collections.abc import Mapping

from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import NoReverseMatch, reverse
from django.views import defaults
from rest_framework import exceptions, status
from rest_framework.exceptions import APIException, ErrorDetail, ValidationError

from ..exceptions import (
    BackendAtCapacity,
    BackendUnavailable,
    BodyMemoryFull,
    HostFault,
    IdempotencyKeyConflict,
    InvalidRequest,
    QueueFull,
    TooManyWaiting,
    VulcanError,
    WorkloadFinished,
)

logger = logging.getLogger(__name__)

RETRY_UNAVAILABLE_S = 5  # the monitor's first retry
RETRY_CAPACITY_S = 1
RETRY_QUEUE_S = 5
RETRY_MEMORY_S = 1


class PayloadTooLarge(APIException):
    status_code = status.HTTP_413_REQUEST_ENTITY_TOO_LARGE
    default_code = "payload_too_large"
    default_detail = "The body is too large."


class LengthRequired(APIException):
    status_code = status.HTTP_411_LENGTH_REQUIRED
    default_code = "length_required"
    default_detail = "Send the body with a Content-Length; chunked bodies are not supported."


class DatabaseUnavailable(APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_code = "database_unavailable"
    default_detail = "The database is unavailable."
    wait = RETRY_UNAVAILABLE_S


class HostUnavailable(APIException):
    status_code = status.HTTP_503_SERVICE_UNAVAILABLE
    default_code = "host_unavailable"
    default_detail = "The server's host is temporarily unable to serve requests."
    wait = RETRY_UNAVAILABLE_S


RESPONSES: Mapping[type[VulcanError], tuple[int, int | None]] = {
    BackendUnavailable: (503, RETRY_UNAVAILABLE_S),
    BackendAtCapacity: (429, RETRY_CAPACITY_S),
    BodyMemoryFull: (429, RETRY_MEMORY_S),
    QueueFull: (429, RETRY_QUEUE_S),
    TooManyWaiting: (429, RETRY_QUEUE_S),
    IdempotencyKeyConflict: (409, None),
    WorkloadFinished: (409, None),
}
"""The status and the Retry-After in seconds of each error; 400 for errors with a field.

`HostFault` is not here, because its text is for the log (see `to_unavailable`).
"""

EXHAUSTED = {
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN),
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO),
}
"""Errors of a kernel that is out of descriptors, memory, processes or disk space."""


def to_unavailable(error: BaseException | None) -> APIException | None:
    """Return the 503 error for a fault of the database or the host, or None for other errors.

    It reveals nothing about the host; its cause is for the log.
    """
    match error:
        case OperationalError() | InterfaceError():
            unavailable: APIException = DatabaseUnavailable()
        case HostFault():
            unavailable = HostUnavailable()
        case OSError(errno=number) if number in EXHAUSTED:
            unavailable = HostUnavailable()
        case _:
            return None
    unavailable.__cause__ = error
    return unavailable


def to_api_exception(error: VulcanError) -> APIException:
    """Return the API error for `error`, with its text and the field that the client must change."""
    if error.field is not None:
        detail = error.reason if isinstance(error, InvalidRequest) else str(error)
        return ValidationError({error.field: [ErrorDetail(detail, code=error.code)]})
    kind = next((one for one in RESPONSES if isinstance(error, one)), None)
    if kind is None:
        return APIException()
    exception = APIException(str(error), code=error.code)
    exception.status_code, exception.wait = RESPONSES[kind]  # type: ignore[attr-defined]
    return exception


def envelope(kind: str, code: str, detail: object, status_code: int) -> JsonResponse:
    """Return the response for an error outside of any view."""
    return JsonResponse(
        {"type": kind, "errors": [{"code": code, "detail": str(detail), "attr": None}]},
        status=status_code,
    )


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Return 413 for a body that Django refused as too large, 400 otherwise."""
    is_too_large = isinstance(exception, RequestDataTooBig)
    if _wants_json(request):
        if is_too_large:
            detail = PayloadTooLarge.default_detail
            return envelope("client_error", "payload_too_large", detail, 413)
        detail = "The request was refused as malformed."
        return envelope("client_error", "bad_request", detail, 400)
    if is_too_large:
        return _page("Payload too large", 413)
    return defaults.bad_request(request, exception)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _wants_json(request):
        return defaults.permission_denied(request, exception)
    return envelope(
        "client_error", "permission_denied", exceptions.PermissionDenied.default_detail, 403
    )


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    if not _wants_json(request):
        return defaults.page_not_found(request, exception)
    return envelope("client_error", "not_found", exceptions.NotFound.default_detail, 404)


def server_error(request: HttpRequest) -> HttpResponse:
    """Return 503 for a fault of the database or the host, 500 for a bug.

    Django calls this while it handles the exception.
    """
    if unavailable := to_unavailable(sys.exc_info()[1]):
        logger.warning("%s", unavailable.__cause__)
        response = _unavailable(request, unavailable)
        response.headers["Retry-After"] = str(RETRY_UNAVAILABLE_S)
        response._has_been_logged = True  # type: ignore[attr-defined]  # by Django, with a trace
        return response
    if not _wants_json(request):
        return defaults.server_error(request)
    return envelope("server_error", "error", "Server Error (500)", 500)


def _unavailable(request: HttpRequest, error: APIException) -> HttpResponse:
    if _wants_json(request):
        return envelope("server_error", error.default_code, error.detail, error.status_code)
    details = f"{error.detail} Try again in {RETRY_UNAVAILABLE_S} seconds."
    return _page("Service unavailable", error.status_code, details)


def _page(title: str, status_code: int, details: str = "") -> HttpResponse:
    """Return an error page like those of Django."""
    page = defaults.ERROR_PAGE_TEMPLATE % {"title": title, "details": details}
    return HttpResponse(page, status=status_code)


def _wants_json(request: HttpRequest) -> bool:
    """Return whether the request is for the API, or accepts JSON and no page.

    Other paths belong to pages, which may be those of a host project.
    """
    accept = request.headers.get("Accept", "")
    only_json = "json" in accept and "html" not in accept and "*" not in accept
    return only_json or _in_api(request)


def _in_api(request: HttpRequest) -> bool:
    """Return whether the request is for the API, whose clients are programs."""
    try:
        return request.path.startswith(reverse("v1:root"))
    except NoReverseMatch:
        return False
