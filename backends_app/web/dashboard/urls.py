"""URLs of the dashboard: the page, and the fragment that its script polls."""

from typing import Any

from django.urls import URLPattern, path

from ...executors.base import Executor
from ...registry import Registry, registry
from .history import History, history
from .views import DashboardView, LiveView


def dashboard_urlpatterns(
    registry: Registry = registry, executor: Executor | None = None, history: History = history
) -> list[URLPattern]:
    """Return the dashboard of one registry; without an executor, use the process's own."""
    initkwargs: dict[str, Any] = {
        "registry": registry,
        "executor_override": executor,
        "history": history,
    }
    return [
        path("", DashboardView.as_view(**initkwargs), name="dashboard"),
        path("dashboard/live", LiveView.as_view(**initkwargs), name="dashboard-live"),
    ]


urlpatterns = dashboard_urlpatterns()
