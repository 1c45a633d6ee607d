"""The OpenAPI document, and the page that shows it."""

from typing import Any

from drf_spectacular.views import (
    SpectacularAPIView,
    SpectacularSwaggerSplitView,
)
from rest_framework.permissions import AllowAny
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from ..schema import SETTINGS, CachedGenerator
from .base import PolicyView


class _DocumentView(PolicyView):
    """Open to everybody; renders errors in the JSON envelope, whatever it renders otherwise."""

    permission_classes = [AllowAny]
    schema = None  # type: ignore[assignment]  # not in the document itself
    title = SETTINGS["TITLE"]

    def finalize_response(
        self, request: Request, response: Any, *args: Any, **kwargs: Any
    ) -> Response:
        response = super().finalize_response(request, response, *args, **kwargs)
        if response.status_code >= 400:
            response.accepted_renderer = JSONRenderer()
            response.accepted_media_type = "application/json"
        return response


class SchemaView(_DocumentView, SpectacularAPIView):
    """The OpenAPI document."""

    generator_class = CachedGenerator
    serve_public = True
    urlconf = None
    renderer_classes = SpectacularAPIView.renderer_classes


class SwaggerView(_DocumentView, SpectacularSwaggerSplitView):
    """The OpenAPI document in Swagger UI, from local files."""

    renderer_classes = SpectacularSwaggerSplitView.renderer_classes
    template_name = "backends_app/swagger_ui.html"
