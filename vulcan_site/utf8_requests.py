"""Requests are UTF-8: what a client says about its encoding changes nothing.

JSON is UTF-8 by its RFC, and browsers send forms in the encoding of the page, which is UTF-8.
Python has encodings that are no text (rot13, hex), that are slow (punycode) and that end in errors
(undefined); Django decodes bodies, and query strings too, by whatever a Content-Type names.
"""

from collections.abc import Mapping
from typing import Any

from django.core.handlers.asgi import ASGIRequest
from django.core.handlers.wsgi import WSGIRequest
from django.http import HttpRequest
from django.utils.http import parse_header_parameters

from backends_app.exceptions import quote

UTF8_NAMES = ("utf-8", "utf8")


def parse_content_type(header: str) -> tuple[str, dict[str, str]]:
    """Return the media type and its parameters; raise ValueError for what cannot be read.

    Parameters that bring an encoding of their own (RFC 2231, `name*=`) belong to no Content-Type,
    and are refused before an encoding is looked up: Python remembers each name for ever.
    """
    if "*" in header:
        raise ValueError("a parameter has an encoding of its own")
    media_type, parameters = parse_header_parameters(header)
    charset = parameters.get("charset", UTF8_NAMES[0])
    if charset.strip().lower() not in UTF8_NAMES:
        raise ValueError(f"the charset {quote(charset)} is not read")
    return media_type, parameters


class _UTF8Request(HttpRequest):
    """A request whose encoding is not the client's to choose.

    Django reads the Content-Type when it makes a request, before any middleware could refuse it.
    """

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
