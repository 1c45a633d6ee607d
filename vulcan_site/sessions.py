"""Sessions by a cookie that could be one of ours; any other is no cookie at all."""

import re

from django.conf import settings
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest

_KEY = re.compile(r"[a-z0-9]{32}")  # what SessionBase makes


class StrictSessionMiddleware(SessionMiddleware):
    """Keeps what a stranger writes from the database: PostgreSQL takes no NUL in a text."""

    def process_request(self, request: HttpRequest) -> None:
        key = request.COOKIES.get(settings.SESSION_COOKIE_NAME)
        if key is not None and not _KEY.fullmatch(key):
            del request.COOKIES[settings.SESSION_COOKIE_NAME]
        super().process_request(request)
