"""Complete the OpenAPI document: error responses, authentication schemes, caching."""

from typing import Any, ClassVar

from django.conf import settings
from django.urls import get_urlconf
from drf_spectacular.authentication import SessionScheme as DRFSessionScheme
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import OpenApiResponse

from .serializers.errors import EnvelopeSerializer

DESCRIPTIONS = {
    400: "Invalid request, or no backend supports the workload.",
    401: "The token is missing, unknown or expired.",
    403: "Not allowed, or the session's CSRF token is missing.",
    404: "Not found.",
    406: "No supported media type in the Accept header.",
    409: "The idempotency key was used for a different request, or the workload has finished.",
    411: "The body has no Content-Length.",
    413: "The body is too large.",
    415: "Unsupported content type.",
    429: "Capacity reached or rate limited; Retry-After has the seconds to wait.",
    503: "Backend unavailable; Retry-After has the seconds to wait.",
}


def errors(*codes: int) -> dict[int, Any]:
    """Return the `responses` of `extend_schema` for these statuses."""
    return {code: OpenApiResponse(EnvelopeSerializer, DESCRIPTIONS[code]) for code in codes}


def canonical_paths_only(endpoints: list[Any]) -> list[Any]:
    """Drop the aliases with a trailing slash: they are not operations of their own."""
    return [endpoint for endpoint in endpoints if not endpoint[0].endswith("/")]


class TokenScheme(KnoxTokenScheme):
    """knox's scheme for our subclass of knox's authentication."""

    target_class = "backends_app.api.authentication.TokenAuthentication"


class SessionScheme(DRFSessionScheme):
    """DRF's scheme for our subclass of DRF's authentication."""

    target_class = "backends_app.api.authentication.SessionAuthentication"


class CachedGenerator(SchemaGenerator):
    """Generates the document once per process.

    Generating takes as long as a hundred requests and anyone may request it. The public document
    depends on code and settings alone.
    """

    _cache: ClassVar[dict[Any, Any]] = {}

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        if not public:
            return super().get_schema(request, public)
        key = (get_urlconf() or settings.ROOT_URLCONF, self.api_version)
        if key not in self._cache:
            self._cache[key] = super().get_schema(request, public)
        return self._cache[key]
