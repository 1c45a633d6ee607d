"""Every path returns errors in the envelope; no client input causes a 5xx or an HTML page."""

import pytest
from django.test import Client, override_settings


@pytest.mark.parametrize(
    "path",
    [
        "/nope",
        "/v1/nope",
        "/v1/nope/",
        "/v1/backends/a/b",
        "/v1/backends/..%2f..",
        "/v1/backends/../../etc/passwd",
        "/v1//backends",
        "/v2/backends",
        "/V1/backends",
        "/v1/workloads/%00/x",
        "/" + "x" * 10_000,
        "/%ff",
        "/static/nope.js",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "TRACE", "NONSENSE"])
def test_an_unknown_path_is_404_in_the_envelope(client, path, method):
    response = client.generic(method, path)
    assert response.status_code in (404, 405)
    assert response["Content-Type"] == "application/json"
    assert response.json()["type"] == "client_error"
    assert {*response.json()["errors"][0]} == {"code", "detail", "attr"}


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
    assert response["Content-Type"] == "application/json"
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
        *("tokens", "schema", "docs", "redoc"),
    }
    for name, link in links.items():
        if name != "workloads-async":
            assert client.get(link).status_code == 200, name


@pytest.mark.parametrize("path", ["docs", "redoc"])
def test_the_documentation_is_served_from_local_files(client, path):
    page = client.get(f"/v1/{path}", headers={"accept": "text/html"}).content.decode()
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
