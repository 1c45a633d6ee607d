"""The CPU time for requests and for program output is at most linear in their size.

Sizes go up to the largest that the server accepts. Clocks are too coarse for small differences, so
the second half of an input passes if it costs less than three times `FLOOR_S`.
"""

import ctypes
import gc
import gzip
import io
import math
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import product
from typing import TypeAlias

import pytest
from django.contrib.auth.models import User
from gunicorn.config import LimitRequestFields, LimitRequestFieldSize, LimitRequestLine
from rest_framework.throttling import BaseThrottle

from backends_app.api.parsers import max_body_bytes
from backends_app.backends.gvisor import images
from backends_app.backends.isolate.backend import _clean_stderr
from backends_app.backends.last_words import error_line
from backends_app.backends.microvm import archive
from backends_app.exceptions import InvalidRequest
from backends_app.logs.store import LogBuffer
from backends_app.sandbox.streams import Capture
from backends_app.utils import strict_json
from tests.site.conftest import identify
from tests.support.hostile import Request
from vulcan_site.logs import redact

Action: TypeAlias = Callable[[], object]
Subject: TypeAlias = Callable[[int], Action]
"""Returns the action for an input of the given number of bytes."""

FLOOR_S = 0.002
MAX_GROWTH = 3.0  # from the second quarter of an input to its second half: linear 2, quadratic 4
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 256 * 1024  # <malloc.h>
ATTEMPTS = (1, 3, 3, 10)  # runs of each attempt, before a size counts as too slow
ROUNDS = 4
MAX_FIRST, STEP = 8192, 16  # upper bound of the first size, and the factor between sizes
PRINTED = 128 * 1024  # bytes of inputs that are not requests
# Bodies of about 1 MB, so that tests take seconds.
SMALL_LIMITS = {"code_bytes": 200_000, "archive_bytes": 200_000, "input_bytes": 300_000}

LINE = LimitRequestLine.default
HEADER = LimitRequestFieldSize.default
# gunicorn joins headers that are repeated, except these.
ALL_HEADERS = HEADER * LimitRequestFields.default
ONCE = ("CONTENT_TYPE", "CONTENT_LENGTH")

UNITS = (
    *"x0,;=\"'\\ \t.-*/:[(\xff",
    *('\\"', "\\'", "\\000", "%41", "a,", "a=b;", "a/b,", "a/b;q=1,", "a;b=", '";', 'a";";'),
    *('W/"a",', ';=\\"', "en-", "0-1,", "1.2.3.4,"),
)
# The path whose request parses the header, and the prefixes of its value.
HEADERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "CONTENT_TYPE": ("/v1/workloads", ("", "a/b;", 'application/json;a="')),
    "HTTP_ACCEPT": ("/v1/workloads", ("", "a/b;", 'a/b;a="')),
    "HTTP_COOKIE": ("/api-auth/login/", ("", 'a="', "messages=")),
    "HTTP_AUTHORIZATION": ("/v1/workloads", ("", "Token ")),
    "HTTP_X_FORWARDED_FOR": ("/v1/workloads", ("",)),
    "HTTP_HOST": ("/api-auth/login/", ("", "[", "a:")),
    "HTTP_IF_NONE_MATCH": ("/v1/backends/isolate", ("", '"')),
    "HTTP_IF_MODIFIED_SINCE": ("/static/backends_app/admin.css", ("", "Mon, ")),
    "HTTP_RANGE": ("/static/backends_app/admin.css", ("", "bytes=")),
    "HTTP_ACCEPT_ENCODING": ("/static/backends_app/admin.css", ("", "gzip;")),
    "HTTP_ACCEPT_LANGUAGE": ("/admin/login/", ("",)),
    "HTTP_REFERER": ("/api-auth/login/", ("", "http://")),
    "HTTP_ORIGIN": ("/api-auth/login/", ("", "http://[")),
    "HTTP_X_CSRFTOKEN": ("/api-auth/login/", ("",)),
    "HTTP_IDEMPOTENCY_KEY": ("/v1/workloads", ("",)),
    "HTTP_TRANSFER_ENCODING": ("/v1/workloads", ("",)),
    "HTTP_X_REQUEST_ID": ("/v1/workloads", ("",)),
}
QUERIES = {
    "/v1/workloads": ("cursor=", "isolation=", "created_after=", "page_size=", "", "a=1&"),
    "/v1/resolve": ("isolation=", "runtime="),
    "/admin/auth/user/": ("q=", "o=", "p=", "date_joined__gte=", "id__in=", "_facets=1&"),
    "/admin/backends_app/workload/": ("q=", "o=", "status__exact="),
}
QUERY_UNITS = (
    *(
        "x",
        "0",
        ",",
        "%22",
        "%5C%22",
        "'",
        "+",
        "a+",
        "%",
        "%41",
        "&",
        "a=&",
        "=",
        ";",
        "1.",
        "%ff",
    ),
)

FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"
_PART = "--b\r\nContent-Disposition: form-data; "
# Media type, prefix of the body, the repeated unit, and suffix.
BODIES: Sequence[tuple[str, str, str, str]] = (
    *(
        ("application/json", before, unit, after)
        for before, unit, after in (
            ("", "[", ""),
            ("", '{"a":', ""),
            ('{"input":[', "1,", "1]}"),
            ('{"input":[', "[],", "1]}"),
            ('{"input":[', '{"a":1},', "1]}"),
            ('{"input":{"a":1', ',"a":1', "}}"),
            ('{"input":"', "x", '"}'),
            ('{"input":"', "\\n", '"}'),
            ('{"input":"', "\\u00e9", '"}'),
            ('{"input":"', "\\ud83d\\ude00", '"}'),
            ('{"input":"', "\\", ""),
            ('{"input":"', '\\"', ""),
            ('{"input":', "9", "}"),
            ('{"input":0.', "9", "}"),
            ('{"input":1e', "9", "}"),
            ('{"input":"', "\xff", '"}'),
            ("", " ", "{}"),
            ("", '"', ""),
            ("", '"a"\n', ""),
            ('{"runtime":"wasm","code":"', "A", '"}'),
            ('{"code_archive":"', "A", '"}'),
            ('{"image":"', "a-", '"}'),
            ('{"command":["', "a", '"]}'),
            ('{"command":["a"', ',"a"', "]}"),
            ('{"isolation":["a"', ',"a"', "]}"),
            ('{"runtime":"', "a", '"}'),
        )
    ),
    *((FORM, before, unit, "") for before in ("", "input=") for unit in QUERY_UNITS),
    (FORM, "runtime=node&code=", "%0A", ""),
    (FORM, "input=%22", "%5C%22", "%22"),
    *((MULTIPART, "", unit, "") for unit in ("x", "\r\n", "--b", "\r\n--b", "\r\n--b\r\n", "-")),
    (MULTIPART, "", f'{_PART}name="a"\r\n\r\nx\r\n', "--b--"),
    (MULTIPART, "", f'{_PART}name="a"; filename="f"\r\n\r\nx\r\n', "--b--"),
    (MULTIPART, f'{_PART}name="input"\r\n\r\n', "x", "\r\n--b--"),
    (MULTIPART, f'{_PART}name="input"\r\n\r\n', "\r\n-", "\r\n--b--"),
    (MULTIPART, f'{_PART}name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\n', "A", "\r\n--b--"),
    (MULTIPART, f'{_PART}name="a"\r\nContent-Transfer-Encoding: base64\r\n\r\n', " ", "\r\n--b--"),
    (
        MULTIPART,
        f'{_PART}name="a"; filename="f"\r\nContent-Transfer-Encoding: base64\r\n\r\n',
        " \n",
        "\r\n--b--",
    ),
    (MULTIPART, _PART, ";", "\r\n\r\nx\r\n--b--"),
    (MULTIPART, "", f"{_PART}{';' * 900}\r\n\r\nx\r\n", "--b--"),
    (MULTIPART, "--b\r\n", "a: b\r\n", "\r\nx\r\n--b--"),
    ("multipart/form-data; boundary=" + "b" * 70, "", "-" + "b" * 69, ""),
)


@pytest.fixture(autouse=True)
def steady_costs() -> Iterator[None]:
    """Keep the costs of this process out of those of an input.

    A garbage collection looks at all objects of the tests, in turns that depend on the input: look
    only at new ones. Where all of CPython's arenas are full, an object that comes and goes can map
    and unmap one each time (8 us): leave arenas with room. By default malloc takes memory from the
    kernel anew above a size that changes: allocate as gunicorn's workers do.
    """
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES)
    objects = [object() for _ in range(1_000_000)]  # 16 arenas
    kept = objects[::10_000]  # some in each, so that none is unmapped
    del objects
    gc.collect()
    gc.freeze()
    yield
    kept.clear()
    gc.unfreeze()


class Cost:
    """The least CPU time of an action in this thread, over all its runs so far."""

    def __init__(self, action: Action) -> None:
        self._action = action
        self.least_s = math.inf

    def measure(self) -> None:
        began = time.thread_time()
        self._action()
        self.least_s = min(self.least_s, time.thread_time() - began)


def superlinear(subject: Subject, largest: int) -> str | None:
    """Describe the first size from which on the cost grows too fast; None if there is none.

    Small sizes come first, so that quadratic code is found before it takes too long. A parser that
    copies its buffer, or a limit of parts, makes one step: the growth has to go on.
    """
    sizes = [largest]
    while sizes[0] > MAX_FIRST:
        sizes.insert(0, sizes[0] // STEP)
    for size in sizes:
        described = grows_too_fast(subject, size)
        if described and (size == largest or grows_too_fast(subject, min(2 * size, largest))):
            return described
    return None


def grows_too_fast(subject: Subject, size: int) -> str | None:
    """Describe the costs if the second half costs more than three times the second quarter.

    What a request costs without the input is in neither difference. The three sizes are measured
    in turns, and more often before they fail: a host whose speed changes delays runs of each.
    """
    whole, half, quarter = (Cost(subject(size // parts)) for parts in (1, 2, 4))
    for runs in ATTEMPTS:
        for _ in range(runs):
            whole.measure()
            half.measure()
            if whole.least_s - half.least_s > MAX_GROWTH * FLOOR_S:
                quarter.measure()
        second_half_s = whole.least_s - half.least_s
        second_quarter_s = half.least_s - quarter.least_s
        if second_half_s <= MAX_GROWTH * max(second_quarter_s, FLOOR_S):
            return None
        gc.collect()
    costs = ", ".join(f"{one.least_s * 1000:.1f}" for one in (quarter, half, whole))
    return f"{size // 4}, {size // 2} and {size} bytes cost {costs} ms"


def filled(before: str, unit: str, size: int, after: str = "") -> str:
    """Return a text of about this size; "" for size 0."""
    if size == 0:
        return ""
    return before + unit * max(1, (size - len(before) - len(after)) // len(unit)) + after


def check(subjects: Mapping[object, Subject], largest: int) -> None:
    """Fail with the list of subjects whose cost is superlinear each time that it is measured."""
    suspects = dict(subjects)
    for _ in range(ROUNDS):  # the memory of the process and the speed of the host differ by then
        slow = {name: superlinear(one, largest) for name, one in suspects.items()}
        suspects = {name: subjects[name] for name, described in slow.items() if described}
    described = "\n".join(f"{name}: {slow[name]}" for name in suspects)
    assert not suspects, f"{len(suspects)} of {len(subjects)}:\n{described}"


@pytest.fixture
def request_of(settings, fake_site) -> Callable[..., Action]:
    """Return a function that builds the action of sending a request as an authorized user."""
    settings.ISOLATION_THROTTLE_RATES = {"user": None, "address": None}
    User.objects.create_superuser("staff")
    User.objects.create_user("user")
    staff, user = identify("staff"), identify("user")

    def request(
        path: str, method: str = "GET", *, query: str = "", body: bytes = b"", **meta: str
    ) -> Action:
        identity = {} if path.startswith(("/static/", "/api-auth/")) else user
        if path.startswith("/admin/"):
            identity = staff
        meta = {name: value for name, value in meta.items() if value}
        return Request(path, method, query, body, {**identity, **meta}).send

    return request


@pytest.mark.parametrize("name", HEADERS)
def test_a_header_takes_linear_time(request_of, name: str):
    path, beginnings = HEADERS[name]
    method = "GET" if path.startswith(("/static/", "/v1/backends")) else "POST"

    def sent(before: str, unit: str) -> Subject:
        after = '"' if before.endswith('"') else ""
        return lambda size: request_of(path, method, **{name: filled(before, unit, size, after)})

    subjects = {case: sent(*case) for case in product(beginnings, UNITS)}
    check(subjects, HEADER if name in ONCE else ALL_HEADERS)


@pytest.mark.parametrize("path", QUERIES)
def test_a_query_takes_linear_time(request_of, path: str):
    def sent(before: str, unit: str) -> Subject:
        return lambda size: request_of(path, query=filled(before, unit, size))

    subjects = {case: sent(*case) for case in product(QUERIES[path], QUERY_UNITS)}
    check(subjects, LINE - len(path))


@pytest.mark.parametrize("kind", list(dict.fromkeys(kind for kind, *_ in BODIES)))
def test_a_body_takes_linear_time(request_of, settings, kind: str):
    settings.ISOLATION_LIMITS = SMALL_LIMITS

    def sent(before: str, unit: str, after: str) -> Subject:
        def subject(size: int) -> Action:
            body = filled(before, unit, size, after).encode("latin-1")
            return request_of("/v1/workloads", "POST", body=body, CONTENT_TYPE=kind)

        return subject

    check({tuple(shape): sent(*shape) for one, *shape in BODIES if one == kind}, max_body_bytes())


def test_program_output_takes_linear_time():
    """Output is stored by line, and searched for secrets and for the reason of a failure."""
    units = ("x", "\n", "\r", "x\n", " ", "\r\n", "é", " at ", "\n at ", "error: ", "password=")
    more = ("Requires ", "Requires a access", 'Requires a access to "', "blob:null/", "://a:")
    ends = ("", "\nNode.js v1", "\npanic: x", "\nTraceback (most recent call last):\n")
    check({case: of_text(capture_log, *case) for case in product(("",), units)}, PRINTED)
    for reader in (error_line, _clean_stderr, redact):
        cases = product(("",), (*units, *more), ends)
        check({(reader, *case): of_text(reader, *case) for case in cases}, PRINTED)


def test_json_documents_and_image_references_take_linear_time():
    """JSON is also the output of programs."""
    shapes = [shape for kind, *shape in BODIES if kind == "application/json"]
    check({tuple(shape): of_text(parse_json, *shape) for shape in shapes}, PRINTED)
    units = ("a", "a.", "a-", "a_", "-", "a/", ":", "@")
    check({unit: of_text(parse_reference, "", unit) for unit in units}, PRINTED)


NAMES = {"flat": "{}", "deep": "a/" * 30 + "{}", "long": "x" * 300, "marks": "\u0301" * 100 + "{}"}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_an_archive_takes_linear_time(name: str):
    def subject(content: int, links: bool) -> Subject:
        return lambda size: partial(inspect, packed_files(size, name, content, links))

    check({case: subject(*case) for case in product((0, 2000), (True, False))}, PRINTED)


def of_text(reader: Callable[[str], object], before: str, unit: str, after: str = "") -> Subject:
    return lambda size: partial(reader, filled(before, unit, size, after))


def capture_log(text: str) -> None:
    """Capture the text in small and in large pieces, as read from pipes."""
    data = text.encode()
    for piece in (64, 65536):
        log, capture = LogBuffer(len(data)), Capture(len(data))
        for begin in range(0, len(data), piece):
            log.write("stdout", data[begin : begin + piece])
            capture.write(data[begin : begin + piece])
        log.close()
        log.pending_blocks()
        capture.text()


def parse_json(text: str) -> None:
    with suppress(strict_json.InvalidJSON):
        strict_json.loads(text.encode())


def parse_reference(text: str) -> None:
    with suppress(InvalidRequest):
        images.parse(text)


def inspect(packed: bytes) -> None:
    with suppress(InvalidRequest):
        archive.inspect_archive(packed, "package.json")


def packed_files(size: int, name: str, content: int, links: bool) -> bytes:
    """Return a tar.gz that unpacks to about this size."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number in range(max(1, size // (content + 1024))):
            entry = tarfile.TarInfo(name.format(number))
            if links:
                entry.type, entry.linkname = tarfile.SYMTYPE, "../" * 3 + "x"
            else:
                entry.size = content
            tar.addfile(entry, io.BytesIO(bytes(entry.size)))
    return gzip.compress(file.getvalue(), 1)


def test_a_quadratic_parser_is_detected(request_of, monkeypatch):
    """Patch in a header parser that scans all previous characters for each one."""
    get_ident = BaseThrottle.get_ident

    def quadratic(self: BaseThrottle, request) -> str:
        text = request.META.get("HTTP_X_FORWARDED_FOR", "")
        for end in range(len(text)):
            any(character == "," for character in text[:end])
        return get_ident(self, request)

    monkeypatch.setattr(BaseThrottle, "get_ident", quadratic)

    def subject(size: int) -> Action:
        return request_of("/v1/nope", HTTP_X_FORWARDED_FOR=filled("", "x", size))

    # A momentarily slow measurement of the half can hide it.
    assert any(superlinear(subject, HEADER // 2) for _ in range(5))
