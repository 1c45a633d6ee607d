"""The dashboard in a browser, and its live updates."""

from datetime import UTC, datetime, timedelta

from playwright.sync_api import Locator, Page, expect

from tests.browser.conftest import Site


def figure(page: Page, name: str) -> Locator:
    """Return the value of one of the tiles at the top."""
    return page.locator(".tiles > div").filter(has_text=name).locator("b")


def requests(page: Page) -> list[str]:
    """Return a list that collects the live requests of the page from now on."""
    urls: list[str] = []
    page.on("request", lambda one: urls.append(one.url) if "/live" in one.url else None)
    return urls


def expect_all_ended(page: Page, site: Site) -> None:
    """Wait until the dashboard counts every finished workload."""
    _, found = site.call("GET", "/v1/workloads?page_size=100")
    ended = sum(workload["finished_at"] is not None for workload in found["results"])
    expect(figure(page, "Ended")).to_have_text(str(ended))


def test_the_dashboard_links_to_a_backend_and_back(page, site):
    page.goto("/")
    expect(page).to_have_title("Dashboard – Vulcan")
    isolate = page.locator("#target-isolate")
    expect(isolate).to_contain_text("node")
    expect(isolate).to_contain_text("healthy")
    isolate.get_by_role("link", name="isolate").click()
    expect(page).to_have_url(f"{site.url}/v1/backends/isolate")
    expect(page.get_by_role("heading", name="isolate")).to_be_visible()
    page.get_by_label("navbar").get_by_role("link", name="Vulcan").click()
    expect(page).to_have_url(f"{site.url}/")


def test_health_changes_appear_and_are_announced_without_a_reload(page, site):
    page.goto("/")
    page.evaluate("window.still = 'the same page'")
    fickle, announced = page.locator("#target-fickle"), page.locator("#announcement")
    expect(fickle.locator(".state")).to_have_text("healthy")
    expect(announced).to_have_text("")
    with site.broken("it is raining"):
        expect(fickle.locator(".state")).to_have_text("unhealthy")
        expect(fickle).to_contain_text("it is raining")
        expect(announced).to_have_text("fickle is unhealthy now: it is raining.")
    expect(fickle.locator(".state")).to_have_text("healthy")
    expect(announced).to_have_text("fickle is healthy now: a fake workload ran.")
    assert page.evaluate("window.still") == "the same page"


def test_a_workload_submitted_by_form_appears_on_the_dashboard(page, site, sign_in, visit):
    sign_in(page, "ada")
    watching = visit().new_page()  # an anonymous visitor
    watching.goto("/")
    page.get_by_role("link", name="Workloads").click()
    form = page.locator("#post-object-form")
    form.locator("[name=code]").fill("throw new Error('<b>as planned</b>')")
    form.get_by_role("button", name="POST").click()
    expect(page.get_by_text("HTTP 201")).to_be_visible()
    expect_all_ended(watching, site)
    expect(watching.locator("#history-isolate")).to_be_visible()
    expect(watching.get_by_text("as planned")).to_have_count(0)
    page.goto("/")
    expect(page.get_by_role("heading", name="Your latest")).to_be_visible()
    expect(page.get_by_text("<b>as planned</b>")).to_be_visible()


def test_a_running_workload_appears_and_disappears(page, site, sign_in):
    sign_in(page, "root")
    with site.long_workload("ada") as workload_id:
        row = page.locator(f"#workload-{workload_id}")
        expect(row).to_contain_text("for ada")
        expect(figure(page, "Running")).to_have_text("1")
        row.get_by_role("link").focus()
    expect(row).to_have_count(0)
    assert page.evaluate("document.activeElement.id") == "content"  # not lost with the row


def test_focus_scroll_and_open_tables_survive_an_update(page, site):
    run = {"runtime": "node", "code": "export default () => 1"}
    site.call("POST", "/v1/workloads", run)
    page.set_viewport_size({"width": 360, "height": 500})
    page.goto("/")
    expect_all_ended(page, site)
    page.locator("#table-isolate summary").click()
    page.locator("#failures").scroll_into_view_if_needed()
    scroll_y = page.evaluate("window.scrollY")
    assert scroll_y > 0
    site.call("POST", "/v1/workloads", run)
    expect_all_ended(page, site)
    assert page.locator("#table-isolate").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.localName") == "summary"
    assert page.evaluate("window.scrollY") == scroll_y


MIDNIGHT = datetime(2026, 11, 25, tzinfo=UTC)


def test_an_unreachable_server_is_reported_and_polled_less_often(page):
    page.clock.install(time=MIDNIGHT)
    page.goto("/")
    expect(page.locator("#connection")).to_have_text("Live")
    page.context.set_offline(True)
    sent = requests(page)
    page.clock.pause_at(MIDNIGHT + timedelta(hours=1))
    expect(page.locator("#connection")).to_contain_text("The server is unreachable")
    assert len(sent) == 1
    for number, pause_s in enumerate((6, 12, 24, 48, 60, 60), start=1):
        page.clock.run_for(pause_s * 1000 - 1)
        assert len(sent) == number
        with page.expect_event("requestfailed"):
            page.clock.run_for(1)
        page.evaluate("fetch('/').catch(() => 'the script has handled its failure by now')")
    with page.expect_response("**/live*"):
        page.context.set_offline(False)  # the online event polls at once
    expect(page.locator("#connection")).to_have_text("Live")


HIDE = """hidden => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
}"""


def test_a_hidden_page_does_not_poll(page):
    page.clock.install(time=MIDNIGHT)
    page.goto("/")
    with page.expect_response("**/live*"):
        page.clock.run_for(3_000)
    expect(page.locator("#connection")).to_have_text("Live")
    sent = requests(page)
    page.evaluate(HIDE, True)
    page.clock.run_for(600_000)
    assert sent == []
    with page.expect_response("**/live*"):
        page.evaluate(HIDE, False)


def test_pause_stops_polling_until_resume(page):
    page.clock.install(time=MIDNIGHT)
    page.goto("/")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#connection")).to_have_text("Paused")
    sent = requests(page)
    page.clock.run_for(600_000)
    assert sent == []
    with page.expect_response("**/live*"):
        page.get_by_role("button", name="Resume").click()
    expect(page.locator("#connection")).to_have_text("Live")


def test_an_unchanged_fragment_is_a_304(page):
    page.clock.install(time=MIDNIGHT)
    page.goto("/")
    statuses = []
    while 304 not in statuses:  # a probe may just have changed something
        with page.expect_response("**/live*") as answer:
            page.clock.run_for(3_000)
        statuses.append(answer.value.status)
    assert {*statuses} <= {200, 304}


def test_the_dashboard_works_without_javascript(visit):
    page = visit(java_script_enabled=False).new_page()
    page.goto("/")
    expect(page.locator("#target-isolate")).to_contain_text("node")
    expect(page.get_by_role("button", name="Pause")).to_be_hidden()
    page.get_by_role("link", name="Reload").click()
    expect(page.get_by_role("heading", name="Dashboard")).to_be_visible()
    page.get_by_role("link", name="Week").click()
    expect(page.get_by_role("heading", name="The last week", exact=True)).to_be_visible()
