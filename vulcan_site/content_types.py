"""What is not UTF-8 is refused before it is decoded; see `utf8_requests`."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse

from backends_app.api.errors import envelope

from .utf8_requests import parse_content_type


class ContentTypeMiddleware:
    """Refuses a Content-Type that cannot be read, before anything is decoded."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        try:
            parse_content_type(request.META.get("CONTENT_TYPE", ""))
        except ValueError as error:
            detail = f"Content-Type: {error}. Send UTF-8, and no charset or utf-8."
            return envelope("client_error", "unsupported_media_type", detail, 415)
        return self._get_response(request)
