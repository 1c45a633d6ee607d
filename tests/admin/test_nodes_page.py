"""Admin pages of the nodes."""

from datetime import UTC, datetime

from backends_app.execution.nodes import heartbeat
from backends_app.models import NodeBackend
from tests.admin.pages import Page

EVIL = "</pre><script>alert(1)</script>"
NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)


def test_nodes_are_shown_escaped_and_read_only(operator, fleet):
    heartbeat("1" * 32, fleet.list()[:1], NOON)
    NodeBackend.objects.update(
        node="far", healthy=False, health_description=EVIL, attributes={EVIL: EVIL}
    )
    page = "/admin/backends_app/nodebackend/"
    shown = Page(operator.get(page))
    assert "far gvisor unhealthy </pre><script>alert(1)" in shown.text
    row = f"{page}{NodeBackend.objects.get().pk}/change/"
    detail = Page(operator.get(row))
    assert shown.forbidden == detail.forbidden == []
    assert detail.text.count("alert(1)") == 3
    assert operator.get(f"{page}add/").status_code == 403
    assert operator.post(row, {}).status_code == 403
