"""A person at a browser: Debian's Chromium in front of a server of the test module's own.

Nothing here may use the database of the test process: a browser that Playwright drives keeps an
event loop in this thread, and Django refuses to query beside one. The server has its own; `site`
gets at it by HTTP and by manage.py.
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
from tests.needs import need
from tests.programs import DATABASE, PATIENCE_S, manage, running

SETTINGS = {"DJANGO_SETTINGS_MODULE": "tests.browser.settings"}
GUNICORN = [
    *("-m", "gunicorn", "vulcan_site.wsgi", "--bind", "127.0.0.1:0", "--no-control-socket"),
    *("--workers", "1", "--threads", "8"),
]
PASSWORD = "of-a-test"
PEOPLE = f"""
import json
from django.contrib.auth.models import User
from knox.models import get_token_model
people = [
    User.objects.create_user("ada", password="{PASSWORD}"),
    User.objects.create_superuser("root", password="{PASSWORD}"),
]
print(json.dumps({{one.username: get_token_model().objects.create(user=one)[1] for one in people}}))
"""
ENDLESS = {"runtime": "node", "code": "for (;;);", "resources": {"timeout_s": 300}}


@dataclass(frozen=True)
class Site:
    """A running server, with the people `ada` and `root`, who is a superuser."""

    url: str
    folder: Path
    tokens: dict[str, str]

    def call(
        self, method: str, path: str, body: object = None, *, person: str = "root"
    ) -> tuple[int, Any]:
        """Ask the API as a program does: status and body."""
        head = {"Authorization": f"Token {self.tokens[person]}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, head, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, json.load(answer)
        except HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    def shell(self, code: str) -> str:
        """Run Python on the server's database; what it prints."""
        return shell(code, self.folder)

    @contextmanager
    def broken(self, why: str) -> Iterator[None]:
        """The backend `fickle` does not work, and a workload has met that."""
        file = self.folder / FILE
        file.write_text(why)
        try:
            status, _ = self.call("POST", "/v1/workloads", {"runtime": "python", "code": "1"})
            assert status == 503
            yield
        finally:
            file.unlink()

    @contextmanager
    def long_workload(self, person: str = "ada") -> Iterator[str]:
        """A workload that runs until somebody ends it; its id."""
        status, workload = self.call("POST", "/v1/workloads/async", ENDLESS, person=person)
        assert status == 202
        path = f"/v1/workloads/{workload['id']}"
        try:
            while self.call("GET", path)[1]["status"] == "pending":
                time.sleep(0.05)
            yield workload["id"]
        finally:
            self.call("DELETE", path)  # no error when somebody was quicker: a 409


def shell(code: str, folder: Path) -> str:
    done = manage("shell", "--no-imports", "-c", code, folder=folder, **SETTINGS)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory, _migrated: Path) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(_migrated, folder / DATABASE)
    tokens = json.loads(shell(PEOPLE, folder))
    listens = r"Listening at: (http://127\.0\.0\.1:\d+)"
    with running(GUNICORN, listens, folder, **SETTINGS) as (url, _):
        yield Site(url, folder, tokens)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """Ends with its module, and with it the event loop that other tests could not bear."""
    need("chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium")
        expect.set_options(timeout=1000 * PATIENCE_S)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser, site: Site) -> Iterator[Callable[..., BrowserContext]]:
    """A browser of somebody's own: `visit()`, with what Playwright's `new_context` takes.

    Whatever a page of it has to complain about fails the test: an error of a script, or something
    that the policy does not allow.
    """
    contexts: list[BrowserContext] = []
    complaints: list[str] = []

    def visit(**options: Any) -> BrowserContext:
        context = chromium.new_context(base_url=site.url, **options)
        context.set_default_timeout(1000 * PATIENCE_S)
        context.on("weberror", lambda one: complaints.append(str(one.error)))
        context.on(
            "console",
            lambda said: complaints.append(said.text) if _is_complaint(said.text) else None,
        )
        contexts.append(context)
        return context

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def _is_complaint(text: str) -> bool:
    return "Content Security Policy" in text or "Uncaught" in text


@pytest.fixture
def page(visit: Callable[..., BrowserContext]) -> Page:
    """A stranger's page."""
    return visit().new_page()


@pytest.fixture
def sign_in() -> Callable[[Page, str], None]:
    """`sign_in(page, "ada")` goes through the form that the dashboard links to."""

    def sign_in(page: Page, person: str) -> None:
        page.goto("/")
        page.get_by_role("link", name="Log in").click()
        page.get_by_label("Username").fill(person)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Log in").click()
        page.get_by_text(f"Signed in as {person}").wait_for()

    return sign_in
