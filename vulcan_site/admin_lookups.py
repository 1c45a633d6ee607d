"""A list in the admin that is asked for with a value that no database takes."""

from collections.abc import Callable
from typing import Any

from django.contrib.admin.views.main import ERROR_FLAG, SEARCH_VAR
from django.db import DataError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect

MAX_SEARCH_CHARS = 200


class IncorrectLookupMiddleware:
    """Answers as the admin does to a lookup that is incorrect: back to the list, with a note.

    The admin finds that out when it makes the query. A date whose time zone moves it out of the
    calendar, or a number that is too large, fails later, when the query is sent.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Refuse a search of very many words: each is a condition, and SQLite takes a thousand."""
        if _is_list(request) and len(request.GET.get(SEARCH_VAR, "")) > MAX_SEARCH_CHARS:
            return _list_with_note(request)
        return None

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        if (
            isinstance(exception, OverflowError | DataError)
            and _is_list(request)
            and request.GET
            and ERROR_FLAG not in request.GET
        ):
            return _list_with_note(request)
        return None


def _is_list(request: HttpRequest) -> bool:
    match = request.resolver_match
    return (
        match is not None
        and "admin" in match.app_names
        and (match.url_name or "").endswith("_changelist")
    )


def _list_with_note(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
