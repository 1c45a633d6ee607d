"""The site's URLs and, beside them, the plain view that the API is measured against."""

from django.http import HttpRequest, HttpResponse
from django.urls import path

from backends_app.api.representation import backend_list
from backends_app.registry import registry
from vulcan_site.urls import urlpatterns as site


def plain(request: HttpRequest) -> HttpResponse:
    """Ready bytes, the very ones of the list."""
    return HttpResponse(backend_list(registry.snapshot).body, content_type="application/json")


urlpatterns = [path("plain", plain), *site]
