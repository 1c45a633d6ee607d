"""The paths of the dashboard: the page, and the part of it that its script asks for."""

from typing import Any

from django.urls import URLPattern, path

from ..executors.base import Executor
from ..registry import Registry, registry
from .history import History, history
from .views import DashboardView, LiveView


def dashboard_urlpatterns(
    registry: Registry = registry, executor: Executor | None = None, history: History = history
) -> list[URLPattern]:
    """The dashboard of one registry; without an executor, of the process's own."""
    given: dict[str, Any] = {
        "registry": registry,
        "executor_override": executor,
        "history": history,
    }
    return [
        path("", DashboardView.as_view(**given), name="dashboard"),
        path("dashboard/live", LiveView.as_view(**given), name="dashboard-live"),
    ]


urlpatterns = dashboard_urlpatterns()
