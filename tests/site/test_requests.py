"""Request ids, access lines and the context of log lines."""

import logging

import pytest
from rest_framework.test import APIClient
from structlog.contextvars import get_contextvars

from tests.support.workloads import CODE

PATH = "/v1/backends"


@pytest.fixture
def lines(caplog):
    """Return a function that lists the log records of a logger."""
    with (
        caplog.at_level(logging.INFO, "vulcan_site"),
        caplog.at_level(logging.INFO, "backends_app"),
    ):
        yield lambda name: [one for one in caplog.records if one.name == name]


@pytest.mark.parametrize("request_id", ["a", "A-1._", "x" * 64])
def test_a_valid_request_id_is_kept(client, request_id: str):
    assert client.get(PATH, headers={"X-Request-ID": request_id})["X-Request-ID"] == request_id


@pytest.mark.parametrize("request_id", ["", "a b", "x" * 65, "a\n", "é", '"', "a/b"])
def test_an_invalid_request_id_is_replaced(client, request_id: str):
    response = client.get(PATH, headers={"X-Request-ID": request_id})
    assert response["X-Request-ID"] != request_id
    assert len(response["X-Request-ID"]) == 32


def test_errors_have_a_request_id(client):
    client.raise_request_exception = False
    for path in ("/v1/nope", "/nope", "/broken"):
        assert client.get(path)["X-Request-ID"]


def test_a_request_is_one_access_line_with_user_and_status(client, user, lines):
    client.post("/v1/workloads", {"runtime": "node", "code": CODE}, format="json")
    [line] = lines("vulcan_site.requests")
    assert (line.method, line.path, line.status) == ("POST", "/v1/workloads", 201)
    assert line.user_id == user.pk
    assert line.duration_ms >= 0


def test_queries_are_not_logged_and_paths_are_truncated(client, lines):
    client.get("/v1/" + "x" * 5000 + "?token=secret")
    [line] = lines("vulcan_site.requests")
    assert len(line.path) == 200
    assert "secret" not in str(line.__dict__)


def test_logging_does_not_load_the_session(db, filled, serve, lines, django_assert_num_queries):
    """Loading the session would cost two queries."""
    client = serve(filled)
    client.cookies["sessionid"] = "a" * 32
    with django_assert_num_queries(0):
        client.get("/nope")
    assert lines("vulcan_site.requests")[0].user_id is None


def test_the_steps_of_a_workload_are_one_line_each(client, user, lines):
    made = client.post("/v1/workloads", {"runtime": "node", "code": CODE}, format="json").json()
    steps = lines("backends_app.execution.lifecycle")
    assert [one.getMessage() for one in steps] == [
        "workload submitted",
        "workload started",
        "workload ended",
    ]
    assert (steps[-1].status, steps[-1].exit_reason) == ("completed", "exited")
    assert {one.backend for one in steps} == {made["isolation_used"]}
    assert CODE not in str([one.__dict__ for one in steps])


def test_without_proxies_the_address_is_the_connections(client, settings):
    from rest_framework.test import APIRequestFactory

    from vulcan_site.requests import client_address

    request = APIRequestFactory().get("/", headers={"X-Forwarded-For": "1.2.3.4, 5.6.7.8"})
    assert client_address(request) == "127.0.0.1"
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "NUM_PROXIES": 1}
    assert client_address(request) == "5.6.7.8"


def test_admin_requests_are_logged_with_the_user(admin_client, admin_user):
    user_ids = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            user_ids.append(get_contextvars().get("user_id"))

    handler = Recorder()
    logger = logging.getLogger("vulcan_site.requests")
    logger.addHandler(handler)
    try:
        admin_client.get("/admin/")
    finally:
        logger.removeHandler(handler)
    assert user_ids == [admin_user.pk]


class TestAudit:
    """Audit lines of sign-ins and tokens."""

    @pytest.fixture
    def browser(self, serve, filled, user) -> APIClient:
        user.set_password("a password")
        user.save()
        return serve(filled)

    def sign_in(self, browser: APIClient, **fields: str):
        browser.post("/api-auth/login/", {"username": "ada", "password": "a password", **fields})

    def test_signing_in_and_out_is_logged(self, browser, user, lines):
        self.sign_in(browser)
        browser.post("/api-auth/logout/")
        events = [
            (one.getMessage(), one.user_id) for one in lines("backends_app.observability.audit")
        ]
        assert events == [("signed in", user.pk), ("signed out", user.pk)]

    def test_a_failed_sign_in_logs_the_user_but_no_input(self, browser, user, lines):
        self.sign_in(browser, password="typed password")
        self.sign_in(browser, username="typed in the wrong field")
        failed = lines("backends_app.observability.audit")
        assert [one.getMessage() for one in failed] == ["sign-in failed"] * 2
        assert [one.user_id for one in failed] == [user.pk, None]
        assert "typed" not in str([one.__dict__ for one in failed])

    def test_creating_and_revoking_tokens_is_logged(self, browser, user, lines):
        self.sign_in(browser)
        token = browser.post("/v1/tokens").json()
        browser.delete(f"/v1/tokens/{token['key']}")
        created, revoked = lines("backends_app.observability.audit")[1:]
        assert (created.getMessage(), revoked.getMessage()) == ("token created", "token revoked")
        assert created.owner_id == revoked.owner_id == user.pk
        assert created.token_key == token["key"]
        assert token["token"] not in str([created.__dict__, revoked.__dict__])
