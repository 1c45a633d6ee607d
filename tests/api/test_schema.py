"""The OpenAPI document is valid, complete and accurate."""

import re
from io import StringIO

import pytest
import schemathesis
from django.core.management import call_command
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import (
    characters,
    data,
    dictionaries,
    fixed_dictionaries,
    integers,
    ip_addresses,
    sampled_from,
    text,
)
from knox.models import get_token_model
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.hostile import Request
from vulcan_site.wsgi import application


def test_the_document_is_valid_and_without_warnings():
    call_command("spectacular", validate=True, fail_on_warn=True, stdout=StringIO())


def test_the_document_has_only_canonical_paths(client):
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


def test_the_document_is_generated_once(client, monkeypatch):
    made = []
    parse = SchemaGenerator.parse
    monkeypatch.setattr(SchemaGenerator, "parse", lambda *given: made.append(True) or parse(*given))
    documents = [client.get(f"/v1/schema?format=json&x={number}").json() for number in range(3)]
    assert documents[0] == documents[1] == documents[2]
    assert len(made) == 1


@pytest.fixture
def described(client):
    """Return the schema of the API over fakes, from its own document."""
    return schemathesis.openapi.from_wsgi("/v1/schema?format=json", application)


schema = schemathesis.pytest.from_fixture("described")


@pytest.mark.django_db(transaction=True)  # calling WSGI closes connections
@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_responses_match_the_document(case, token):
    case.call_and_validate(
        headers={"Authorization": f"Token {token}"},
        checks=[
            not_a_server_error,
            status_code_conformance,
            content_type_conformance,
            response_schema_conformance,
        ],
    )


@pytest.fixture
def calls(client) -> list[tuple[str, str]]:
    """Return the paths and methods of the document."""
    paths = client.get("/v1/schema?format=json").json()["paths"]
    return [(path, method) for path, methods in paths.items() for method in methods]


# What a WSGI server accepts in a header: Latin-1 without control characters.
LATIN = characters(codec="latin-1", exclude_categories=["Cc"])
TEXTS = text(LATIN, max_size=60)
HEADERS = fixed_dictionaries(
    {},
    optional={
        "Accept": TEXTS | sampled_from(["application/json", "text/html", "text/event-stream"]),
        "Accept-Language": TEXTS,
        "Authorization": TEXTS | TEXTS.map("Token {}".format),
        "Idempotency-Key": TEXTS,
        "If-None-Match": TEXTS | TEXTS.map('W/"{}"'.format),
        "Last-Event-ID": TEXTS | integers().map(str),
        "X-Forwarded-For": TEXTS | ip_addresses().map(str),
        "X-CSRFToken": TEXTS,
        "X-Request-ID": TEXTS,
    },
)
COOKIES = dictionaries(sampled_from(["sessionid", "csrftoken", "messages", "é"]), TEXTS, max_size=3)


@pytest.mark.django_db(transaction=True)
@given(data=data())
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_no_headers_or_cookies_cause_a_5xx(calls, user, data):
    """hypothesis generates values that the document does not list, for each of its operations."""
    path, method = data.draw(sampled_from(calls))
    token = get_token_model().objects.create(user=user)[1]  # an earlier example may have revoked it
    headers = data.draw(HEADERS)
    cookies = "; ".join(f"{name}={value}" for name, value in data.draw(COOKIES).items())
    meta = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    request = Request(
        re.sub(r"{\w+}", "isolate", path),
        method.upper(),
        meta={"HTTP_AUTHORIZATION": f"Token {token}", "HTTP_COOKIE": cookies, **meta},
    )
    assert request.send().status < 500


@pytest.mark.parametrize("path", ["docs", "schema"])
def test_errors_outside_the_api_have_the_envelope_too(client, path):
    response = client.get(f"/v1/{path}", headers={"accept": "image/png"})
    assert response.status_code == 406
    assert response.json()["errors"][0]["code"] == "not_acceptable"
    assert client.post(f"/v1/{path}").json()["errors"][0]["code"] == "method_not_allowed"
