"""Complete the OpenAPI document: error responses, authentication schemes, caching."""

import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

from django.conf import settings
from django.urls import get_urlconf
from drf_spectacular import utils
from drf_spectacular.authentication import SessionScheme as DRFSessionScheme
from drf_spectacular.contrib.knox_auth_token import KnoxTokenScheme
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.settings import patched_settings
from drf_spectacular.utils import OpenApiResponse

from .serializers.errors import EnvelopeSerializer
from .views.base import PolicyView

F = TypeVar("F", bound=Callable[..., Any])
SETTINGS: Mapping[str, Any] = {
    "TITLE": "Vulcan",
    "DESCRIPTION": "Run untrusted code with the isolation that suits it.",
    "VERSION": "0.1.0",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": None,
    "PREPROCESSING_HOOKS": ["backends_app.api.schema.own_endpoints_only"],
    "ENUM_NAME_OVERRIDES": {"EncodingEnum": "backends_app.workloads.ENCODINGS"},
}
"""What drf-spectacular would take from the project's SPECTACULAR_SETTINGS."""

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


def extend_schema(**options: Any) -> Callable[[F], F]:
    """Decorate a view's method as drf-spectacular's `extend_schema`, based on its own schema class.

    For a method without one it takes the project's DEFAULT_SCHEMA_CLASS.
    """

    def decorate(method: F) -> F:
        method.kwargs = {"schema": AutoSchema}  # type: ignore[attr-defined]
        return utils.extend_schema(**options)(method)

    return decorate


def own_endpoints_only(endpoints: list[Any]) -> list[Any]:
    """Drop the views of the project around this API."""
    return [
        (path, regex, method, callback)
        for path, regex, method, callback in endpoints
        if issubclass(callback.cls, PolicyView)
    ]


class TokenScheme(KnoxTokenScheme):
    """knox's scheme for our subclass of knox's authentication."""

    target_class = "backends_app.api.authentication.TokenAuthentication"


class SessionScheme(DRFSessionScheme):
    """DRF's scheme for our subclass of DRF's authentication."""

    target_class = "backends_app.api.authentication.SessionAuthentication"


class CachedGenerator(SchemaGenerator):
    """Generates the document of this API once per process.

    Its settings are patched into drf-spectacular's global ones meanwhile, hence the lock.

    Generating takes as long as a hundred requests and anyone may request it. The public document
    depends on code and settings alone.
    """

    _cache: ClassVar[dict[Any, Any]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def get_schema(self, request: Any = None, public: bool = False) -> Any:
        key = (get_urlconf() or settings.ROOT_URLCONF, self.api_version)
        with self._lock:
            if public and key in self._cache:
                return self._cache[key]
            with patched_settings(SETTINGS):
                document = super().get_schema(request, public)
            if public:
                self._cache[key] = document
            return document
