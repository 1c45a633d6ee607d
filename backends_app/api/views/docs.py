"""The OpenAPI document, and the pages that show it."""

from typing import Any

from drf_spectacular.views import (
    SpectacularAPIView,
    SpectacularRedocView,
    SpectacularSwaggerSplitView,
)
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from ..schema import CachedGenerator


class _JSONErrors(APIView):
    """Renders errors in the JSON envelope, whatever the view renders otherwise."""

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        if response.status_code >= 400:
            response.accepted_renderer = JSONRenderer()
            response.accepted_media_type = "application/json"
        return response


class SchemaView(_JSONErrors, SpectacularAPIView):
    """The OpenAPI document."""

    generator_class = CachedGenerator


class SwaggerView(_JSONErrors, SpectacularSwaggerSplitView):
    """The OpenAPI document in Swagger UI, from local files."""


class RedocView(_JSONErrors, SpectacularRedocView):
    """The OpenAPI document in Redoc, from local files.

    Redoc adds inline styles to its page and searches in a worker from a blob. Only this page allows
    both. Scripts are limited to our own files, here too.
    """

    content_policy = {
        "style-src": "'self' 'unsafe-inline'",
        "style-src-attr": "'unsafe-inline'",
        "worker-src": "blob:",
    }
