"""Security headers of responses, and CORS."""

import json

import pytest

from tests.support.programs import manage

PAGES = ("/v1/", "/v1/backends", "/v1/docs", "/admin/login/", "/api-auth/login/")


def directives(response) -> dict[str, str]:
    parts = response["Content-Security-Policy"].split("; ")
    return dict(part.split(" ", 1) for part in parts)


@pytest.mark.parametrize("path", PAGES)
def test_pages_allow_no_inline_scripts(client, path: str):
    client.credentials()
    response = client.get(path, headers={"accept": "text/html"})
    assert response["Content-Type"].startswith("text/html")
    policy = directives(response)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'self'"
    assert policy["style-src"] == "'self'"
    assert "'unsafe-inline'" not in response["Content-Security-Policy"]
    assert b"<script>" not in response.content
    assert b"https://" not in response.content.replace(
        b"https://www.django-rest-framework.org", b""
    )


def test_data_responses_have_an_empty_policy(client):
    assert directives(client.get("/v1/backends")) == {
        "default-src": "'none'",
        "frame-ancestors": "'none'",
    }


def test_other_security_headers_are_set(client):
    response = client.get("/v1/")
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Frame-Options"] == "DENY"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "camera=()" in response["Permissions-Policy"]


CORS_REQUESTS = """
import json
from django.test import Client
for method in ("get", "options"):
    for origin in ("https://friend.example", "https://stranger.example"):
        headers = {"origin": origin, "access-control-request-method": "POST"}
        response = getattr(Client(), method)("/v1/routes", headers=headers)
        sent = {name.title(): value for name, value in response.items()}
        print(json.dumps({k: v for k, v in sent.items() if "Access-Control" in k}))
"""


def cors(folder, **env: str) -> list[dict[str, str]]:
    done = manage("shell", "--no-imports", "-c", CORS_REQUESTS, folder=folder, **env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_no_other_origin_is_allowed_by_default(migrated):
    assert cors(migrated) == [{}, {}, {}, {}]


@pytest.mark.slow
def test_a_configured_origin_is_allowed_without_cookies(migrated):
    named, stranger, preflight, strangers = cors(migrated, CORS_ORIGINS="https://friend.example")
    assert named["Access-Control-Allow-Origin"] == "https://friend.example"
    assert "Access-Control-Allow-Credentials" not in named
    assert "authorization" in preflight["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Origin" not in {**stranger, **strangers}
