"""The frame of all pages: navigation, style sheet, log-in and log-out."""

import re

from django.contrib.auth.models import User
from django.test import Client

from tests.benchmarks.results import row
from tests.dashboard.test_dashboard import Page

PAGES = ("/", "/benchmarks")


def get(path: str, user: User | None = None) -> str:
    client = Client()
    if user is not None:
        client.force_login(user)
    response = client.get(path)
    assert response.status_code == 200
    return response.content.decode()


def test_all_pages_have_the_same_navigation_with_the_current_page_marked(site, db):
    navigations = set()
    for path in PAGES:
        [header] = re.findall(r"<header.*?</header>", get(path), re.DOTALL)
        current = re.findall(r'href="([^"]*)" aria-current="page"', header)
        assert current == [path]
        links = Page(header).of("a")
        navigations.add(tuple(one["href"].partition("?")[0] for one in links))
    [links] = navigations
    assert {"/", "/benchmarks", "/v1/workloads", "/v1/backends", "/v1/docs", "/admin/"} <= {*links}


def test_all_pages_load_the_shared_style_sheet_first(site, db):
    for path in PAGES:
        styles = [one["href"] for one in Page(get(path)).of("link") if one["rel"] == "stylesheet"]
        assert styles[0] == "/static/backends_app/base.css"


def test_log_in_and_log_out_return_to_the_page(site, user):
    benchmark = row()
    path = f"/benchmarks?id={benchmark.pk}"
    [link] = [one["href"] for one in Page(get(path)).of("a") if "login" in one["href"]]
    user.set_password("a-b-c")
    user.save()
    client = Client()
    response = client.post(link, {"username": "ada", "password": "a-b-c"})
    assert response["Location"] == path
    [form] = Page(get(path, user)).of("form")
    fields = {one["name"]: one["value"] for one in Page(get(path, user)).of("input")}
    assert client.post(form["action"], fields)["Location"] == path


def test_the_navigation_lists_only_what_the_site_serves(settings, db):
    settings.ROOT_URLCONF = "backends_app.web.benchmarks.urls"
    page = Page(get("/benchmarks"))
    assert {one["href"] for one in page.of("a")} == {"#content", "/", "/benchmarks"}
