"""Logs one access line per request, and binds the client's address to all lines of the request."""

import logging
import time
from collections.abc import Callable
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.utils.functional import SimpleLazyObject
from rest_framework.throttling import BaseThrottle
from structlog.contextvars import bind_contextvars

from .last_resort import is_streaming

logger = logging.getLogger(__name__)

MAX_PATH_CHARS = 200


class RequestMiddleware:
    """Outside of all middleware that inspects requests, so that it logs every response."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        bind_contextvars(address=client_address(request))
        started = time.monotonic()
        response = self._get_response(request)
        logger.info(
            "request",
            extra={
                "method": (request.method or "")[:16],
                "path": request.path[:MAX_PATH_CHARS],
                "status": response.status_code,
                "duration_ms": round(1000 * (time.monotonic() - started), 1),
                "user_id": _user_id(request),
                **({"streaming": True} if is_streaming(response) else {}),
            },
        )
        return response

    def process_view(
        self, request: HttpRequest, view: Callable[..., HttpResponse], args: Any, kwargs: Any
    ) -> None:
        """Bind the user id for admin pages, which load the user anyway; the API binds its own."""
        if request.resolver_match is not None and "admin" in request.resolver_match.app_names:
            bind_contextvars(user_id=request.user.pk)


def client_address(request: HttpRequest) -> str:
    """Return the client's address, trusting as many proxies as DRF's NUM_PROXIES."""
    return str(BaseThrottle().get_ident(request))[:64]  # type: ignore[arg-type]  # META is enough


def _user_id(request: HttpRequest) -> int | None:
    """Return the user id if authentication already ran; never trigger it."""
    user = request.__dict__.get("user")
    if isinstance(user, SimpleLazyObject):
        user = getattr(request, "_cached_user", None)
    return getattr(user, "pk", None)
