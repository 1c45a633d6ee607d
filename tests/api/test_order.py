"""Cheap checks come first, and a rejected body is not read."""

import io

import pytest
from django.conf import settings as site
from django.core.cache import cache
from django.test import Client

from tests.support.hostile import Request

URL = "/v1/workloads"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
HUGE = str(10**9)
SECRET = "a" * 32
CSRF_COOKIE = f"{site.CSRF_COOKIE_NAME}={SECRET}"

pytestmark = pytest.mark.django_db(transaction=True)  # calling WSGI closes connections


class Unread(io.BytesIO):
    """A body that counts the bytes read from it."""

    def __init__(self) -> None:
        super().__init__(b"x" * 100_000)
        self.bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data

    def readline(self, size: int | None = -1) -> bytes:
        data = super().readline(size)
        self.bytes_read += len(data)
        return data


@pytest.fixture
def refused(client, token, settings):
    """Return a function that sends an invalid POST and returns the status if the body is unread."""
    settings.ISOLATION_THROTTLE_RATES = {"user": "1/hour", "address": None}
    cache.clear()

    def send(url: str = URL, *, kind: str = JSON, signed_in: bool = True, **meta: str) -> int:
        body = Unread()
        given = {"HTTP_AUTHORIZATION": f"Token {token}"} if signed_in else {}
        given |= {"CONTENT_TYPE": kind, "CONTENT_LENGTH": "100000", **meta}
        answer = Request(url, "POST", meta=given).send(body)
        assert body.bytes_read == 0
        return answer.status

    yield send
    cache.clear()


def test_the_size_is_checked_first(refused):
    for kind in ("text/csv", JSON):
        for signed_in in (True, False):
            assert refused(kind=kind, signed_in=signed_in, CONTENT_LENGTH=HUGE) == 413


@pytest.mark.parametrize("kind", ["text/csv", f"{JSON}; charset=hex", f"{FORM}; charset=punycode"])
def test_content_type_and_charset_are_checked_before_authentication(refused, kind):
    assert refused(kind=kind, signed_in=False) == 415
    assert refused(kind=kind, HTTP_AUTHORIZATION="Token wrong") == 415


@pytest.mark.parametrize("kind", [JSON, FORM, "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("accept", [JSON, "text/html"])
def test_authentication_precedes_throttling_which_precedes_the_body(refused, kind, accept, token):
    def read() -> int:
        given = {"CONTENT_TYPE": JSON, "HTTP_AUTHORIZATION": f"Token {token}"}
        return Request(URL, "POST", body=b"{", meta=given).send().status

    assert refused(kind=kind, signed_in=False, HTTP_ACCEPT=accept) == 401
    assert refused(kind=kind, HTTP_AUTHORIZATION="Token wrong", HTTP_ACCEPT=accept) == 401
    assert read() == 400  # the earlier ones were not counted, this one is
    assert refused(kind=kind, HTTP_ACCEPT=accept) == 429
    assert refused(kind=kind, signed_in=False, HTTP_ACCEPT=accept) == 401


@pytest.mark.parametrize(
    "url", ["/", "/v1/", "/v1/tokens", "/v1/nope", "/admin/", "/api-auth/login/"]
)
@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "rot13"])
def test_an_anonymous_form_is_not_decoded_by_another_charset(refused, url, charset):
    """punycode takes a time that grows with the square of the size: 7 s for 1 MB."""
    assert refused(url, kind=f"{FORM}; charset={charset}", signed_in=False) == 415


def test_no_page_reads_an_anonymous_form(refused):
    for url in ("/", "/v1/", URL, "/v1/tokens", "/v1/nope", "/admin/"):
        assert refused(url, kind=FORM, signed_in=False) in (401, 403, 404, 405)


@pytest.mark.parametrize("kind", [FORM, "multipart/form-data; boundary=b"])
def test_a_csrf_cookie_does_not_make_the_api_read_an_anonymous_body(refused, kind):
    """Anyone can make such a cookie. Without a session cookie, the token is not searched for."""
    for url in (URL, "/v1/tokens"):
        assert refused(url, kind=kind, signed_in=False, HTTP_COOKIE=CSRF_COOKIE) in (401, 403)


@pytest.mark.parametrize("kind", [FORM, "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("url", ["/admin/", "/admin/login/", "/api-auth/login/"])
def test_a_form_that_is_too_large_for_a_page_is_not_read_for_its_csrf_token(refused, url, kind):
    """Django would read it, and write its files to disk, before authentication."""
    large = {"CONTENT_LENGTH": "3000000", "HTTP_COOKIE": CSRF_COOKIE}
    assert refused(url, kind=kind, signed_in=False, **large) == 413


@pytest.mark.parametrize("url", ["/admin/login/", "/api-auth/login/"])
def test_the_login_throttle_precedes_the_form(refused, settings, url):
    settings.SIGN_IN_RATE = "1/hour"
    first = Request(url, "POST", meta={"CONTENT_TYPE": FORM}).send()
    assert first.status == 403  # counted, and without a CSRF cookie
    assert refused(url, kind=FORM, signed_in=False, HTTP_COOKIE=CSRF_COOKIE) == 429


def test_the_throttle_precedes_json_for_a_session_too(refused, client, user):
    """Only forms are read before: they contain their CSRF token."""
    browser = Client()
    browser.force_login(user)
    session = browser.cookies[site.SESSION_COOKIE_NAME].value
    given = {
        "HTTP_COOKIE": f"{CSRF_COOKIE}; {site.SESSION_COOKIE_NAME}={session}",
        "HTTP_X_CSRFTOKEN": SECRET,
    }
    meta = {"CONTENT_TYPE": JSON, **given}
    assert Request(URL, "POST", body=b"{", meta=meta).send().status == 400
    assert refused(signed_in=False, **given) == 429
