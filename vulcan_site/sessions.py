"""Sessions that ignore malformed session cookies."""

import re

from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest

_KEY = re.compile(r"[a-z0-9]{32}")  # the format of SessionBase


class StrictSessionMiddleware(SessionMiddleware):
    """Drops a malformed session key before it reaches the database: PostgreSQL rejects NUL."""

    def process_request(self, request: HttpRequest) -> None:
        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        if key is not None and not _KEY.fullmatch(key):
            del request.COOKIES[settings.SESSION_COOKIE_NAME]
        super().process_request(request)
