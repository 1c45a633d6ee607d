"""A list in the admin that is asked for with a value that no database takes."""

from collections.abc import Callable

from django.contrib.admin.views.main import ERROR_FLAG
from django.db import DataError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect


class IncorrectLookupMiddleware:
    """Answers as the admin does to a lookup that is incorrect: back to the list, with a note.

    The admin finds that out when it makes the query. A date whose time zone moves it out of the
    calendar, or a number that is too large, fails later, when the query is sent.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self._get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        match = request.resolver_match
        if (
            isinstance(exception, OverflowError | DataError)
            and match is not None
            and "admin" in match.app_names
            and (match.url_name or "").endswith("_changelist")
            and request.GET
            and ERROR_FLAG not in request.GET
        ):
            return HttpResponseRedirect(f"{request.path}?{ERROR_FLAG}=1")
        return None
