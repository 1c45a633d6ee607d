"""Content-Type headers: any charset but UTF-8 is refused."""

import encodings
import encodings.aliases
import pkgutil
from itertools import cycle

import pytest

from tests.support.hostile import Request
from vulcan_site.utf8_requests import parse_content_type

pytestmark = pytest.mark.django_db(transaction=True)  # the WSGI handler closes connections

CODECS = sorted(
    {module.name for module in pkgutil.iter_modules(encodings.__path__)}
    | {*encodings.aliases.aliases}
    | {"rot13", "hex", "utf-16", "quopri"}
)
UTF8 = {"utf_8", "utf8"}
KINDS = ("application/json", "application/x-www-form-urlencoded", "text/plain", "x")
PATHS = ("/v1/backends", "/v1/workloads", "/v1/nope", "/", "/admin/", "/admin/login/", "/nope")


def send(path: str, method: str, header: str, body: bytes = b""):
    return Request(path, method, query="a=%41", body=body).send(CONTENT_TYPE=header)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_a_charset_that_is_not_utf_8_is_415_in_the_envelope(path: str):
    for name, kind in zip(CODECS, cycle(KINDS), strict=False):
        if name not in UTF8:
            for method, body in (("GET", b""), ("POST", b"a=1")):
                answer = send(path, method, f"{kind}; charset={name}", body)
                assert (name, answer.status) == (name, 415)
                assert answer.headers["content-type"] == "application/json"
                assert b"Send UTF-8" in answer.body


@pytest.mark.parametrize("name", ["utf-8", "UTF-8", '"utf-8"', "utf8"])
def test_the_names_of_utf_8_are_accepted(filled, serve, name: str):
    serve(filled)
    for method in ("GET", "POST"):
        answer = send("/v1/backends", method, f"application/json; charset={name}")
        assert answer.status in (200, 405)


@pytest.mark.parametrize(
    "header",
    [
        "application/json; charset*=rot13''%41",
        "application/json; charset*0=he; charset*1=x",
        "application/json; charset=utf-8; charset=hex",
        "a/b; x*=nope''%41",
        "a/b; x*=undefined''%41",
        "a/b; x*=''%41",
    ],
)
def test_a_parameter_with_an_encoding_is_415(header: str):
    assert send("/v1/routes", "GET", header).status == 415


def test_unknown_codec_names_are_not_looked_up():
    """Python would cache each name for the life of the process."""
    before = len(encodings._cache)
    for number in range(100):
        header = f"text/plain; charset=made-up-{number}"
        assert send("/v1/routes", "GET", header).status == 415
        assert send("/v1/routes", "GET", f"text/plain; x*=made-up-{number}''%41").status == 415
    assert len(encodings._cache) == before


def test_a_long_charset_is_truncated_in_the_error():
    with pytest.raises(ValueError, match="charset") as raised:
        parse_content_type("text/plain; charset=" + "x" * 400)
    assert len(str(raised.value)) < 200
