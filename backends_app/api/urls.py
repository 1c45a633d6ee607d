"""Define the paths of the API. Canonical paths have no trailing slash; a slash is accepted."""

from collections.abc import Callable
from functools import partial

from django.http.response import HttpResponseBase
from django.urls import URLPattern, path, re_path

from ..executors.base import Executor
from ..executors.local import LocalExecutor
from ..registry import Registry, registry
from .checks import require_apps

require_apps()  # before the views, which import their models

from .views import backends, docs, logs, nodes, root, routes, tokens, workloads  # noqa: E402
from .views.base import RegistryView  # noqa: E402

AsView = Callable[..., Callable[..., HttpResponseBase]]
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

    def view(view_class: type[RegistryView]) -> AsView:
        return partial(view_class.as_view, registry=registry, executor_override=executor)

    return [
        path("", view(root.RootView)(), name="root"),
        *_both("backends", view(backends.BackendListView), "backends"),
        *_both("backends/<str:name>", view(backends.BackendDetailView), "backend"),
        *_both("routes", view(routes.RouteListView), "routes"),
        *_both("resolve", view(routes.ResolveView), "resolve"),
        *_both("workloads", view(workloads.WorkloadsView), "workloads"),
        *_both("workloads/async", view(workloads.AsyncWorkloadsView), "workloads-async"),
        *_both("workloads/<str:workload_id>", view(workloads.WorkloadView), "workload"),
        *_both("workloads/<str:workload_id>/logs", view(logs.LogsView), "workload-logs"),
        *_both(
            "workloads/<str:workload_id>/logs/history",
            view(logs.LogHistoryView),
            "workload-history",
        ),
        *_both("nodes", view(nodes.NodesView), "nodes"),
        *_both("tokens", tokens.TokensView.as_view, "tokens"),
        *_both("tokens/<str:key>", tokens.TokenView.as_view, "token"),
        *_both("schema", docs.SchemaView.as_view, "schema"),
        *_both("docs", partial(docs.SwaggerView.as_view, url_name="v1:schema"), "docs"),
        re_path("", root.UnknownPathView.as_view()),
    ]


def _both(route: str, as_view: AsView, name: str) -> list[URLPattern]:
    """Return the canonical path, and its alias, which is not in the OpenAPI document."""
    return [path(f"{route}/", as_view(schema=None)), path(route, as_view(), name=name)]


app_name = "v1"
urlpatterns = api_urlpatterns()
