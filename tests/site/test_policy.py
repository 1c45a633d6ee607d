"""What browsers are told that our answers may do, and who else may read them."""

import json

import pytest

from tests.programs import manage

PAGES = ("/v1/", "/v1/backends", "/v1/docs", "/v1/redoc", "/admin/login/", "/api-auth/login/")


def directives(response) -> dict[str, str]:
    parts = response["Content-Security-Policy"].split("; ")
    return dict(part.split(" ", 1) for part in parts)


@pytest.mark.parametrize("path", PAGES)
def test_no_page_may_run_a_script_that_stands_in_it(client, path: str):
    client.credentials()
    response = client.get(path, headers={"accept": "text/html"})
    assert response["Content-Type"].startswith("text/html")
    policy = directives(response)
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["form-action"] == "'self'"
    assert ("'unsafe-inline'" in policy["style-src"]) is (path == "/v1/redoc")
    assert b"<script>" not in response.content
    assert b"https://" not in response.content.replace(
        b"https://www.django-rest-framework.org", b""
    )


def test_data_may_do_nothing(client):
    assert directives(client.get("/v1/backends")) == {
        "default-src": "'none'",
        "frame-ancestors": "'none'",
    }


def test_other_headers(client):
    response = client.get("/v1/")
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["X-Frame-Options"] == "DENY"
    assert response["Referrer-Policy"] == "same-origin"
    assert response["Cross-Origin-Opener-Policy"] == "same-origin"
    assert response["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "camera=()" in response["Permissions-Policy"]


ASK = """
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
    done = manage("shell", "--no-imports", "-c", ASK, folder=folder, **env)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_no_other_origin_may_read_anything_by_default(migrated):
    assert cors(migrated) == [{}, {}, {}, {}]


def test_an_origin_that_the_operator_names_may_and_without_cookies(migrated):
    named, stranger, preflight, strangers = cors(migrated, CORS_ORIGINS="https://friend.example")
    assert named["Access-Control-Allow-Origin"] == "https://friend.example"
    assert "Access-Control-Allow-Credentials" not in named
    assert "authorization" in preflight["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Origin" not in {**stranger, **strangers}
