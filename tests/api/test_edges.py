"""Every API path returns errors in the envelope; no client input causes a 5xx or an HTML page."""

import re

import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.test import Client, RequestFactory, override_settings

from backends_app.api import errors


@pytest.mark.parametrize(
    "path",
    [
        "/v1/nope",
        "/v1/nope/",
        "/v1/backends/a/b",
        "/v1/backends/..%2f..",
        "/v1/backends/../../etc/passwd",
        "/v1//backends",
        "/v1/workloads/%00/x",
        "/v1/" + "x" * 10_000,
        "/v1/%ff",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "TRACE", "NONSENSE"])
def test_an_unknown_path_is_404_in_the_envelope(client, path, method):
    response = client.generic(method, path)
    assert response.status_code in (404, 405)
    assert response["Content-Type"] == "application/json"
    assert response.json()["type"] == "client_error"
    assert {*response.json()["errors"][0]} == {"code", "detail", "attr"}


ELSEWHERE = ("/nope", "/v2/backends", "/V1/backends", "/" + "x" * 10_000, "/%ff", "/static/nope.js")


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize(
    "accept", [None, "*/*", "text/html,*/*;q=0.8", "text/html, application/json"]
)
def test_an_unknown_path_outside_the_api_is_djangos_404_page(client, path, accept):
    response = client.get(path, headers={"accept": accept} if accept else {})
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")
    assert b"Not Found" in response.content


@pytest.mark.parametrize("path", ELSEWHERE)
@pytest.mark.parametrize("accept", ["application/json", "application/problem+json"])
def test_a_client_that_accepts_only_json_gets_the_envelope_everywhere(client, path, accept):
    response = client.get(path, headers={"accept": accept})
    assert response.status_code == 404
    assert response.json()["errors"][0]["code"] == "not_found"


@pytest.mark.parametrize(("accept", "is_json"), [("text/html", False), ("application/json", True)])
def test_errors_outside_the_api_are_pages_or_json_as_accepted(serve, filled, accept, is_json):
    serve(filled)
    client = Client(raise_request_exception=False, headers={"accept": accept})
    request = RequestFactory(headers={"accept": accept}).get("/nope")
    responses = {
        400: client.get("/nope", headers={"host": "evil.example"}),
        403: errors.permission_denied(request, PermissionDenied("a secret")),
        404: client.get("/nope"),
        413: errors.bad_request(request, RequestDataTooBig("a secret")),
        500: client.get("/broken"),
    }
    for status, response in responses.items():
        assert response.status_code == status
        assert (response["Content-Type"] == "application/json") is is_json
        assert b"secret" not in response.content


@pytest.mark.parametrize("debug", [True, False])
def test_debug_mode_keeps_the_envelope(client, debug):
    with override_settings(DEBUG=debug):
        response = client.get("/v1/nope")
    assert response.json()["errors"][0]["code"] == "not_found"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("path", ["backends", "backends/isolate", "routes", "resolve", "nodes"])
def test_another_method_is_405(client, path, method):
    response = client.generic(method, f"/v1/{path}")
    assert response.status_code == 405
    assert response.json()["errors"][0]["code"] == "method_not_allowed"


def test_another_accept_is_406(client):
    response = client.get("/v1/routes", headers={"accept": "text/csv"})
    assert response.status_code == 406
    assert response.json()["errors"][0]["code"] == "not_acceptable"


def test_an_unknown_host_is_400_in_the_envelope(client):
    response = client.get("/v1/backends", headers={"host": "evil.example"})
    assert response.status_code == 400
    assert response.json()["errors"][0]["code"] == "bad_request"


def test_a_bug_is_500_without_its_message(serve, filled):
    serve(filled)
    response = Client(raise_request_exception=False).get("/broken")
    assert response.status_code == 500
    assert response["Content-Type"].startswith("text/html")
    assert b"secret" not in response.content


def test_the_admin_returns_html_errors(serve, filled, db, admin_client):
    serve(filled)
    response = admin_client.get("/admin/nope/")
    assert response.status_code == 404
    assert response["Content-Type"].startswith("text/html")


def test_the_admin_creates_tokens(serve, filled, admin_client):
    serve(filled)
    assert admin_client.get("/admin/").status_code == 200
    assert admin_client.get("/admin/knox/authtoken/add/").status_code == 200


def test_the_root_links_to_every_resource(client):
    assert 'href="/v1/"' in client.get("/").content.decode()
    links = client.get("/v1/").json()
    assert {*links} == {
        *("backends", "routes", "resolve", "workloads", "workloads-async", "nodes"),
        *("tokens", "schema", "docs"),
    }
    for name, link in links.items():
        if name != "workloads-async":
            assert client.get(link).status_code == 200, name


def test_the_documentation_is_served_from_local_files(client):
    page = client.get("/v1/docs", headers={"accept": "text/html"}).content.decode()
    sources = [part.split('"')[0] for part in page.split('src="')[1:]]
    links = [part.split('"')[0] for part in page.split("<link")[1:] if 'href="' in part]
    assert sources
    for source in [*sources, *links]:
        assert not source.startswith(("http:", "https:", "//")), source
    for source in sources:
        if source.startswith("/static/"):
            found = client.get(source)
            assert found.status_code == 200
            assert next(iter(found.streaming_content))
            found.close()


def test_the_pages_have_links(client):
    page = client.get("/v1/backends", headers={"accept": "text/html"}).content.decode()
    for name in ("gvisor", "isolate", "microvm"):
        assert f'href="http://testserver/v1/backends/{name}"' in page
    assert 'href="http://testserver/v1/workloads"' in page
    assert 'href="http://testserver/v1/routes"' in page


def test_the_page_of_the_workloads_has_a_form(serve, filled, user):
    client = serve(filled)
    client.force_login(user)
    page = client.get("/v1/workloads", headers={"accept": "text/html"}).content.decode()
    for field in ("runtime", "isolation", "code", "input", "resources.timeout_s"):
        assert f'name="{field}"' in page


def test_the_form_stands_above_the_list_and_below_the_response_to_it(serve, filled, user):
    client = serve(filled)
    client.force_login(user)
    for method, form_first in ((client.get, True), (client.post, False)):
        page = method("/v1/workloads", headers={"accept": "text/html"}).content.decode()
        form, response = page.index('id="post-object-form"'), page.index('class="response-info"')
        assert (form < response) is form_first
        assert page.count('name="code"') == 1


def test_the_form_of_the_page_runs_a_workload(serve, filled, user):
    client = serve(filled)
    client.force_login(user)
    page = client.get("/v1/workloads", headers={"accept": "text/html"}).content.decode()
    [form] = re.findall(r'<form id="post-object-form".*?</form>', page, re.DOTALL)
    assert 'action="/v1/workloads" method="post"' in form
    fields = {"runtime": "node", "isolation": "auto", "code": "1", "input": "null", "command": ""}
    assert all(f'name="{name}"' in form for name in fields)
    assert client.post("/v1/workloads", fields).json()["status"] == "completed"


@pytest.mark.parametrize(
    "path",
    [
        "",
        "backends",
        "backends/isolate",
        "backends/nobody",
        "routes",
        "resolve",
        "resolve?runtime=node",
        "workloads",
        "nope",
    ],
)
def test_every_page_renders(client, path):
    response = client.get(f"/v1/{path}", headers={"accept": "text/html"})
    assert response["Content-Type"].startswith("text/html")
    assert b"Vulcan" in response.content
