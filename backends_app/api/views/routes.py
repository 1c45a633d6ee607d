"""The route table of `auto`, and the resolution of a query."""

from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from ...routing import RUNTIMES
from ...workloads import AUTO, SOURCE_FORMATS
from ..schema import DESCRIPTIONS, errors, extend_schema
from ..serializers.routes import (
    CandidateSerializer,
    ResolutionSerializer,
    ResolveQuerySerializer,
    RouteSerializer,
    UnresolvedSerializer,
)
from .base import Link, RegistryView


class RouteListView(RegistryView):
    """The routes of `auto`, and whether each target is available now."""

    name = "Routes"
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="routes_list",
        responses={200: RouteSerializer(many=True), **errors(401, 406)},
    )
    def get(self, request: Request) -> Response:
        return Response(RouteSerializer(self.registry.snapshot.list_routes(), many=True).data)

    def links(self) -> list[Link]:
        return [
            self.link(f"resolve {runtime}", "resolve", f"?runtime={runtime}")
            for runtime in RUNTIMES
        ]


class ResolveView(RegistryView):
    """The backend that would run a workload, and why, without running it."""

    name = "Resolve"
    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="resolve",
        parameters=[
            OpenApiParameter(
                "isolation",
                {"type": "string", "minLength": 1, "default": AUTO},
                description="auto, a backend name, or comma-separated names, most preferred first.",
            ),
            OpenApiParameter(
                "runtime",
                {"type": "string", "minLength": 1, "maxLength": 63},
                description="node, wasm, python, go or oci; optional if source_format is image.",
            ),
            OpenApiParameter(
                "source_format",
                {"type": "string", "enum": list(SOURCE_FORMATS), "default": "code"},
            ),
        ],
        responses={
            200: ResolutionSerializer,
            400: OpenApiResponse(UnresolvedSerializer, DESCRIPTIONS[400]),
            503: OpenApiResponse(UnresolvedSerializer, DESCRIPTIONS[503]),
            **errors(401, 406),
        },
    )
    def get(self, request: Request) -> Response:
        query = ResolveQuerySerializer(data=request.query_params)
        query.is_valid(raise_exception=True)
        resolution = self.registry.explain(**query.validated_data)
        if resolution.error is None:
            return Response(ResolutionSerializer(resolution).data)
        response = self.handle_exception(resolution.error)
        response.data["candidates"] = CandidateSerializer(resolution.candidates, many=True).data
        return response

    def links(self) -> list[Link]:
        return [
            self.link("all routes", "routes"),
            *(self.link(runtime, "resolve", f"?runtime={runtime}") for runtime in RUNTIMES),
            self.link("image", "resolve", "?source_format=image"),
            self.link("archive", "resolve", "?runtime=python&source_format=archive"),
        ]
