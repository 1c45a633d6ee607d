"""How request bodies are read: bounded, and as JSON that leaves no doubt about its meaning."""

from django.http import HttpRequest, UnreadablePostError
from rest_framework.exceptions import ParseError, UnsupportedMediaType
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.utils.mediatypes import media_type_matches

from .. import strict_json
from ..conf import limits
from ..exceptions import short_repr
from .bodies import body_memory
from .errors import LengthRequired, PayloadTooLarge

ENVELOPE_BYTES = 64 * 1024  # keys, command, image: what stands around source and input


class StrictJSONParser(BaseParser):
    """`application/json`, refused where two readers could read it differently."""

    media_type = "application/json"
    renderer_class = JSONRenderer

    def parse(self, stream, media_type=None, parser_context=None):
        try:
            return strict_json.loads(stream.read())
        except strict_json.InvalidJSON as refused:
            raise ParseError(f"The body is no acceptable JSON: {refused}.") from refused
        except UnreadablePostError as error:
            raise ParseError("The body ended before its announced length.") from error


def max_body_bytes() -> int:
    """The largest body that could hold an acceptable workload, with its escapes and base64."""
    bound = limits()
    source = max(2 * bound.code_bytes, bound.archive_bytes * 4 // 3 + 4)
    return source + 2 * bound.input_bytes + ENVELOPE_BYTES


def max_bodies_bytes() -> int:
    """Return how many bytes of bodies a process holds at once."""
    return limits().bodies_bytes or 2 * max_body_bytes()


def check_body_size(request: HttpRequest) -> None:
    """Judge a body by its announced length, before any of it is read.

    Most clients send all they have before they listen. The server drops that without a thread, see
    `vulcan_site.gunicorn_worker`; otherwise they would see a broken connection, not the answer.
    """
    if "chunked" in request.META.get("HTTP_TRANSFER_ENCODING", "").lower():
        raise LengthRequired()
    try:
        announced = int(request.META.get("CONTENT_LENGTH") or 0)
    except ValueError:
        raise ParseError("Content-Length is no number.") from None
    most = max_body_bytes()
    if announced > most:
        raise PayloadTooLarge(f"The body is {announced:,} bytes; at most {most:,} are accepted.")


def reserve_memory(request: HttpRequest, user: object) -> int:
    """Reserve memory for a user's body before it is read; return how much it gives back.

    Small bodies do not count, so that large ones cannot keep them out: as many as a server has
    threads are less than one of the largest.
    """
    announced = int(request.META.get("CONTENT_LENGTH") or 0)
    if announced <= ENVELOPE_BYTES:
        return 0
    body_memory.reserve(user, announced, max_bodies_bytes())
    return announced


def check_content_type(request: Request) -> None:
    """Judge a body by its announced type, as DRF would when it reads it; none at all is no body."""
    if request.META.get("CONTENT_LENGTH") in (None, "", "0"):
        return
    if not any(
        media_type_matches(parser.media_type, request.content_type)
        for parser in request.parsers or ()
    ):
        raise UnsupportedMediaType(short_repr(request.content_type)[1:-1])
