"""The paths of the API. Canonical paths have no trailing slash; the form with one answers too."""

from collections.abc import Callable
from typing import Any

from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, re_path

from ..registry import Registry, registry
from . import views


def api_urlpatterns(registry: Registry = registry) -> list[URLPattern]:
    """The whole API over one registry, to be included under a version's namespace."""

    def view(view_class: type[views.RegistryView]) -> Callable[..., HttpResponseBase]:
        return view_class.as_view(registry=registry)

    schema: dict[str, Any] = {"url_name": "v1:schema"}
    return [
        path("", view(views.RootView), name="root"),
        *_both("backends", view(views.BackendListView), "backends"),
        *_both("backends/<str:name>", view(views.BackendDetailView), "backend"),
        *_both("routes", view(views.RouteListView), "routes"),
        *_both("resolve", view(views.ResolveView), "resolve"),
        *_both("workloads", view(views.WorkloadsView), "workloads"),
        *_both("schema", views.SchemaView.as_view(), "schema"),
        *_both("docs", views.SwaggerView.as_view(**schema), "docs"),
        *_both("redoc", views.RedocView.as_view(**schema), "redoc"),
        re_path("", views.UnknownPathView.as_view()),
    ]


def _both(route: str, view: Callable[..., HttpResponseBase], name: str) -> list[URLPattern]:
    # The canonical path stands last: of two patterns with one name `reverse` takes the later.
    return [path(f"{route}/", view), path(route, view, name=name)]


app_name = "v1"
urlpatterns = api_urlpatterns()
