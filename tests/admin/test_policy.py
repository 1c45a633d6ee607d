"""Admin pages under a content security policy without `unsafe-inline`."""

import pytest
from django.contrib.staticfiles import finders

from backends_app.admin import changelist
from backends_app.execution.nodes import heartbeat
from backends_app.workloads import Status
from tests.admin.pages import Page
from tests.support.workloads import recorded

APP = "/admin/backends_app"


@pytest.mark.parametrize(
    "page",
    [
        "/admin/",
        f"{APP}/",
        f"{APP}/backend/",
        f"{APP}/backend/isolate/history/",
        f"{APP}/route/",
        f"{APP}/route/?isolation=auto&runtime=node&source_format=code",
        f"{APP}/nodebackend/",
        f"{APP}/workload/",
        f"{APP}/workload/?q=x&created_at__gte=2026-01-01T00:00:00Z",
        f"{APP}/workload/{{}}/change/",
        f"{APP}/workload/{{}}/history/",
    ],
)
def test_no_page_has_inline_script_or_style(operator, fleet, monkeypatch, page):
    monkeypatch.setattr(changelist, "MAX_COUNTED", 1)
    heartbeat("1" * 32, fleet.list(), recorded().created_at)
    workload = recorded(Status.RUNNING, stdout="out", output={"a": 1}, log_lines=0)
    shown = Page(operator.get(page.format(workload.pk)))
    assert shown.forbidden == []
    assert "main" in shown.tags


def test_pages_link_our_stylesheet(operator):
    for page in ("backend/", "route/", "nodebackend/", "workload/"):
        content = operator.get(f"{APP}/{page}").content.decode()
        assert 'href="/static/backends_app/admin.css"' in content
    assert finders.find("backends_app/admin.css")
