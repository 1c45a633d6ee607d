"""Fixtures for browser tests: Debian's Chromium, and a server for each test module.

Nothing here may use the database of the test process: Playwright runs an event loop in this
thread, and Django refuses queries in such a thread. The server has its own database, which `site`
reaches by HTTP and manage.py.
"""

import json
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.browser.fickle import FILE
from tests.support.needs import need
from tests.support.programs import DATABASE, PATIENCE_S, manage, running
from tests.support.servers import LISTENING, gunicorn, user_script

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.browser.settings"}
PASSWORD = "of-a-test"
PEOPLE = {
    "ada": user_script("ada", password=PASSWORD),
    "root": user_script("root", password=PASSWORD, is_staff=True, is_superuser=True),
}
ENDLESS = {"runtime": "node", "code": "for (;;);", "resources": {"timeout_s": 300}}


@dataclass(frozen=True)
class Site:
    """A running server with the users `ada` and `root` (a superuser)."""

    url: str
    folder: Path
    tokens: dict[str, str]

    def call(
        self, method: str, path: str, body: object = None, *, person: str = "root"
    ) -> tuple[int, Any]:
        """Call the API; return status and body."""
        head = {"Authorization": f"Token {self.tokens[person]}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.load(answer)
        except HTTPError as error:
            with error:
                return error.code, json.load(error)

    def shell(self, code: str) -> str:
        """Run Python code on the server's database; return its output."""
        return shell(code, self.folder)

    @contextmanager
    def broken(self, reason: str) -> Iterator[None]:
        """Break the backend `fickle`, and run a workload so that the server notices."""
        file = self.folder / FILE
        file.write_text(reason)
        try:
            status, _ = self.call("POST", "/v1/workloads", {"runtime": "python", "code": "1"})
            assert status == 503
            yield
        finally:
            file.unlink()

    @contextmanager
    def long_workload(self, person: str = "ada") -> Iterator[str]:
        """Run a workload that does not end by itself; yield its id and kill it."""
        status, workload = self.call("POST", "/v1/workloads/async", ENDLESS, person=person)
        assert status == 202
        path = f"/v1/workloads/{workload['id']}"
        try:
            while self.call("GET", path)[1]["status"] == "pending":
                time.sleep(0.05)
            yield workload["id"]
        finally:
            self.call("DELETE", path)  # 409 if the test has killed it


def shell(code: str, folder: Path) -> str:
    done = manage("shell", "--no-imports", "-c", code, folder=folder, **SETTINGS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory, _migrated: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(_migrated, folder / DATABASE)
    tokens = shell("".join(PEOPLE.values()), folder).split()
    with running(gunicorn(workers=1, threads=8), LISTENING, folder, **SETTINGS) as (port, _):
        yield Site(f"http://127.0.0.1:{port}", folder, dict(zip(PEOPLE, tokens, strict=True)))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Close the browser with its module: its event loop would break other tests."""
    need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        expect.set_options(timeout=1000 * PATIENCE_S)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, site: Site) -> Iterator[Callable[..., BrowserContext]]:
    """Return a factory of browser contexts; it takes the options of Playwright's `new_context`.

    Script errors and violations of the content security policy fail the test.
    """
    contexts: list[BrowserContext] = []
    errors: list[str] = []

    def visit(**options: Any) -> BrowserContext:
        context = chromium.new_context(base_url=site.url, **options)
        context.set_default_timeout(1000 * PATIENCE_S)
        context.on("weberror", lambda event: errors.append(str(event.error)))
        context.on(
            "console",
            lambda message: errors.append(message.text) if _is_error(message.text) else None,
        )
        contexts.append(context)
        return context

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


def _is_error(text: str) -> bool:
    return "Content Security Policy" in text or "Uncaught" in text


@pytest.fixture
def page(visit: Callable[..., BrowserContext]) -> Page:
    """A page of an anonymous visitor."""
    return visit().new_page()


@pytest.fixture
def sign_in() -> Callable[[Page, str], None]:
    """Return `sign_in(page, person)`, which uses the form that the dashboard links to."""

    def sign_in(page: Page, person: str) -> None:
        page.goto("/")
        page.get_by_role("link", name="Log in").click()
        page.get_by_label("Username").fill(person)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.get_by_text(f"Signed in as {person}").wait_for()

    return sign_in
