"""Requests are UTF-8, and headers are parsed in a time that is linear in their length.

What a client says about its encoding changes nothing.

JSON is UTF-8 by its RFC, and browsers send forms in the encoding of the page, which is UTF-8.
Python has encodings that are no text (rot13, hex), that are slow (punycode) and that end in errors
(undefined); Django decodes bodies, and query strings too, by whatever a Content-Type names.
"""

from collections.abc import Mapping
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest
from django.utils.functional import cached_property
from django.utils.http import parse_header_parameters

from backends_app.exceptions import short_repr

UTF8_NAMES = ("utf-8", "utf8")
MAX_CONTENT_TYPE_CHARS = 512  # two names of 127 characters each (RFC 6838), a boundary of 70


def parse_content_type(header: str) -> tuple[str, dict[str, str]]:
    """Return the media type and its parameters; raise ValueError for what cannot be read.

    Parameters that bring an encoding of their own (RFC 2231, `name*=`) belong to no Content-Type,
    and are refused before an encoding is looked up: Python remembers each name for ever. The time
    that Python takes for parameters grows with the square of the length.
    """
    if len(header) > MAX_CONTENT_TYPE_CHARS:
        raise ValueError(f"more than {MAX_CONTENT_TYPE_CHARS} characters")
    if "*" in header:
        raise ValueError("a parameter has an encoding of its own")
    media_type, parameters = parse_header_parameters(header)
    charset = parameters.get("charset", UTF8_NAMES[0])
    if charset.strip().lower() not in UTF8_NAMES:
        raise ValueError(f"the charset {short_repr(charset)} is not read")
    return media_type, parameters


def parse_cookies(header: str) -> dict[str, str]:
    """Return the cookies with their values as they were sent (RFC 6265, 5.4).

    Django resolves the escapes of RFC 2109, which none of this site's cookies has, by a function
    of Python whose time grows with the square of the length (CVE-2024-7592).
    """
    pairs = (pair.partition("=") for pair in header.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


class _UTF8Request(HttpRequest):
    """A request whose encoding is not the client's to choose.

    Django reads the Content-Type when it makes a request, before any middleware could refuse it.
    """

    @cached_property
    def COOKIES(self) -> dict[str, str]:  # type: ignore[override]
        return parse_cookies(self.META.get("HTTP_COOKIE", ""))

    def _set_content_type_params(self, meta: Mapping[str, Any]) -> None:
        try:
            self.content_type, self.content_params = parse_content_type(
                meta.get("CONTENT_TYPE", "")
            )
        except ValueError:  # for the middleware to refuse
            self.content_type, self.content_params = "", {}


class UTF8WSGIRequest(_UTF8Request, WSGIRequest):
    """A request from a WSGI server."""


class UTF8ASGIRequest(_UTF8Request, ASGIRequest):
    """A request from an ASGI server."""
