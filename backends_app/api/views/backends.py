"""The registered backends: their list, and one of them with its routes."""

from dataclasses import fields
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.utils.cache import get_conditional_response
from rest_framework.exceptions import NotFound
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response

from ...exceptions import BackendNotRegistered
from ..representation import backend_list
from ..schema import errors, extend_schema
from ..serializers.backends import BackendDetailSerializer, BackendInfoSerializer
from .base import Link, RegistryView


class BackendListView(RegistryView):
    """Every registered backend with its capabilities and its current health."""

    name = "Backends"
    permission_classes = [AllowAny]

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        """Return 304 before DRF's dispatch when neither negotiation nor a user is needed."""
        if "HTTP_IF_NONE_MATCH" not in request.META or not _is_plain(request):
            return super().dispatch(request, *args, **kwargs)
        not_modified = _not_modified(request, backend_list(self.registry.snapshot).etag)
        if not_modified is None:
            return super().dispatch(request, *args, **kwargs)
        not_modified.headers["Vary"] = "Accept, Cookie"
        return not_modified

    @extend_schema(
        operation_id="backends_list",
        responses={200: BackendInfoSerializer(many=True), 304: None, **errors(401, 406)},
    )
    def get(self, request: Request) -> HttpResponse:
        rendered = backend_list(self.registry.snapshot)
        if request.accepted_media_type != "application/json":  # HTML, or indented JSON
            return Response(rendered.data)
        return _not_modified(request._request, rendered.etag) or HttpResponse(
            rendered.body, content_type="application/json", headers={"ETag": rendered.etag}
        )

    def links(self) -> list[Link]:
        return [
            *(self.link(name, "backend", name=name) for name in self.registry),
            self.link("routes", "routes"),
            self.link("run a workload", "workloads"),
        ]


class BackendDetailView(RegistryView):
    """One backend, and the routes that target it."""

    permission_classes = [AllowAny]

    @extend_schema(
        operation_id="backends_retrieve",
        responses={200: BackendDetailSerializer, **errors(401, 404, 406)},
    )
    def get(self, request: Request, name: str) -> Response:
        snapshot = self.registry.snapshot
        info = next((info for info in snapshot.list() if info.name == name), None)
        if info is None:
            missing = BackendNotRegistered(name, tuple(snapshot.entries))
            raise NotFound(str(missing), code=missing.code)
        return Response(
            BackendDetailSerializer(
                {
                    **{part.name: getattr(info, part.name) for part in fields(info)},
                    "routes": [
                        status for status in snapshot.list_routes() if status.route.target == name
                    ],
                    "changed_at": snapshot.entries[name].changed_at,
                }
            ).data
        )

    def get_view_name(self) -> str:
        """Return the backend's name; the breadcrumbs call this on a view without a request."""
        return str(getattr(self, "kwargs", {}).get("name", "Backend"))[:63]

    def links(self) -> list[Link]:
        return [self.link("all backends", "backends"), self.link("run a workload", "workloads")]


def _is_plain(request: HttpRequest) -> bool:
    """Return whether the response is JSON and the same for all users, without negotiation."""
    meta = request.META
    return (
        request.method in ("GET", "HEAD")
        and meta.get("HTTP_ACCEPT", "") in ("", "*/*", "application/json")
        and not meta.get("QUERY_STRING")
        and "HTTP_AUTHORIZATION" not in meta
    )


def _not_modified(request: HttpRequest, etag: str) -> HttpResponse | None:
    """Return 304 when the client has this ETag, else None; ignore all other preconditions."""
    response = get_conditional_response(request, etag=etag)
    if response is None or response.status_code != 304:
        return None
    response.headers["ETag"] = etag
    return response
