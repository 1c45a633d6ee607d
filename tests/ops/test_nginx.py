"""nginx in front of gunicorn, with the configuration in ops/nginx."""

import json
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse, HTTPSConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from backends_app.api.parsers import max_body_bytes
from tests.faults.site import RETURNS, Program, Site
from tests.support.needs import need
from tests.support.programs import PATIENCE_S, ROOT, wait_until
from tests.support.servers import free_port, nginx, user_script

CONFIGURATION = (ROOT / "ops" / "nginx" / "vulcan.conf").read_text()
HOST = "vulcan.example.org"
PRODUCTION = {
    "ALLOWED_HOSTS": HOST,
    "CSRF_TRUSTED_ORIGINS": f"https://{HOST}",
    "HTTPS": "1",
    "PROXIES": "1",
}
USER = user_script("eve", password="right", is_staff=True)
FORGED = {
    "X-Forwarded-For": "198.51.100.1",
    "X-Forwarded-Host": "evil.example.org",
    "X-Forwarded-Proto": "http",
    "X-Forwarded-Protocol": "ssl",
    "X-Forwarded-Ssl": "off",
    "Forwarded": "for=198.51.100.1;host=evil.example.org;proto=http",
}
UNDERSCORES = {
    "SCRIPT_NAME": "/evil",
    "PATH_INFO": "/evil",
    "X_Forwarded_For": "198.51.100.1",
    "X_Forwarded_Proto": "http",
}


@dataclass
class Front:
    """A client of a running nginx."""

    port: int
    plain_port: int
    error_log: Path
    context: ssl.SSLContext

    def connect(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """Return a TLS connection from the address `source`, any of 127.0.0.0/8."""
        connection = socket.create_connection(
            ("127.0.0.1", self.port), timeout=PATIENCE_S, source_address=(source, 0)
        )
        return self.context.wrap_socket(connection, server_hostname=HOST)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        source: str = "127.0.0.1",
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, HTTPMessage, bytes]:
        """Send a request on a new connection; return status, headers and body."""
        connection = HTTPSConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        connection.sock = self.connect(source)
        try:
            connection.request(method, path, body, {"Host": HOST, **(headers or {})})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def send(self, text: str) -> bytes:
        """Send raw text on a new connection; return the bytes received until nginx closes it."""
        with self.connect() as connection:
            connection.sendall(text.replace("\n", "\r\n").encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a self-signed certificate and its key; return their folder."""
    need("openssl")
    folder = tmp_path_factory.mktemp("certificate")
    command = [
        *("openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-days", "2"),
        *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", f"/CN={HOST}"),
        *("-addext", f"subjectAltName=DNS:{HOST}"),
        *("-keyout", f"{folder}/privkey.pem", "-out", f"{folder}/fullchain.pem"),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE_S)
    return folder


Start = Callable[..., Front]


@pytest.fixture(scope="module")
def start(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts an nginx in front of an upstream, until the module ends."""
    with ExitStack() as started:

        def start(upstream_port: int, before: str = "", **directives: str) -> Front:
            port, plain_port = free_port(), free_port()
            sites = configured(upstream_port, port, plain_port, certificate, **directives)
            folder = tmp_path_factory.mktemp("nginx") / "server"
            error_log = started.enter_context(nginx(folder, before + sites, port))
            context = ssl.create_default_context(cafile=str(certificate / "fullchain.pem"))
            return Front(port, plain_port, error_log, context)

        yield start


def configured(
    upstream_port: int, port: int, plain_port: int, certificate: Path, **directives: str
) -> str:
    """Return the configuration with the test's ports, folders and values of directives."""
    text = CONFIGURATION
    for pattern, replacement in (
        (r"server 127\.0\.0\.1:8000;", f"server 127.0.0.1:{upstream_port};"),
        (r"listen 80;", f"listen 127.0.0.1:{plain_port};"),
        (r"listen \[::\]:80;", ""),  # a host may be without IPv6
        (r"listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;"),
        (r"listen \[::\]:443 ssl;", ""),
        (r"/etc/ssl/vulcan/fullchain\.pem", f"{certificate}/fullchain.pem"),
        (r"/etc/ssl/vulcan/privkey\.pem", f"{certificate}/privkey.pem"),
        *((rf"\b{name} [^;]+;", f"{name} {value};") for name, value in directives.items()),
    ):
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    return text


class Echo(ThreadingHTTPServer):
    """An upstream that responds with the headers of the request as received."""

    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), EchoHandler)
        self.paths: list[str] = []


class EchoHandler(BaseHTTPRequestHandler):
    server: Echo

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.rfile.read(int(self.headers.get("Content-Length", "0")))
        body = json.dumps(self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = Thread(target=server.serve_forever, args=[0.02])
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def before_echo(start: Start, echo: Echo) -> Front:
    return start(echo.server_port)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    cache = {"CACHE_URL": f"filecache://{folder}/cache", "THROTTLE_SIGN_IN": "3/min"}
    site = Site(folder, **PRODUCTION, **cache)
    try:
        site.prepare()
        assert site.manage("shell", "--no-imports", "-c", USER).returncode == 0
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def server(site: Site) -> Program:
    """A gunicorn with eight threads, which eight slow clients would block."""
    options = [f"--bind=127.0.0.1:{site.port}", "--no-control-socket", "--workers=2", "--threads=4"]
    command = [sys.executable, "-m", "gunicorn", *options, "vulcan_site.wsgi"]
    program = site.program(command, "web")
    program.wait_for_output("Listening at")
    return program


@pytest.fixture(scope="module")
def front(start: Start, site: Site, server: Program) -> Front:
    return start(site.port)


@pytest.fixture
def head(site: Site) -> dict[str, str]:
    return {"Authorization": f"Token {site.token}", "Content-Type": "application/json"}


def workload(**fields: Any) -> str:
    return json.dumps({"runtime": "node", "code": RETURNS, "input": 1, **fields})


def error(answer: tuple[int, HTTPMessage, bytes]) -> tuple[int, str]:
    """Return status and error code; check that the response has the form of Vulcan's errors."""
    status, headers, body = answer
    assert headers["Content-Type"] == "application/json", body
    document = json.loads(body)
    assert document["type"] == ("client_error" if status < 500 else "server_error")
    [found] = document["errors"]
    assert found["detail"]
    assert found["attr"] is None
    return status, found["code"]


def lines(server: Program, request_id: str) -> list[dict[str, Any]]:
    """Wait for the access line of a request; return all log lines with its id."""

    def found() -> list[dict[str, Any]]:
        printed = [json.loads(line) for line in server.printed.splitlines(True) if line[-1] == "\n"]
        matching = [one for one in printed if one.get("request_id") == request_id]
        return matching if any(one["event"] == "request" for one in matching) else []

    return wait_until(found, f"no line of {request_id}")


# Requests to the upstream


def test_forwarded_headers_of_the_client_are_replaced(before_echo: Front):
    _, _, body = before_echo.ask("GET", "/", source="127.0.0.7", headers=FORGED)
    received = json.loads(body)
    headers = [(name, value) for name, value in received if "orward" in name or name == "Host"]
    assert sorted(headers) == [
        ("Host", HOST),
        ("X-Forwarded-For", "127.0.0.7"),
        ("X-Forwarded-Host", HOST),
        ("X-Forwarded-Proto", "https"),
    ]


def test_headers_with_underscores_are_dropped(before_echo: Front):
    forwarded = {"X-Request-ID": "asked-1", "Idempotency-Key": "one", "Last-Event-ID": "3"}
    _, _, body = before_echo.ask("GET", "/", headers={**UNDERSCORES, **forwarded})
    received = dict(json.loads(body))
    assert not {*UNDERSCORES} & {*received}
    assert {name: received[name] for name in forwarded} == forwarded


@pytest.mark.parametrize(
    "path",
    [
        *("/metrics", "/metrics/", "/metrics?x=1", "/%6detrics", "//metrics", "/./metrics"),
        *("/v1/../metrics", "/metrics%2F", "/metrics#x", f"https://{HOST}/metrics"),
    ],
)
def test_metrics_are_not_proxied(before_echo: Front, echo: Echo, path: str):
    count = len(echo.paths)
    assert error(before_echo.ask("GET", path)) == (404, "not_found")
    assert echo.paths[count:] == []


def test_other_paths_are_proxied_unchanged(before_echo: Front, echo: Echo):
    for path in ("/v1/%6eodes?a=%2F", "/metrics.txt", "/healthz", "/v1//x"):
        assert before_echo.ask("GET", path)[0] == 200
        assert echo.paths[-1] == path


# nginx's own responses


@pytest.mark.parametrize(
    ("status", "code", "request_head"),
    [
        (400, "bad_request", "GET / HTTP/1.1\nHost: one\nHost: two\n\n"),
        (400, "bad_request", "GET / HTTP/1.1\n\n"),
        (400, "bad_request", "nonsense\n\n"),
        (400, "bad_request", "GET / HTTP/7.0\nHost: one\n\n"),
        (400, "bad_request", "POST / HTTP/1.1\nHost: one\nTransfer-Encoding: gzip\n\n"),
        (400, "bad_request", "POST / HTTP/1.1\nHost: one\nContent-Length: x\n\n"),
        (404, "not_found", "GET /.error HTTP/1.1\nHost: one\nConnection: close\n\n"),
        (405, "method_not_allowed", "TRACE / HTTP/1.1\nHost: one\nConnection: close\n\n"),
        (414, "uri_too_long", f"GET /{'x' * 10_000} HTTP/1.1\nHost: one\n\n"),
        (431, "header_too_large", f"GET / HTTP/1.1\nHost: one\nX: {'x' * 10_000}\n\n"),
    ],
)
def test_errors_of_nginx_have_the_form_of_vulcans(
    before_echo: Front, status: int, code: str, request_head: str
):
    head, _, body = before_echo.send(request_head).partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status}".encode())
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["errors"][0]["code"] == code


def test_without_an_upstream_requests_are_502_unavailable(start: Start):
    answer = start(free_port()).ask("GET", "/v1/")
    assert error(answer) == (502, "unavailable")
    assert answer[1]["Retry-After"] == "5"


def test_plain_http_redirects_to_https(before_echo: Front):
    with socket.create_connection(("127.0.0.1", before_echo.plain_port), PATIENCE_S) as connection:
        head = f"POST /v1/workloads?x=1 HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 308 ")  # keeps the method
    assert f"Location: https://{HOST}/v1/workloads?x=1\r\n".encode() in answer


# Vulcan behind nginx


def test_a_request_is_logged_with_its_id_and_its_clients_address(
    front: Front, server: Program, head: dict[str, str]
):
    forged = {**head, **FORGED, **UNDERSCORES, "X-Request-ID": "asked-2"}
    status, headers, _ = front.ask("POST", "/v1/workloads", workload(), "127.0.0.7", forged)
    assert (status, headers["X-Request-ID"]) == (201, "asked-2")
    assert {line["address"] for line in lines(server, "asked-2")} == {"127.0.0.7"}
    status, headers, _ = front.ask("GET", "/v1/routes", source="127.0.0.9")
    [line] = lines(server, headers["X-Request-ID"])
    assert (status, line["address"]) == (200, "127.0.0.9")


def test_links_use_the_public_host(front: Front, head: dict[str, str]):
    forged = {**head, **FORGED, **UNDERSCORES}
    status, headers, body = front.ask("POST", "/v1/workloads/async", workload(), headers=forged)
    assert status == 202
    assert re.fullmatch(f"https://{HOST}/v1/workloads/[^/]+", headers["Location"])
    _, _, body = front.ask("GET", "/v1/", headers=forged)
    links = [value for value in json.loads(body).values() if isinstance(value, str)]
    assert links
    assert all(link.startswith(f"https://{HOST}/v1/") for link in links)
    assert error(front.ask("GET", "/v1/", headers={"Host": "evil.example.org"}))[0] == 400


class Browser:
    """A client that signs in by the form of the admin."""

    def __init__(self, front: Front, source: str) -> None:
        self._front, self._source = front, source
        _, headers, _ = front.ask("GET", "/admin/login/", source=source)
        cookie = headers["Set-Cookie"]
        assert "Secure" in cookie
        self._token = re.search("csrftoken=([^;]+)", cookie)[1]

    def sign_in(self, password: str, origin: str, **headers: str) -> tuple[int, HTTPMessage]:
        form = f"csrfmiddlewaretoken={self._token}&username=eve&password={password}"
        own_headers = {
            "Content-Type": "application/x-www-form-urlencoded",
            "Cookie": f"csrftoken={self._token}",
            "Origin": origin,
        }
        status, response_headers, _ = self._front.ask(
            "POST", "/admin/login/?next=/v1/", form, self._source, {**own_headers, **headers}
        )
        return status, response_headers


def test_forms_are_accepted_from_the_public_origin_only(front: Front):
    browser = Browser(front, "127.0.0.20")
    assert browser.sign_in("right", "https://evil.example.org", **FORGED)[0] == 403
    assert browser.sign_in("right", f"http://{HOST}", **FORGED)[0] == 403
    status, headers = browser.sign_in("right", f"https://{HOST}", **FORGED)
    assert (status, headers["Location"]) == (302, "/v1/")


def test_failed_log_ins_count_per_connection_address(front: Front):
    browser, origin = Browser(front, "127.0.0.21"), f"https://{HOST}"
    statuses = [
        browser.sign_in("wrong", origin, **{"X-Forwarded-For": f"198.51.100.{number}"})[0]
        for number in range(4)
    ]
    assert statuses == [200, 200, 200, 429]
    assert Browser(front, "127.0.0.22").sign_in("right", origin)[0] == 302


def test_log_lines_are_streamed_while_the_workload_runs(front: Front, head: dict[str, str]):
    code = "console.log('begun'); await new Promise((done) => setTimeout(done, 250_000))"
    body = workload(code=code, resources={"timeout_s": 280})
    _, _, submitted = front.ask("POST", "/v1/workloads/async", body, headers=head)
    url = f"/v1/workloads/{json.loads(submitted)['id']}"
    connection = HTTPSConnection("127.0.0.1", front.port, timeout=PATIENCE_S)
    connection.sock = front.connect()
    try:
        connection.request(
            "GET", f"{url}/logs", None, {**head, "Host": HOST, "Accept": "text/event-stream"}
        )
        events = connection.getresponse()
        assert events.headers["Content-Type"].startswith("text/event-stream")
        read_until(events, b"begun")
        assert json.loads(front.ask("GET", url, headers=head)[2])["status"] == "running"
        assert front.ask("DELETE", url, headers=head)[0] in (200, 202, 204)
        read_until(events, b"event: done")
    finally:
        connection.close()


def read_until(response: HTTPResponse, text: bytes) -> None:
    for line in iter(response.readline, b""):
        if text in line:
            return
    pytest.fail(f"the stream ended without {text!r}")


# Bodies


def test_a_body_above_vulcans_limit_is_refused_by_vulcan(front: Front, head: dict[str, str]):
    answer = front.ask("POST", "/v1/workloads", b" " * (max_body_bytes() + 1), headers=head)
    assert error(answer) == (413, "payload_too_large")
    assert f"{max_body_bytes():,}" in json.loads(answer[2])["errors"][0]["detail"]


def test_a_body_above_nginx_limit_has_the_same_error(
    front: Front, server: Program, head: dict[str, str]
):
    [megabytes] = re.findall(r"client_max_body_size (\d+)m;", CONFIGURATION)
    too_large = (int(megabytes) << 20) + 1
    assert too_large > max_body_bytes() + 1
    body = b" " * too_large
    assert error(front.ask("POST", "/v1/workloads", body, headers=head)) == (
        *(413, "payload_too_large"),
    )
    waiting = f"POST /v1/workloads HTTP/1.1\nHost: {HOST}\nContent-Length: {too_large}\n"
    assert front.send(f"{waiting}Expect: 100-continue\n\n").startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("kind", ["text/csv", "application/json; charset=hex"])
def test_an_unsupported_media_type_is_refused_by_vulcan(
    front: Front, head: dict[str, str], kind: str
):
    answer = front.ask("POST", "/v1/workloads", b"{}", headers={**head, "Content-Type": kind})
    assert error(answer) == (415, "unsupported_media_type")


def test_a_chunked_body_reaches_vulcan_with_its_length(front: Front, head: dict[str, str]):
    chunks = iter([workload().encode()[:5], workload().encode()[5:]])
    status, _, body = front.ask("POST", "/v1/workloads", chunks, headers=head)
    assert (status, json.loads(body)["output"]) == (201, 1)


# Slow clients

HALF_A_HEAD = f"GET /v1/routes HTTP/1.1\r\nHost: {HOST}\r\nX-Slow: "
HALF_A_BODY = f"POST /v1/workloads HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 1000\r\n\r\n{{"


@contextmanager
def slow(front: Front, text: str, sources: list[str]) -> Iterator[list[ssl.SSLSocket]]:
    """Yield one connection from each address, after sending `text` on it."""
    with ExitStack() as opened:
        connections = [opened.enter_context(front.connect(source)) for source in sources]
        for connection in connections:
            connection.sendall(text.encode())
        yield connections


def is_open(connection: ssl.SSLSocket) -> bool:
    """Return whether the connection is open and has received nothing."""
    connection.setblocking(False)
    try:
        connection.recv(1)
    except ssl.SSLWantReadError:
        return True
    except OSError:
        pass
    return False


def test_a_thousand_slow_clients_do_not_delay_others(
    start: Start, site: Site, server: Program, head: dict[str, str]
):
    """The slow clients never disconnect. Half of them are users, whose bodies Vulcan would read."""
    front = start(site.port, client_header_timeout="1h", client_body_timeout="1h")
    sources = [f"127.0.1.{number % 50 + 1}" for number in range(500)]
    of_users = "".join(f"\r\n{name}: {value}" for name, value in head.items())
    half_a_body = HALF_A_BODY.replace("\r\n", f"{of_users}\r\n", 1)
    with slow(front, HALF_A_HEAD, sources) as heads, slow(front, half_a_body, sources) as bodies:
        for number in range(20):
            body = workload(input=number)
            status, _, answer = front.ask("POST", "/v1/workloads", body, headers=head)
            assert (status, json.loads(answer)["output"]) == (201, number)
            assert front.ask("GET", "/v1/routes")[0] == 200
        assert all(map(is_open, heads + bodies))


@pytest.mark.parametrize("text", [HALF_A_HEAD, HALF_A_BODY])
def test_a_slow_request_never_reaches_vulcan(start: Start, echo: Echo, text: str):
    front = start(echo.server_port, client_header_timeout="1s", client_body_timeout="1s")
    count = len(echo.paths)
    with slow(front, text, ["127.0.0.1"]) as [connection]:
        assert connection.recv(1) == b""
    assert echo.paths[count:] == []


def test_concurrent_requests_per_client_are_limited(start: Start, echo: Echo):
    front = start(echo.server_port, client_body_timeout="1h")
    [limit] = map(int, re.findall(r"limit_conn vulcan_clients (\d+);", CONFIGURATION))
    with slow(front, HALF_A_BODY, ["127.0.3.1"] * limit) as connections:
        refused = wait_until(lambda: refusal(front, "127.0.3.1"), "no request was refused")
        assert error(refused) == (429, "too_many_connections")
        assert refused[1]["Retry-After"] == "5"
        assert front.ask("GET", "/", source="127.0.3.2")[0] == 200
        assert all(map(is_open, connections))
    wait_until(lambda: not refusal(front, "127.0.3.1"), "the connections were not released")


def test_an_ipv6_prefix_of_64_bits_is_one_client(start: Start, echo: Echo):
    """Addresses come from a proxy in front of nginx, configured as in docs/operations.md."""
    real_ip = "set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For;"
    front = start(echo.server_port, real_ip, limit_conn="vulcan_clients 1")

    def ask(address: str) -> tuple[int, HTTPMessage, bytes]:
        return front.ask("GET", "/", headers={"X-Forwarded-For": address})

    head = HALF_A_BODY.replace("\r\n", "\r\nX-Forwarded-For: 2001:db8:1:1::1\r\n", 1)
    with slow(front, head, ["127.0.0.1"]):
        wait_until(lambda: ask("2001:db8:1:1::1")[0] == 429)
        assert error(ask("2001:db8:1:1:ffff::")) == (429, "too_many_connections")
        for other in ("2001:db8:1:2::1", "198.51.100.1"):
            status, _, received = ask(other)
            assert (status, dict(json.loads(received))["X-Forwarded-For"]) == (200, other)


def refusal(front: Front, source: str) -> tuple[int, HTTPMessage, bytes] | None:
    answer = front.ask("GET", "/", source=source)
    return None if answer[0] == 200 else answer
