"""Hostile values for each part of a request, and the positions that accept them."""

import base64
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from django.urls import URLResolver, get_resolver

from vulcan_site.wsgi import application

# Python's codecs that are not text encodings, slow ones, and ones that raise.
CHARSETS = (
    *("rot13", "hex", "base64", "zlib", "undefined", "quopri", "uu", "punycode", "idna"),
    *("utf-7", "utf-16", "unicode_escape", "latin-1", "nope", "x" * 5000, "../x", "\xff", "\x00"),
)
TYPES = (
    *(f"application/x-www-form-urlencoded; charset={name}" for name in CHARSETS),
    *("text/plain; charset*=rot13''%41", "multipart/form-data; boundary*=hex''%41"),
    *("application/json; charset*0*=utf-8''a; charset*1=b", "a/b; x*=nope''%41; y*=''"),
    *("multipart/form-data", "multipart/form-data; boundary=\xff", "application/" + "x" * 5000),
    *("", ";", "\xff/\xff", "application/json" + ";a=b" * 1500, 'application/json; charset="utf-8'),
    *("text/html", "application/json; charset=utf-8; charset=hex"),
)
NUMBERS = ("-1", "9" * 5000, "NaN", "\u0661\u00b2", "%00", "1" * 20)
DATES = (
    *("0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59", "0000-00-00", "2026-02-30"),
    *("2026-01-01T00:00:00%2B99:99", "%00"),
)
TEXTS = ("%00", "%ff%ed%a0%80", "x" * 5000, "'\"><script>", "..%2f")


def _cursor(text: str) -> str:
    return quote(base64.b64encode(text.encode()).decode())


CURSORS = (
    *("cD1nYXJiYWdl", "cD0A", "cj0xJnA9eA==", "%00", "é", "x" * 499),
    *map(_cursor, (f"p={one}" for one in DATES)),
    *map(_cursor, ("p=2026-01-01", "r=x", "r=1&o=1&p=")),
)
QUERIES: dict[str, Iterable[str]] = {
    "cursor": (*CURSORS, _cursor("o=99999999999999999999")),
    "page_size": NUMBERS,
    "after": NUMBERS,
    "limit": NUMBERS,
    "id": NUMBERS,
    "p": NUMBERS,
    "o": (*NUMBERS, "1.2.-3", ".", "1." * 2000),
    "created_after": DATES,
    "created_before": DATES,
    "created_at__gte": DATES,
    "created_at__year": NUMBERS,
    "date_joined__gte": DATES,
    "id__in": (*NUMBERS, ",,"),
    "q": (*TEXTS, "a+" * 2000, "%22" * 1300, "'%5C" * 900),
    "status": TEXTS,
    "runtime": TEXTS,
    "isolation": (*TEXTS, ",", "," * 5000),
    "source_format": TEXTS,
    "format": (*TEXTS, "api", "openapi-json"),
    "window": TEXTS,
    "next": (*TEXTS, "//evil.example", "javascript:1"),
    "_popup": TEXTS,
    "e": TEXTS,
    "": ("%", "&" * 5000, "=" * 5000, "a=1&a=2", ";" * 5000),
}
HEADERS: dict[str, Iterable[str]] = {
    "CONTENT_TYPE": TYPES,
    "CONTENT_LENGTH": ("-1", "x", "1e3", "9" * 5000, "\xb2", "+1", " 1", "1_0", ""),
    "HTTP_TRANSFER_ENCODING": ("chunked", "gzip, chunked", "\xff", ",", "identity"),
    "HTTP_CONTENT_ENCODING": ("gzip", "br", "\xff", ",", "x" * 5000),
    "HTTP_ACCEPT": (
        *("text/html", "*/*", ",", "a", "text/html;x*=rot13''%41", "\xff/\xff"),
        *("application/json; x*=nope''%41", "application/json; indent=99999999999", "a/b," * 1500),
        *("application/json;indent=\xb2", "text/*;q=NaN", 'application/json;a="'),
        "text/event-stream",
    ),
    "HTTP_ACCEPT_LANGUAGE": ("*", "\xff", "x" * 5000, "en;q=x", ";" * 5000, "en-" * 1500, "_"),
    "HTTP_ACCEPT_ENCODING": ("\xff", "gzip;q=x", "," * 5000, "*", "identity;q=0, *;q=0"),
    "HTTP_COOKIE": (
        *("sessionid=\xff", "sessionid=" + "a" * 32, "sessionid=\x00", "csrftoken=\xff", "=", ";"),
        *("messages=x:y:z", "messages=[]", 'a="\\', "a" * 5000, "csrftoken=" + "x" * 5000),
        *("; " * 2500, "sessionid=../../etc", 'messages="\\377"', "a=\\ud800"),
    ),
    "HTTP_HOST": ("evil.example", "\xff", "", "[", "[::1", "a:b", "localhost:99999", "x" * 5000),
    "HTTP_X_FORWARDED_FOR": ("\xff", ",", "," * 5000, "1.2.3.4, x", "x" * 5000, "::", "999.1.1.1"),
    "HTTP_X_FORWARDED_HOST": ("evil.example", "\xff", "a,b", "["),
    "HTTP_X_FORWARDED_PROTO": ("https", "\xff", "https, http", "x" * 5000),
    "HTTP_X_FORWARDED_PORT": ("-1", "x"),
    "HTTP_RANGE": ("bytes=-", "bytes=9-1", "bytes=0-9" * 500, "\xff", "lines=1-2", "bytes=0-,0-"),
    "HTTP_IF_NONE_MATCH": ("*", '"', "W/", "\xff", '"a",' * 1500, "x" * 5000, ","),
    "HTTP_IF_MATCH": ("*", '"', "\xff", ","),
    "HTTP_IF_MODIFIED_SINCE": (
        *("x", "\xff", "Mon, 01 Jan 0001 00:00:00 GMT", "Fri, 31 Dec 9999 23:59:60 GMT"),
        *("Mon, 99 Jan 2026 00:00:00 GMT", "1" * 5000, "Sunday, 06-Nov-94 08:49:37 GMT"),
    ),
    "HTTP_IF_UNMODIFIED_SINCE": ("x", "Mon, 99 Jan 2026 00:00:00 GMT"),
    "HTTP_LAST_EVENT_ID": NUMBERS,
    "HTTP_IDEMPOTENCY_KEY": ("", " ", "\xff", "x" * 256, "a b", "\x00", "\t"),
    "HTTP_AUTHORIZATION": (
        *("Token", "Token ", "Token x", "Token \xff", "Token a b", "Token " + "x" * 5000, "\xff"),
        *("Basic =", "Basic \xff", "Bearer x", "Digest", "Token \x00", " ", "token x"),
    ),
    "HTTP_X_REQUEST_ID": ("\xff", "x" * 5000, "a\tb", "", "'"),
    "HTTP_X_CSRFTOKEN": ("\xff", "x" * 64, "x" * 5000, ""),
    "HTTP_ORIGIN": ("null", "\xff", "http://[", "https://evil.example", "x" * 5000),
    "HTTP_REFERER": ("\xff", "http://[", "x" * 5000, "//", "https://evil.example/"),
    "HTTP_X_HTTP_METHOD_OVERRIDE": ("DELETE", "\xff"),
    "HTTP_X_REQUESTED_WITH": ("XMLHttpRequest", "\xff"),
    "HTTP_EXPECT": ("100-continue", "x"),
    "HTTP_SCRIPT_NAME": ("/evil",),
    "HTTP_USER_AGENT": ("\xff", "x" * 5000, "%s%n{0}"),
    "HTTP_FORWARDED": ('for="[', "\xff", "for=1;" * 1000),
    "HTTP_X_REAL_IP": ("x", "\xff"),
    "HTTP_IF_RANGE": ('"', "\xff", "Mon, 99 Jan 2026 00:00:00 GMT"),
    "HTTP_TE": ("trailers", "\xff"),
    "HTTP_UPGRADE": ("websocket", "\xff"),
}
METHODS = (
    *("HEAD", "OPTIONS", "PUT", "PATCH", "POST", "TRACE", "CONNECT", "x" * 200, "\xff", "get"),
    "DELETE",
)


def _multipart(*headers: str, body: str = "x") -> tuple[str, bytes]:
    part = "\r\n".join(headers)
    text = f"--b\r\n{part}\r\n\r\n{body}\r\n--b--\r\n"
    return "multipart/form-data; boundary=b", text.encode("latin-1")


_DISPOSITION = "Content-Disposition: form-data; "
_FORM = "application/x-www-form-urlencoded"
BODIES: tuple[tuple[str, bytes], ...] = (
    *(("application/json", one) for one in (b"", b"{", b"\xff", b"[" * 5000, b'"\\ud800"', b"NaN")),
    *(("application/json", one) for one in (b"\xef\xbb\xbf{}", b"null", b'{"a":1,"a":2}', b"\0")),
    *((_FORM, one) for one in (b"", b"%", b"a=%ff", b"\xff", b"&" * 5000, b"a=1;" * 1000, b"%00=")),
    (_FORM, b"&".join(b"a%d=1" % number for number in range(2000))),
    (_FORM, b"runtime=node&code=1&input=%ff&isolation=%00&command[99999]=x&resources.cpus=NaN"),
    (_FORM, b"_method=DELETE&_content=x&_content_type=text/x"),
    (_FORM, b"runtime=node&code=1&command[" + b"9" * 5000 + b"]=x"),
    (_FORM, "runtime=node&code=1&command[\u0661]=x&command[0]a[1].b=x&resources[0]=1".encode()),
    (_FORM, b"runtime=node&code=1&resources.cpus=1&resources.cpus.x=1&command.0=x&command[]=x"),
    (_FORM, b"username=%00&password=%00&next=//evil"),
    (_FORM, b"action=delete_selected&_selected_action=%00&index=x&select_across=x"),
    (_FORM, b"action=kill&_selected_action=9&index=99999999999999999999&select_across=1"),
    _multipart(),
    _multipart("Content-Disposition"),
    _multipart(_DISPOSITION),
    _multipart(_DISPOSITION + "name*=rot13''%41"),
    _multipart(_DISPOSITION + "name*=nope''%41"),
    _multipart(_DISPOSITION + "name=\"code\"; filename*=undefined''%41"),
    _multipart(_DISPOSITION + 'name="code"; filename="../../x"', "Content-Type: x; charset=rot13"),
    _multipart(_DISPOSITION + 'name="\xff"'),
    _multipart(_DISPOSITION + 'name="code"', "Content-Transfer-Encoding: base64", body="!"),
    _multipart(_DISPOSITION + 'name="code"', "Content-Transfer-Encoding: rot13"),
    _multipart(_DISPOSITION + 'name="input"; filename="x"', "Content-Length: x"),
    _multipart(_DISPOSITION + 'name="csrfmiddlewaretoken"; filename="x"'),
    _multipart("x: " + "y" * 5000),
    ("multipart/form-data; boundary=b", b"--b" * 2000),
    ("multipart/form-data; boundary=b", b"--b\r\n"),
)
PARAMETERS = ("%00", "%ff", "x" * 300, "..%2f..", "9" * 5000, "_5F_")


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a WSGI server passes it; path and query are as sent."""

    path: str
    method: str = "GET"
    query: str = ""
    body: bytes = b""
    meta: dict[str, str] = field(default_factory=dict)

    def send(self, stream: io.BytesIO | None = None, **meta: str) -> "Answer":
        """Process the request here, with additional headers and optionally another body."""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self.method,
            "SCRIPT_NAME": "",
            "PATH_INFO": unquote_to_bytes(self.path).decode("latin-1"),
            "QUERY_STRING": self.query.encode().decode("latin-1"),
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost",
            "CONTENT_LENGTH": str(len(self.body)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(self.body) if stream is None else stream,
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": False,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **meta,
            **self.meta,
        }
        began: list[tuple[str, list[tuple[str, str]]]] = []
        answer = application(environ, lambda *given: began.append(given[:2]))
        try:
            body = b"".join(answer)
        finally:
            answer.close()
        [(status, headers)] = began
        return Answer(int(status.split()[0]), {name.lower(): text for name, text in headers}, body)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def routes(resolver: URLResolver | None = None, prefix: str = "/") -> dict[str, list[str]]:
    """Return every pattern of the URL configuration, with `%(name)s` for each of its parameters."""
    resolver = resolver or get_resolver()
    found: dict[str, list[str]] = {}
    for name in resolver.reverse_dict:
        for possibilities, *_ in resolver.reverse_dict.getlist(name):
            found |= {
                (prefix + template).replace("\\", ""): names for template, names in possibilities
            }
    for before, below in resolver.namespace_dict.values():
        found |= routes(below, prefix + before)
    return found


def requests(path: str, share: int, of: int) -> Iterator[Request]:
    """Yield a request for each hostile value of each position, or a share of them.

    A share has one in `of` values of each position; the shares 0 to `of - 1` have all of them.
    """
    for position in _by_position(path):
        yield from list(position)[share % of :: of]


def few_requests(path: str, share: int, of: int) -> Iterator[Request]:
    """Yield a request for one position in `of`, with one of its hostile values.

    The shares 0 to `of - 1` have all positions, later shares have other values.
    """
    for number, position in enumerate(_by_position(path)):
        if (number + share) % of == 0:
            values = list(position)
            yield values[(number + share) // of % len(values)]


def _by_position(path: str) -> Iterator[Iterator[Request]]:
    for name, values in HEADERS.items():
        yield (Request(path, meta={name: value}) for value in values)
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING"):
        yield (Request(path, "POST", body=b"a=1", meta={name: one}) for one in HEADERS[name])
    for name, values in QUERIES.items():
        yield (Request(path, query=f"{name}={one}" if name else one) for one in values)
    for accept, bodies in (("", BODIES), ("text/html", BODIES[::4])):
        yield (
            Request(path, "POST", body=body, meta={"CONTENT_TYPE": kind, "HTTP_ACCEPT": accept})
            for kind, body in bodies
        )
    yield (Request(path, method) for method in METHODS)
