"""Every bug is one log line with the request's id, and a 500 in the error envelope."""

import json
import logging
from collections.abc import Iterator

import pytest
from django.conf import settings as site
from django.utils.module_loading import import_string
from rest_framework.negotiation import DefaultContentNegotiation
from rest_framework.renderers import JSONRenderer
from structlog.contextvars import get_contextvars

from backends_app.api import errors
from backends_app.api.handler import EnvelopeExceptionHandler
from backends_app.api.views import backends as views
from tests.support.hostile import Request

pytestmark = pytest.mark.django_db(transaction=True)  # the WSGI handler closes connections

SECRET = "a detail of the bug"
ENVELOPE = {
    "type": "server_error",
    "errors": [{"code": "error", "detail": "Server Error (500)", "attr": None}],
}
LAST_RESORT = "vulcan_site.last_resort.LastResortMiddleware"


def broken(*_: object, **__: object) -> None:
    raise RuntimeError(SECRET)


@pytest.fixture
def lines() -> Iterator[list[tuple[logging.LogRecord, object]]]:
    """Collect the error records, each with the request id bound when it was logged."""
    records: list[tuple[logging.LogRecord, object]] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append((record, get_contextvars().get("request_id")))

    handler = Recorder(logging.ERROR)
    logging.getLogger().addHandler(handler)
    yield records
    logging.getLogger().removeHandler(handler)


@pytest.fixture
def fails(serve, filled, lines):
    """Return a function that requests a path and checks the response and the log of a bug."""
    serve(filled)

    def ask(path: str, *, is_page: bool = False, **meta: str) -> None:
        answer = Request(path).send(HTTP_X_REQUEST_ID="the-id", **meta)
        assert answer.status == 500
        assert answer.headers["x-request-id"] == "the-id"
        if is_page:
            assert answer.headers["content-type"].startswith("text/html")
        else:
            assert answer.headers["content-type"] == "application/json"
            assert json.loads(answer.body) == ENVELOPE
        assert SECRET.encode() not in answer.body
        [(record, request_id)] = lines
        assert request_id == "the-id"
        assert record.exc_info

    return ask


def test_a_bug_in_a_view_is_a_logged_500(fails):
    fails("/broken", is_page=True)


def test_a_bug_in_a_view_is_json_for_a_client_that_accepts_only_json(fails):
    fails("/broken", HTTP_ACCEPT="application/json")


def test_a_bug_in_an_api_view_is_a_logged_500(fails, monkeypatch):
    monkeypatch.setattr(views, "backend_list", broken)
    fails("/v1/backends")


def test_a_bug_before_an_api_view_is_a_logged_500(fails, monkeypatch):
    monkeypatch.setattr(DefaultContentNegotiation, "select_renderer", broken)
    fails("/v1/backends")


@pytest.mark.parametrize("name", [name for name in site.MIDDLEWARE if name != LAST_RESORT])
def test_a_bug_in_a_middleware_is_a_logged_500(fails, monkeypatch, name: str):
    monkeypatch.setattr(import_string(name), "__call__", broken)
    fails("/v1/routes")


def test_a_bug_in_a_renderer_is_a_logged_500(fails, monkeypatch):
    monkeypatch.setattr(JSONRenderer, "render", broken)
    fails("/v1/routes")


def test_a_bug_in_a_page_is_a_logged_500(fails, monkeypatch):
    monkeypatch.setattr("backends_app.api.renderers.escape", broken)
    fails("/v1/routes", HTTP_ACCEPT="text/html")


@pytest.mark.parametrize("path", ["/v1/nope", "/v1/nodes", "/v1/resolve?"])
def test_a_bug_in_the_api_error_handler_is_a_logged_500(fails, monkeypatch, path: str):
    monkeypatch.setattr(EnvelopeExceptionHandler, "run", broken)
    fails(path)


def test_a_bug_in_an_error_page_is_a_logged_500(fails, monkeypatch):
    monkeypatch.setattr(errors, "not_found", broken)
    fails("/nope", is_page=True)


@pytest.mark.parametrize("path", ["/broken", "/v1/routes", "/healthz"])
def test_a_bug_in_the_handler_of_bugs_is_a_logged_500(fails, monkeypatch, path: str):
    monkeypatch.setattr(errors, "server_error", broken)
    monkeypatch.setattr(JSONRenderer, "render", broken)
    monkeypatch.setattr("backends_app.observability.probes.liveness", broken)
    if path == "/healthz":
        monkeypatch.setattr("backends_app.observability.probes.dispatch", broken)
    fails(path)


def test_a_bug_in_the_urls_is_a_logged_500(fails, settings):
    settings.ROOT_URLCONF = "nowhere.at.all"
    fails("/v1/routes")
