"""Every backend on one page: how it is, what it can do, what leads to it, what it does now."""

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
from ..database import release_connection
from ..exceptions import BackendNotRegistered
from ..executors import get_executor
from ..health import monitor
from ..models import Backend
from ..nodes import Node
from ..registry import registry
from ..routing import RegisteredBackend, RouteTable
from ..slots import slots_in_use
from .base import PageAdmin
from .display import moment, visible

WORKERS_PROBE = "The workers probe their backends themselves; what they find is shown here."


class BackendAdmin(PageAdmin):
    """The backends of this process's registry."""

    def page(self, request: HttpRequest) -> dict[str, Any]:
        mine = get_executor()
        mine.ensure_started()
        nodes = mine.live_nodes() if mine.remote else ()
        snapshot = registry.snapshot
        return {
            "backends": [
                _described(entry, snapshot.routes, nodes) for entry in snapshot.entries.values()
            ],
            "remote": mine.remote,
            "may_probe": self.may("probe", request) and not mine.remote,
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
        """Run the backend's probe and wait for what it finds."""
        if not self.may("probe", request):
            raise PermissionDenied
        if get_executor().remote:
            self.message_user(request, WORKERS_PROBE, messages.WARNING)
            return HttpResponseRedirect(self._page())
        release_connection()
        try:
            found = monitor.probe_now(object_id)
        except BackendNotRegistered as missing:
            raise Http404(str(missing)) from missing
        said = f"{found.state}: {visible(found.description)}"
        self.log_change(request, Backend(name=object_id), f"Probed: {said}")
        said = f"Backend {object_id} has been probed: {said}"
        self.message_user(request, said, messages.SUCCESS if found.healthy else messages.ERROR)
        return HttpResponseRedirect(self._page())  # at its top, where the message is

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Backend | None:
        """For its history."""
        return Backend(name=object_id) if object_id in registry else None

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Where the admin's log leads to: its place on the page."""
        place = f"#{object_id}" if object_id in registry else ""
        return HttpResponseRedirect(f"{self._page()}{place}")

    def _page(self) -> str:
        return reverse(
            f"{self.admin_site.name}:{self.opts.app_label}_{self.opts.model_name}_changelist"
        )


def _described(
    entry: RegisteredBackend, routes: RouteTable, nodes: Sequence[Node]
) -> dict[str, Any]:
    """One backend as the page shows it."""
    return {
        "entry": entry,
        "changed": moment(entry.changed_at),
        "routes": [route.rule for route in routes if route.target == entry.name],
        "taken": _taken(entry),
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


def _taken(entry: RegisteredBackend) -> int | None:
    """Slots in use on this host; None where the kernel does not say."""
    try:
        return slots_in_use(entry.name, entry.capabilities.max_concurrency, runtime_dir())
    except OSError:
        return None
