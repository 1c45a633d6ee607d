"""Admin pages of the nodes: their latest heartbeats."""

from django.contrib import admin
from django.utils.safestring import SafeString

from ..backends.base import Health
from ..models import NodeBackend
from .base import ReadOnlyAdmin
from .display import NOTHING, escape_controls, format_datetime, state_badge, table, text_block


class NodeAdmin(ReadOnlyAdmin):
    """One row for each backend on each node."""

    list_display = ["node", "backend", "health", "reason", "max_concurrency", "load_shown", "seen"]
    search_fields = ["node", "name"]
    search_help_text = "Part of the name of a node or a backend."
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
        return state_badge(Health(row.detected, row.healthy, "").state)

    @admin.display(description="reason")
    def reason(self, row: NodeBackend) -> str:
        return escape_controls(row.health_description, 200)

    @admin.display(description="reason")
    def description(self, row: NodeBackend) -> SafeString | str:
        return text_block(row.health_description, "Reason")

    @admin.display(description="attributes")
    def all_attributes(self, row: NodeBackend) -> SafeString | str:
        attributes = sorted((row.attributes or {}).items())
        cells = ((escape_controls(key), escape_controls(value)) for key, value in attributes)
        return table(["Attribute", "Value"], cells, "Attributes") if attributes else NOTHING

    @admin.display(description="started")
    def started(self, row: NodeBackend) -> str:
        return format_datetime(row.started_at)

    @admin.display(description="last heartbeat", ordering="seen_at")
    def seen(self, row: NodeBackend) -> str:
        return format_datetime(row.seen_at)
