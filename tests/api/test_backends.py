"""GET /v1/backends, /v1/backends/{name} and /v1/routes are accurate, stable and cacheable."""

import json

import pytest
from rest_framework.test import APIClient

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.registry import Registry


def test_the_list_has_every_backend_by_name_in_the_documented_format(serve, filled, fakes):
    filled.set_health("gvisor", fakes["gvisor"], Health.unhealthy("no answer", {"version": "1"}))
    response = serve(filled).get("/v1/backends")
    assert response.status_code == 200
    assert response["Content-Type"] == "application/json"
    assert [one["name"] for one in response.json()] == ["gvisor", "isolate", "microvm"]
    assert response.json()[0] == {
        "name": "gvisor",
        "capabilities": {
            "name": "Fake (no isolation)",
            "supported_runtimes": ["oci"],
            "supported_isolations": ["fake"],
            "supported_source_formats": ["image"],
            "max_concurrency": 100,
        },
        "detected": True,
        "healthy": False,
        "health_description": "no answer",
        "attributes": {"version": "1"},
    }


def test_the_empty_registry_is_an_empty_array(serve, registry):
    response = serve(registry).get("/v1/backends")
    assert (response.status_code, response.content) == (200, b"[]")


def test_health_before_the_first_probe_is_null(serve, registry):
    registry.register("one", FakeBackend())
    [one] = serve(registry).get("/v1/backends").json()
    assert (one["detected"], one["healthy"]) == (None, None)


def test_equal_state_gives_equal_bytes_whatever_the_order_of_registration(serve):
    bodies = []
    for order in (["a", "b", "c"], ["c", "a", "b"]):
        registry = Registry()
        for name in order:
            registry.register(name, FakeBackend())
        bodies.append(serve(registry).get("/v1/backends").content)
    assert bodies[0] == bodies[1]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json, */*;q=0.5"])
def test_a_matching_etag_is_304(serve, filled, fakes, accept):
    client = serve(filled)
    headers = {"accept": accept} if accept else {}
    first = client.get("/v1/backends", headers=headers)
    assert first.headers["ETag"]
    headers["if-none-match"] = first.headers["ETag"]
    second = client.get("/v1/backends", headers=headers)
    assert (second.status_code, second.content) == (304, b"")
    assert second.headers["ETag"] == first.headers["ETag"]
    assert second.headers["Vary"] == first.headers["Vary"]
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("down"))
    third = client.get("/v1/backends", headers=headers)
    assert third.status_code == 200
    assert third.headers["ETag"] != first.headers["ETag"]


def test_other_preconditions_are_ignored(client):
    headers = {"if-match": '"other"', "if-unmodified-since": "Mon, 01 Jan 2001 00:00:00 GMT"}
    assert client.get("/v1/backends", headers=headers).status_code == 200
    headers["if-none-match"] = client.get("/v1/backends").headers["ETag"]
    assert client.get("/v1/backends", headers=headers).status_code in (200, 304)


def test_another_etag_and_a_list_of_etags(client):
    etag = client.get("/v1/backends").headers["ETag"]

    def status(value: str) -> int:
        return client.get("/v1/backends", headers={"if-none-match": value}).status_code

    assert status('"other"') == 200
    assert status(f'"other", {etag}') == 304
    assert status("*") == 304
    assert status("nonsense") == 200


def test_the_html_page_is_never_304(client):
    etag = client.get("/v1/backends").headers["ETag"]
    headers = {"if-none-match": etag, "accept": "text/html"}
    response = client.get("/v1/backends", headers=headers)
    assert response.status_code == 200
    assert response["Content-Type"].startswith("text/html")
    assert "ETag" not in response.headers


def test_cached_and_rendered_bytes_are_equal(client):
    ready = client.get("/v1/backends")
    rendered = client.get("/v1/backends?format=json")
    assert ready.content == rendered.content
    indented = client.get("/v1/backends", headers={"accept": "application/json; indent=2"})
    assert json.loads(indented.content) == ready.json()
    assert "ETag" not in indented.headers


def test_head_has_the_headers_only(client):
    head = client.head("/v1/backends")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["ETag"] == client.get("/v1/backends").headers["ETag"]


def test_a_backend_has_its_routes_and_its_last_change(serve, filled, fakes):
    response = serve(filled).get("/v1/backends/isolate")
    assert response.status_code == 200
    body = response.json()
    assert body["name"] == "isolate"
    assert [route["rule"] for route in body["routes"]] == [
        "runtime node → isolate",
        "runtime wasm → isolate",
    ]
    assert all(route["eligible"] for route in body["routes"])
    assert body["changed_at"].endswith("Z")
    assert serve(filled).get("/v1/backends/isolate").content == response.content


@pytest.mark.parametrize(
    "name", ["nobody", "a%00b", "ISOLATE", "x" * 10_000, "%F0%9F%98%80", "%ff"]
)
def test_an_unregistered_backend_is_404_and_lists_the_registered(serve, filled, name):
    response = serve(filled).get(f"/v1/backends/{name}")
    assert response.status_code == 404
    [error] = response.json()["errors"]
    assert error["code"] == "backend_not_registered"
    assert "gvisor, isolate, microvm" in error["detail"]
    assert len(error["detail"]) < 300


def test_the_routes_have_targets_and_their_eligibility(serve, filled, fakes):
    filled.set_health("isolate", fakes["isolate"], Health.unhealthy("down"))
    filled.unregister("gvisor")
    rows = serve(filled).get("/v1/routes").json()
    assert [(row["rule"], row["eligible"], row["reason"]) for row in rows] == [
        ("source format image → gvisor", False, "not registered"),
        ("source format archive → microvm", True, "healthy"),
        ("runtime node → isolate", False, "unhealthy: down"),
        ("runtime wasm → isolate", False, "unhealthy: down"),
        ("runtime oci → gvisor", False, "not registered"),
        ("runtime python → microvm", True, "healthy"),
        ("runtime go → microvm", True, "healthy"),
        ("default → microvm", True, "healthy"),
    ]
    assert {(row["source_format"], row["runtime"], row["target"]) for row in rows} >= {
        ("image", None, "gvisor"),
        (None, "go", "microvm"),
        (None, None, "microvm"),
    }


@pytest.mark.parametrize("path", ["backends", "backends/isolate", "routes", "resolve?runtime=node"])
def test_a_trailing_slash_is_an_alias(client, path):
    path, _, query = path.partition("?")
    with_slash = client.get(f"/v1/{path}/?{query}")
    assert (with_slash.status_code, with_slash.content) == (
        200,
        client.get(f"/v1/{path}?{query}").content,
    )


def test_reading_needs_no_user_and_no_database(serve, filled):
    for path in ("backends", "backends/isolate", "routes", "resolve?runtime=node"):
        assert serve(filled).get(f"/v1/{path}").status_code == 200


def test_a_view_uses_the_passed_registry(serve, filled, registry):
    assert len(serve(filled).get("/v1/backends").json()) == 3
    assert len(serve(Registry()).get("/v1/backends").json()) == 0


def test_a_passed_registry_starts_no_monitor(serve, filled):
    from backends_app.health import monitor

    before = monitor._started
    serve(filled).get("/v1/backends")
    assert monitor._started is before


def test_the_version_is_the_namespace(client: APIClient):
    from django.urls import resolve, reverse

    assert reverse("v1:backends") == "/v1/backends"
    assert resolve("/v1/backends").namespace == "v1"
