"""Throttles failed log-ins by client address, against password guessing."""

import math
from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest, HttpResponse

from backends_app.api.errors import envelope
from backends_app.api.throttles import FixedWindow, address_key

VIEWS = ("rest_framework:login", "admin:login")


class SignInThrottleMiddleware:
    """Counts each attempt before its check, so that concurrent ones count; refunds successes."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        response = self._get_response(request)
        counted: tuple[FixedWindow, str] | None = getattr(request, "counted_sign_in", None)
        if counted is not None and response.status_code == 302:  # logged in
            counter, key = counted
            counter.refund(key)
        return response

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        match = request.resolver_match
        is_attempt = request.method == "POST" and match is not None and match.view_name in VIEWS
        if not is_attempt or settings.SIGN_IN_RATE is None:
            return None
        counter, key = FixedWindow("sign-in", settings.SIGN_IN_RATE), address_key(request)
        wait_s = counter.hit(key)
        if wait_s is not None:
            detail = "Too many failed log-ins from your address. Try again later."
            response = envelope("client_error", "throttled", detail, 429)
            response.headers["Retry-After"] = str(math.ceil(wait_s))
            return response
        request.counted_sign_in = (counter, key)  # type: ignore[attr-defined]
        return None
