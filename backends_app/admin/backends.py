"""Admin page of all backends: health, capabilities, routes and load."""

from collections.abc import Sequence
from typing import Any

from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern, path, reverse
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_POST

from ..backends.base import Health
from ..conf import runtime_dir
from ..exceptions import BackendNotRegistered
from ..execution.nodes import Node
from ..execution.slots import slots_in_use
from ..executors import get_executor, start_executor
from ..health import monitor
from ..models import Backend
from ..registry import registry
from ..routing import RegisteredBackend, RouteTable
from ..utils.database import release_connection
from .base import PageAdmin
from .display import escape_controls, format_datetime

WORKERS_PROBE = "The workers probe their own backends; the results are shown here."


class BackendAdmin(PageAdmin):
    """The backends of this process's registry."""

    def page_context(self, request: HttpRequest) -> dict[str, Any]:
        executor = start_executor()
        nodes = executor.live_nodes() if executor.remote else ()
        snapshot = registry.snapshot
        return {
            "backends": [
                _backend_context(entry, snapshot.routes, nodes)
                for entry in snapshot.entries.values()
            ],
            "remote": executor.remote,
            "may_probe": self.has_model_perm("probe", request) and not executor.remote,
            "may_see_workloads": request.user.has_perm("backends_app.view_workload"),
            "workers_probe": WORKERS_PROBE,
        }

    def get_urls(self) -> list[URLPattern]:
        probe = path(
            "<path:object_id>/probe/",
            self.admin_site.admin_view(self.probe_view),
            name=f"{self.opts.app_label}_{self.opts.model_name}_probe",
        )
        return [probe, *super().get_urls()]

    @method_decorator(require_POST)
    def probe_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Run the backend's probe, wait for the result and log it."""
        if not self.has_model_perm("probe", request):
            raise PermissionDenied
        if get_executor().remote:
            self.message_user(request, WORKERS_PROBE, messages.WARNING)
            return HttpResponseRedirect(self._page_url())
        release_connection()
        try:
            found = monitor.probe_now(object_id)
        except BackendNotRegistered as missing:
            raise Http404(str(missing)) from missing
        result = f"{found.state}: {escape_controls(found.description)}"
        self.log_change(request, Backend(name=object_id), f"Probed: {result}")
        message = f"Probed backend {object_id}: {result}"
        self.message_user(request, message, messages.SUCCESS if found.healthy else messages.ERROR)
        return HttpResponseRedirect(self._page_url())  # without a fragment: messages are on top

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Backend | None:
        """Return the proxy object that the history view needs."""
        return Backend(name=object_id) if object_id in registry else None

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Redirect links of the admin log to the backend's section of the page."""
        fragment = f"#{object_id}" if object_id in registry else ""
        return HttpResponseRedirect(f"{self._page_url()}{fragment}")

    def _page_url(self) -> str:
        return reverse(
            f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_changelist"
        )


def _backend_context(
    entry: RegisteredBackend, routes: RouteTable, nodes: Sequence[Node]
) -> dict[str, Any]:
    """Return the template context of one backend."""
    return {
        "entry": entry,
        "changed": format_datetime(entry.changed_at),
        "routes": [route.rule for route in routes if route.target == entry.name],
        "slots_in_use": _slots_in_use(entry),
        "nodes": [
            {
                "name": node.name,
                "load": node.load,
                "served": served,
                "state": Health(served.detected, served.healthy, "").state,
            }
            for node in nodes
            for served in node.backends
            if served.name == entry.name
        ],
    }


def _slots_in_use(entry: RegisteredBackend) -> int | None:
    """Return the slots in use on this host, or None if /proc/locks cannot be read."""
    try:
        return slots_in_use(entry.name, entry.capabilities.max_concurrency, runtime_dir())
    except OSError:
        return None
