"""Admin changelists with lookup values that the database rejects."""

from collections.abc import Callable
from typing import Any

from django.contrib.admin.views.main import ERROR_FLAG, SEARCH_VAR
from django.db import DataError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

MAX_SEARCH_CHARS = 200


class IncorrectLookupMiddleware:
    """Redirects to the list with an error note, as the admin does for an incorrect lookup.

    The admin detects incorrect lookups when it builds a query. A date that its time zone moves out
    of the calendar, or a number that is too large, fails only when the query is executed.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Refuse a search with too many words: each is a condition, and SQLite allows 1,000."""
        if _is_changelist(request) and len(request.GET.get(SEARCH_VAR, "")) > MAX_SEARCH_CHARS:
            return _redirect_with_error(request)
        return None

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if (
            isinstance(exception, OverflowError | DataError)
            and _is_changelist(request)
            and request.GET
            and ERROR_FLAG not in request.GET
        ):
            return _redirect_with_error(request)
        return None


def _is_changelist(request: HttpRequest) -> bool:
    match = request.resolver_match
    return (
        match is not None
        and "admin" in match.app_names
        and (match.url_name or "").endswith("_changelist")
    )


def _redirect_with_error(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
