"""Whoever guesses passwords has to be patient: failed log-ins are counted by address."""

import math
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.urls import reverse

from backends_app.api.errors import envelope
from backends_app.api.throttles import Counter, address_key


class SignInThrottleMiddleware:
    """Each attempt counts before it is judged, so many at once are as many; one that is right is
    given back.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        if request.method != "POST" or settings.SIGN_IN_RATE is None or not _signs_in(request):
            return self._get_response(request)
        counter, key = Counter("sign-in", settings.SIGN_IN_RATE), address_key(request)
        wait_s = counter.take(key)
        if wait_s is not None:
            detail = "Too many failed log-ins from here. Try again later."
            refused = envelope("client_error", "throttled", detail, 429)
            refused.headers["Retry-After"] = str(math.ceil(wait_s))
            return refused
        response = self._get_response(request)
        if response.status_code == 302:  # on to where one wanted to go
            counter.give_back(key)
        return response


def _signs_in(request: HttpRequest) -> bool:
    return request.path.rstrip("/") in {
        reverse(name).rstrip("/") for name in ("rest_framework:login", "admin:login")
    }
