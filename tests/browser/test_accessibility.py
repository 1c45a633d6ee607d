"""Accessibility of the pages: axe, narrow screens and the keyboard."""

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

FILL = """
from datetime import UTC, datetime
from django.contrib.auth.models import User
from backends_app.models import Workload
from backends_app.workloads import Status
from tests.dashboard.day import day, workload
now, ada = datetime.now(UTC), User.objects.get(username="ada")
Workload.objects.bulk_create(day(now, 1000, ada), batch_size=500)
from tests.benchmarks.results import figures, measured, row
error = "x" * 10_000  # one word that fits nowhere
for one in Workload.objects.filter(status="failed")[:3]:
    Workload.objects.filter(pk=one.pk).update(error=error)
failed = {"warm": figures(failures=1, failure=error), "cold": figures(3), "parallel": figures()}
row("first", measured("isolate", 3), measured("fickle", 300))
row("x" * 60, measured("isolate", 30), measured("fickle", 300, modes=failed), load_before=7.5)
"""


@pytest.fixture(scope="module")
def filled(site) -> None:
    site.shell(FILL)


def violations(page: Page, context: dict | None = None) -> list[str]:
    """Return all violations that axe finds, of any impact."""
    found = Axe().run(page, context).response["violations"]
    return [f"{one['id']} ({one['impact']}): {one['nodes'][0]['html']}" for one in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("person", ["anonymous", "root"])
def test_axe_finds_nothing_on_the_dashboard(visit, site, filled, sign_in, scheme, person):
    page = visit(color_scheme=scheme).new_page()
    if person != "anonymous":
        sign_in(page, person)
    with site.broken("it is raining"), site.long_workload():
        page.goto("/?window=day")
        expect(page.locator("#target-fickle")).to_contain_text("unhealthy")
        page.locator("#table-isolate summary").click()
        assert violations(page) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("person", ["anonymous", "root"])
def test_axe_finds_nothing_on_the_benchmark_page(visit, filled, sign_in, scheme, person):
    page = visit(color_scheme=scheme).new_page()
    if person != "anonymous":
        sign_in(page, person)
    page.goto("/benchmarks")
    expect(page.locator("svg")).to_have_count(3)
    assert violations(page) == []


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_page_scrolls_sideways(visit, filled, sign_in, width: int):
    page = visit(viewport={"width": width, "height": 800}).new_page()
    sign_in(page, "root")
    page.goto("/?window=day")
    page.locator("#table-isolate summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.goto("/benchmarks")
    page.locator("summary").first.click()
    assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_skip_link_moves_the_focus_to_the_content(page):
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


@pytest.mark.parametrize("path", ["/v1/", "/v1/backends"])
def test_axe_finds_nothing_in_our_parts_of_the_api_pages(page, path: str):
    """The rest of these pages is DRF's own, where axe does find violations."""
    page.goto(path)
    ours = [part for part in (".navbar-brand", "[aria-label=Next]") if page.locator(part).count()]
    assert ours
    assert violations(page, {"include": [[part] for part in ours]}) == []
