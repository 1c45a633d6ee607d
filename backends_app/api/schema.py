"""What the OpenAPI document says beyond what the views say themselves."""

from typing import Any, ClassVar

from django.conf import settings
from django.urls import get_urlconf
from drf_spectacular.authentication import SessionScheme as DRFSessionScheme
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import OpenApiResponse

from .serializers import EnvelopeSerializer

DESCRIPTIONS = {
    400: "A field is wrong, or no backend takes such a workload.",
    401: "The token is missing, unknown or expired.",
    403: "Not allowed; with a session, the CSRF token is missing.",
    404: "There is no such thing.",
    406: "No renderer for the Accept header.",
    409: "The key stands for another request, or the workload has ended.",
    411: "The body came in chunks, without a Content-Length.",
    413: "The body is too large.",
    415: "The content type is not one that is read.",
    429: "All is taken, or it was asked too often; Retry-After says when to try again.",
    503: "The backend does not work now; Retry-After says when to try again.",
}


def errors(*codes: int) -> dict[int, Any]:
    """The `responses` of `extend_schema` for these statuses."""
    return {code: OpenApiResponse(EnvelopeSerializer, DESCRIPTIONS[code]) for code in codes}


def canonical_paths_only(endpoints: list[Any]) -> list[Any]:
    """The alias with a trailing slash is no second operation."""
    return [endpoint for endpoint in endpoints if not endpoint[0].endswith("/")]


class TokenScheme(KnoxTokenScheme):
    """knox's scheme, for the class that stands in for knox's."""

    target_class = "backends_app.api.authentication.TokenAuthentication"


class SessionScheme(DRFSessionScheme):
    """DRF's scheme, for the class that stands in for DRF's."""

    target_class = "backends_app.api.authentication.SessionAuthentication"


class OnceGenerator(SchemaGenerator):
    """Makes the document once in each process.

    It takes as long as a hundred requests, everybody may ask for it, and where it is the same for
    all it depends on code and settings alone.
    """

    _made: ClassVar[dict[Any, Any]] = {}

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        if not public:
            return super().get_schema(request, public)
        key = (get_urlconf() or settings.ROOT_URLCONF, self.api_version)
        if key not in self._made:
            self._made[key] = super().get_schema(request, public)
        return self._made[key]
