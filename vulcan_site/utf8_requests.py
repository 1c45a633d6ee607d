"""Request classes that always decode UTF-8, and parse headers in linear time.

The charset of a Content-Type has no effect. JSON is UTF-8 by its RFC, and browsers send forms in
the encoding of the page, which is UTF-8. Django would decode bodies and query strings with any
codec that a Content-Type names, and Python has codecs that are not text encodings (rot13, hex),
slow (punycode) or always fail (undefined).
"""

from collections.abc import Mapping
from typing import Any

from django.core.handlers.wsgi import WSGIRequest
from django.utils.functional import cached_property
from django.utils.http import parse_header_parameters

from backends_app.utils.text import short_repr

UTF8_NAMES = ("utf-8", "utf8")
MAX_CONTENT_TYPE_CHARS = 512  # two names of 127 characters each (RFC 6838), a boundary of 70


def parse_content_type(header: str) -> tuple[str, dict[str, str]]:
    """Return the media type and its parameters; raise ValueError if it is invalid.

    Parameters with their own encoding (RFC 2231, `name*=`) do not occur in a Content-Type and are
    refused before the codec is looked up, since Python caches each name forever. The length is
    limited because Python's parser takes quadratic time.
    """
    if len(header) > MAX_CONTENT_TYPE_CHARS:
        raise ValueError(f"more than {MAX_CONTENT_TYPE_CHARS} characters")
    if "*" in header:
        raise ValueError("a parameter specifies an encoding")
    media_type, parameters = parse_header_parameters(header)
    charset = parameters.get("charset", UTF8_NAMES[0])
    if charset.strip().lower() not in UTF8_NAMES:
        raise ValueError(f"the charset {short_repr(charset)} is not supported")
    return media_type, parameters


def parse_cookies(header: str) -> dict[str, str]:
    """Return the cookies with their values verbatim (RFC 6265, 5.4).

    Django decodes the escapes of RFC 2109, which no cookie of this site has, with a function of
    Python that takes quadratic time (CVE-2024-7592).
    """
    pairs = (pair.partition("=") for pair in header.split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}


class UTF8WSGIRequest(WSGIRequest):
    """A WSGI request that ignores the charset its client names.

    Django parses the Content-Type when it creates the request, before middleware can refuse it.
    """

    @cached_property
    def COOKIES(self) -> dict[str, str]:  # type: ignore[override]
        return parse_cookies(self.META.get("HTTP_COOKIE", ""))

    def _set_content_type_params(self, meta: Mapping[str, Any]) -> None:
        try:
            self.content_type, self.content_params = parse_content_type(
                meta.get("CONTENT_TYPE", "")
            )
        except ValueError:  # ContentTypeMiddleware refuses it
            self.content_type, self.content_params = "", {}
