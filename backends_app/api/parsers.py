"""Read request bodies within their limits, as unambiguous JSON."""

from django.http import HttpRequest, UnreadablePostError
from rest_framework.exceptions import ParseError, UnsupportedMediaType
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.utils.mediatypes import media_type_matches

from ..conf import limits
from ..utils import strict_json
from ..utils.text import one_line
from .bodies import body_memory
from .errors import LengthRequired, PayloadTooLarge

ENVELOPE_BYTES = 64 * 1024  # everything besides source and input: keys, command, image


class StrictJSONParser(BaseParser):
    """Parses `application/json`; rejects JSON that two parsers could read differently."""

    media_type = "application/json"
    renderer_class = JSONRenderer

    def parse(self, stream, media_type=None, parser_context=None):
        try:
            return strict_json.loads(stream.read())
        except strict_json.InvalidJSON as error:
            raise ParseError(f"Invalid JSON: {error}.") from error
        except UnreadablePostError as error:
            raise ParseError("The body is shorter than its Content-Length.") from error


def max_body_bytes() -> int:
    """Return the size of the largest acceptable workload in JSON, with escapes and base64."""
    bounds = limits()
    source = max(2 * bounds.code_bytes, bounds.archive_bytes * 4 // 3 + 4)
    return source + 2 * bounds.input_bytes + ENVELOPE_BYTES


def max_bodies_bytes() -> int:
    """Return how many bytes of request bodies a process may hold at once."""
    return limits().bodies_bytes or 2 * max_body_bytes()


def check_body_size(request: HttpRequest) -> None:
    """Reject a body by its Content-Length, before any of it is read.

    Most clients send the whole body before they read the response. The server discards it without a
    thread, see `vulcan_site.gunicorn_worker`; otherwise they would see a broken connection instead
    of the response.
    """
    if "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower():
        raise LengthRequired()
    try:
        length = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        raise ParseError("Content-Length is not a number.") from None
    limit = max_body_bytes()
    if length > limit:
        raise PayloadTooLarge(f"The body has {length:,} bytes; the limit is {limit:,}.")


def reserve_memory(request: HttpRequest, user: object) -> int:
    """Reserve memory for a user's body before it is read; return the number of bytes to release.

    Small bodies do not count, so that large ones cannot block them: one per thread of the server is
    less than a single large body.
    """
    length = int(request.META.get("CONTENT_LENGTH") or 0)
    if length <= ENVELOPE_BYTES:
        return 0
    body_memory.reserve(user, length, max_bodies_bytes())
    return length


def check_content_type(request: Request) -> None:
    """Reject a body by its Content-Type before it is read, by DRF's rule; accept an empty body."""
    if request.META.get("CONTENT_LENGTH") in (None, "", "0"):
        return
    if not any(
        media_type_matches(parser.media_type, request.content_type)
        for parser in request.parsers or ()
    ):
        raise UnsupportedMediaType(one_line(request.content_type))
