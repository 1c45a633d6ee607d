"""The nodes, as they last spoke of themselves."""

from django.contrib import admin
from django.utils.safestring import SafeString

from ..backends.base import Health
from ..models import NodeBackend
from .base import ReadOnlyAdmin
from .display import NOTHING, block, moment, state, table, visible


class NodeAdmin(ReadOnlyAdmin):
    """One row for each backend on each node."""

    list_display = ["node", "backend", "health", "reason", "max_concurrency", "load_shown", "seen"]
    search_fields = ["node", "name"]
    search_help_text = "A part of the name of a node or a backend."
    readonly_fields = [
        *("node", "node_id", "backend", "health", "description", "all_attributes"),
        *("max_concurrency", "load_shown", "started", "seen"),
    ]
    fields = tuple(readonly_fields)

    @admin.display(description="backend", ordering="name")
    def backend(self, row: NodeBackend) -> str:
        return row.name

    @admin.display(description="load", ordering="load")
    def load_shown(self, row: NodeBackend) -> str:
        return f"{row.load:.2f}"

    @admin.display(description="health")
    def health(self, row: NodeBackend) -> SafeString:
        return state(Health(row.detected, row.healthy, "").state)

    @admin.display(description="reason")
    def reason(self, row: NodeBackend) -> str:
        return visible(row.health_description, 200)

    @admin.display(description="reason")
    def description(self, row: NodeBackend) -> SafeString | str:
        return block(row.health_description, "Reason")

    @admin.display(description="attributes")
    def all_attributes(self, row: NodeBackend) -> SafeString | str:
        found = sorted((row.attributes or {}).items())
        cells = ((visible(key), visible(value)) for key, value in found)
        return table(["Attribute", "Value"], cells, "Attributes") if found else NOTHING

    @admin.display(description="started")
    def started(self, row: NodeBackend) -> str:
        return moment(row.started_at)

    @admin.display(description="last heard of", ordering="seen_at")
    def seen(self, row: NodeBackend) -> str:
        return moment(row.seen_at)
