"""What is not UTF-8, or larger than a page's form, is refused before it is read."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from backends_app.api.errors import envelope

from .utf8_requests import parse_content_type

MAX_LENGTH_DIGITS = 18


class ContentTypeMiddleware:
    """Refuses a Content-Type that cannot be read, and a form that is too large (`utf8_requests`).

    The API has a limit of its own, and reads a body after it knows whose it is. A form has to be
    read before that, for its CSRF token, of whoever sends a cookie with one.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        try:
            parse_content_type(request.META.get("CONTENT_TYPE", ""))
        except ValueError as error:
            detail = f"Content-Type: {error}. Send UTF-8, and no charset or utf-8."
            return envelope("client_error", "unsupported_media_type", detail, 415)
        return self._get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        most = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        announced = request.META.get("CONTENT_LENGTH") or "0"
        if getattr(view, "csrf_exempt", False) or most is None or not announced.isdecimal():
            return None
        if len(announced) <= MAX_LENGTH_DIGITS and int(announced) <= most:
            return None
        detail = f"A form is {most:,} bytes at most."
        return envelope("client_error", "payload_too_large", detail, 413)
