"""Define the paths of the API. Canonical paths have no trailing slash; a slash is accepted."""

from collections.abc import Callable

from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, re_path

from ..executors.base import Executor
from ..executors.local import LocalExecutor
from ..registry import Registry, registry
from . import tokens, views

the_registry = registry


def api_urlpatterns(
    registry: Registry = registry, executor: Executor | None = None
) -> list[URLPattern]:
    """Return the whole API for one registry, to be included under a version's namespace.

    The default executor is the process's own or, for another registry, a new local one that the
    caller may start.
    """
    if executor is None and registry is not the_registry:
        executor = LocalExecutor(registry)

    def view(view_class: type[views.RegistryView]) -> Callable[..., HttpResponseBase]:
        return view_class.as_view(registry=registry, executor_override=executor)

    return [
        path("", view(views.RootView), name="root"),
        *_both("backends", view(views.BackendListView), "backends"),
        *_both("backends/<str:name>", view(views.BackendDetailView), "backend"),
        *_both("routes", view(views.RouteListView), "routes"),
        *_both("resolve", view(views.ResolveView), "resolve"),
        *_both("workloads", view(views.WorkloadsView), "workloads"),
        *_both("workloads/async", view(views.AsyncWorkloadsView), "workloads-async"),
        *_both("workloads/<str:workload_id>", view(views.WorkloadView), "workload"),
        *_both("workloads/<str:workload_id>/logs", view(views.LogsView), "workload-logs"),
        *_both(
            "workloads/<str:workload_id>/logs/history",
            view(views.LogHistoryView),
            "workload-history",
        ),
        *_both("nodes", view(views.NodesView), "nodes"),
        *_both("tokens", tokens.TokensView.as_view(), "tokens"),
        *_both("tokens/<str:key>", tokens.TokenView.as_view(), "token"),
        *_both("schema", views.SchemaView.as_view(), "schema"),
        *_both("docs", views.SwaggerView.as_view(url_name="v1:schema"), "docs"),
        re_path("", views.UnknownPathView.as_view()),
    ]


def _both(route: str, view: Callable[..., HttpResponseBase], name: str) -> list[URLPattern]:
    # The canonical path comes last: of two patterns with one name, `reverse` uses the last.
    return [path(f"{route}/", view), path(route, view, name=name)]


app_name = "v1"
urlpatterns = api_urlpatterns()
