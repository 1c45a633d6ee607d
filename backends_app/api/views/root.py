"""The root of the API, and its answer for unknown paths."""

from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.reverse import reverse

from ..schema import extend_schema
from .base import RegistryView, SizeLimitedView


class RootView(RegistryView):
    """Run untrusted code in the isolation that suits it."""

    name = "Vulcan"
    permission_classes = [AllowAny]

    @extend_schema(exclude=True)
    def get(self, request: Request) -> Response:
        names = (
            *("backends", "routes", "resolve", "workloads", "workloads-async", "nodes"),
            *("tokens", "schema", "docs"),
        )
        return Response(
            {
                name: reverse(name, request=request)
                + ("?runtime=node" if name == "resolve" else "")
                for name in names
            }
        )


class UnknownPathView(SizeLimitedView):
    """Returns 404 in the envelope for every unknown path under the API."""

    permission_classes = [AllowAny]

    @extend_schema(exclude=True)
    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        super().initial(request, *args, **kwargs)
        raise NotFound()
