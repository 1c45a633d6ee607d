"""The OpenAPI document is valid, complete, and what the API really does."""

from io import StringIO

import pytest
import schemathesis
from django.core.management import call_command
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from vulcan_site.wsgi import application


def test_the_document_is_valid_and_without_warnings():
    call_command("spectacular", validate=True, fail_on_warn=True, stdout=StringIO())


def test_it_has_the_canonical_paths_and_nothing_else(client):
    document = client.get("/v1/schema?format=json").json()
    assert {(path, *sorted(operations)) for path, operations in document["paths"].items()} == {
        ("/v1/backends", "get"),
        ("/v1/backends/{name}", "get"),
        ("/v1/routes", "get"),
        ("/v1/resolve", "get"),
        ("/v1/workloads", "get", "post"),
        ("/v1/workloads/async", "post"),
        ("/v1/workloads/{workload_id}", "delete", "get"),
        ("/v1/workloads/{workload_id}/logs", "get"),
        ("/v1/workloads/{workload_id}/logs/history", "get"),
        ("/v1/nodes", "get"),
        ("/v1/tokens", "delete", "get", "post"),
        ("/v1/tokens/{key}", "delete"),
    }


def test_it_is_made_once_however_often_it_is_asked_for(client, monkeypatch):
    made = []
    parse = SchemaGenerator.parse
    monkeypatch.setattr(SchemaGenerator, "parse", lambda *given: made.append(True) or parse(*given))
    documents = [client.get(f"/v1/schema?format=json&x={number}").json() for number in range(3)]
    assert documents[0] == documents[1] == documents[2]
    assert len(made) == 1


@pytest.fixture
def described(client):
    """The API over fakes as its own document describes it."""
    return schemathesis.openapi.from_wsgi("/v1/schema?format=json", application)


schema = schemathesis.pytest.from_fixture("described")


@pytest.mark.django_db(transaction=True)  # what calls WSGI closes connections, as servers do
@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_it_answers_as_the_document_says(case, token):
    case.call_and_validate(
        headers={"Authorization": f"Token {token}"},
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )


@pytest.mark.parametrize("path", ["docs", "redoc", "schema"])
def test_errors_beside_the_api_have_the_envelope_too(client, path):
    response = client.get(f"/v1/{path}", headers={"accept": "image/png"})
    assert response.status_code == 406
    assert response.json()["errors"][0]["code"] == "not_acceptable"
    assert client.post(f"/v1/{path}").json()["errors"][0]["code"] == "method_not_allowed"
