"""The content security policy in a real browser."""

from pathlib import Path

import pytest

from tests.support.needs import need
from tests.support.programs import manage, running
from tests.support.servers import LISTENING, gunicorn, user_script

BOSS = user_script("boss", password="right", is_staff=True, is_superuser=True)
PATHS = (
    *("/v1/", "/v1/backends", "/v1/backends/isolate", "/v1/workloads", "/v1/tokens", "/v1/docs"),
    *("/admin/", "/admin/auth/user/add/", "/admin/knox/authtoken/"),
    *("/admin/backends_app/workload/", "/admin/backends_app/backend/"),
)


@pytest.fixture
def site(migrated: Path):
    """The URL of a server with a superuser."""
    done = manage("shell", "--no-imports", "-c", BOSS, folder=migrated)
    assert done.returncode == 0, done.stderr
    with running(gunicorn(workers=1, threads=4), LISTENING, migrated) as (port, _):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture
def page():
    need("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.errors = []
        page.on("console", lambda message: page.errors.append((page.url, message.text)))
        page.on("pageerror", lambda error: page.errors.append((page.url, str(error))))
        yield page
        browser.close()


def errors(page) -> list[tuple[str, str]]:
    """Return the browser's messages except those about a missing icon, field names and focus."""
    ignored = ("404", "[DOM]", "Autofocus")
    return [one for one in page.errors if not any(word in one[1] for word in ignored)]


def test_the_policy_allows_everything_the_pages_load(page, site: str):
    urls = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(f"{site}/api-auth/login/?next=/v1/")
    page.fill("[name=username]", "boss")
    page.fill("[name=password]", "right")
    page.click("[type=submit]")
    page.wait_for_url(f"{site}/v1/")
    for path in PATHS:
        page.goto(site + path)
    page.goto(f"{site}/v1/docs")
    page.wait_for_selector(".opblock")  # Swagger UI has rendered the schema
    assert errors(page) == []
    assert [url for url in urls if not url.startswith((site, "data:"))] == []
    page.goto(f"{site}/v1/")
    page.click("text=Log out")
    page.wait_for_selector("text=Log in")


def test_an_injected_script_does_not_run(page, site: str):
    page.goto(f"{site}/v1/")
    page.evaluate(
        "document.body.insertAdjacentHTML('beforeend',"
        ' \'<img src="data:," onerror="window.ran = true">\')'
    )
    script = "const s = document.createElement('script'); s.textContent = 'window.ran = true';"
    page.evaluate(f"{script} document.body.append(s)")
    assert page.evaluate("window.ran") is None
    assert any("Content Security Policy" in text for _, text in page.errors)
