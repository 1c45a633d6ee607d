"""What is cheap to refuse is refused first, and a body that is refused is not read."""

import io

import pytest
from django.core.cache import cache

from tests.hostile import Request

URL = "/v1/workloads"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
HUGE = str(10**9)

pytestmark = pytest.mark.django_db(transaction=True)  # what calls WSGI closes connections


class Unread(io.BytesIO):
    """A body that counts what is read of it."""

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
    """Send a POST with what is wrong with it; the status, while nothing of the body was read."""
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "DEFAULT_THROTTLE_RATES": {"user": "1/hour", "address": None},
    }
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


def test_size_is_before_everything(refused):
    for kind in ("text/csv", JSON):
        for signed_in in (True, False):
            assert refused(kind=kind, signed_in=signed_in, CONTENT_LENGTH=HUGE) == 413


@pytest.mark.parametrize("kind", ["text/csv", f"{JSON}; charset=hex", f"{FORM}; charset=punycode"])
def test_the_type_and_its_charset_are_before_authentication(refused, kind):
    assert refused(kind=kind, signed_in=False) == 415
    assert refused(kind=kind, HTTP_AUTHORIZATION="Token wrong") == 415


@pytest.mark.parametrize("kind", [JSON, FORM, "multipart/form-data; boundary=b"])
@pytest.mark.parametrize("accept", [JSON, "text/html"])
def test_authentication_is_before_the_throttle_and_that_before_the_body(
    refused, kind, accept, token
):
    def read() -> int:
        given = {"CONTENT_TYPE": JSON, "HTTP_AUTHORIZATION": f"Token {token}"}
        return Request(URL, "POST", body=b"{", meta=given).send().status

    assert refused(kind=kind, signed_in=False, HTTP_ACCEPT=accept) == 401
    assert refused(kind=kind, HTTP_AUTHORIZATION="Token wrong", HTTP_ACCEPT=accept) == 401
    assert read() == 400  # those before were not counted, this one is
    assert refused(kind=kind, HTTP_ACCEPT=accept) == 429
    assert refused(kind=kind, signed_in=False, HTTP_ACCEPT=accept) == 401


@pytest.mark.parametrize(
    "url", ["/", "/v1/", "/v1/tokens", "/v1/nope", "/admin/", "/api-auth/login/"]
)
@pytest.mark.parametrize("charset", ["punycode", "idna", "utf-7", "rot13"])
def test_no_form_of_a_stranger_is_decoded_by_another_charset(refused, url, charset):
    """punycode takes a time that grows with the square of the size: 7 s for 1 MB."""
    assert refused(url, kind=f"{FORM}; charset={charset}", signed_in=False) == 415


def test_no_page_reads_a_strangers_form(refused):
    """Only a log-in, which is a form, does; and Django, where the CSRF cookie is there."""
    for url in ("/", "/v1/", URL, "/v1/tokens", "/v1/nope", "/admin/"):
        assert refused(url, kind=FORM, signed_in=False) in (401, 403, 404, 405)
