"""The site's URLs, and the plain views that the API is compared with."""

from django.contrib.admin.models import ADDITION, LogEntry
from django.http import HttpRequest, HttpResponse
from django.urls import path
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from backends_app.api.representation import backend_list
from backends_app.registry import registry
from vulcan_site.urls import urlpatterns as site


def plain(request: HttpRequest) -> HttpResponse:
    """Return the bytes of the backend list."""
    return HttpResponse(backend_list(registry.snapshot).body, content_type="application/json")


class InsertView(APIView):
    """A view that only inserts one row for a signed-in user."""

    permission_classes = [IsAuthenticated]

    def post(self, request: Request) -> Response:
        row = LogEntry.objects.create(
            user=request.user, object_repr=request.data["code"], action_flag=ADDITION
        )
        return Response({"id": row.pk}, status=201)


urlpatterns = [path("plain", plain), path("insert", InsertView.as_view()), *site]
