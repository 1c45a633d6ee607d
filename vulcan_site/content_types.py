"""Refuses bodies that are not UTF-8, and oversized forms, before they are read."""

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from backends_app.api.errors import envelope

from .utf8_requests import parse_content_type

MAX_LENGTH_DIGITS = 18


class ContentTypeMiddleware:
    """Refuses an invalid Content-Type with 415 (see `utf8_requests`), and a large form with 413.

    The API has its own limit and reads a body after authentication. A form must be read earlier,
    because it contains the CSRF token; anyone who sends a CSRF cookie can cause that.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        try:
            parse_content_type(request.META.get("CONTENT_TYPE", ""))
        except ValueError as error:
            detail = f"Content-Type: {error}. Send UTF-8, with charset=utf-8 or none."
            return envelope("client_error", "unsupported_media_type", detail, 415)
        return self._get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        max_bytes = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        length = request.META.get("CONTENT_LENGTH") or "0"
        if getattr(view, "csrf_exempt", False) or max_bytes is None or not length.isdecimal():
            return None
        if len(length) <= MAX_LENGTH_DIGITS and int(length) <= max_bytes:
            return None
        detail = f"A form can have at most {max_bytes:,} bytes."
        return envelope("client_error", "payload_too_large", detail, 413)
