"""Attack a real server that has few threads with malformed and slow requests over raw sockets.

During and after each attack, other clients are served on their own connections.
"""

import inspect
import json
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest
from gunicorn import http
from gunicorn.config import Config
from gunicorn.http.errors import NoMoreData
from gunicorn.workers.gthread import ThreadWorker
from hypothesis import given
from hypothesis import strategies as st

from tests.support.processes import children
from tests.support.programs import PATIENCE_S, manage, running, wait_until
from tests.support.servers import LISTENING, gunicorn, user_script
from vulcan_site import gunicorn_worker
from vulcan_site.gunicorn_worker import ClientSocket, GunicornWorker

THREADS = 4
MANY = 5 * THREADS  # clients that wait in the loop: five times as many as threads could serve
BLOCKING = THREADS + 2  # clients that threads wait for
SERVER = gunicorn(workers=1, threads=THREADS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("raw")
    assert manage("migrate", "--verbosity", "0", folder=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    return manage("shell", "--no-imports", "-c", user_script("ada"), folder=folder).stdout.strip()


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator["Server"]:
    with running(SERVER, LISTENING, folder) as (port, printed):
        yield Server(int(port), int(re.search(LISTENING, printed)[2]))


class Server:
    """A server and its only worker, which has to survive every attack."""

    def __init__(self, port: int, master: int) -> None:
        self.port = port
        self._master = master
        self.answers_others()
        self._worker = self._find_worker()

    def _find_worker(self) -> int:
        [worker] = wait_until(lambda: [pid for pid in children(self._master) if _is_worker(pid)])
        return worker

    def connect(self, data: bytes = b"", receive_buffer: int = 0) -> socket.socket:
        client = socket.socket()
        if receive_buffer:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        client.settimeout(PATIENCE_S)
        client.connect(("127.0.0.1", self.port))
        client.sendall(data)
        return client

    def send_raw(self, data: bytes, *, ends: bool = False) -> bytes:
        """Send this, optionally close for writing, and return all data until the server closes."""
        with self.connect(data) as client:
            if ends:
                client.shutdown(socket.SHUT_WR)
            return rest(client)

    @contextmanager
    def attacked(self, clients: int, data: bytes, **options: int) -> Iterator[list[socket.socket]]:
        """Keep connections open that have sent this, and check that others are served."""
        with ExitStack() as stack:
            connections = [
                stack.enter_context(self.connect(data, **options)) for _ in range(clients)
            ]
            self.answers_others()
            yield connections
        self.answers_others()
        assert self._find_worker() == self._worker

    def descriptors(self) -> int:
        return len(list(Path(f"/proc/{self._worker}/fd").iterdir()))

    def answers_others(self) -> None:
        for path in ("/healthz", "/v1/backends"):
            assert self.ask("GET", path)[0] == 200

    def ask(self, method: str, path: str, body=None, **headers: str) -> tuple[int, bytes]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, body and json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _is_worker(pid: int) -> bool:
    with suppress(OSError):
        return b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def rest(client: socket.socket) -> bytes:
    """Return all data until the server closes or resets the connection."""
    received = b""
    with suppress(ConnectionResetError):
        while data := client.recv(65536):
            received += data
    return received


def send_for_ever(client: socket.socket, data: bytes) -> None:
    while True:
        client.sendall(data)


def receive_for_ever(client: socket.socket) -> None:
    while client.recv(10):
        pass


def statuses(answers: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.[01] (\d{3}) ", answers)]


GET = b"GET /v1/backends HTTP/1.1\r\nHost: localhost\r\n"
UNREAD = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"  # its body is never read
POST = b"POST /v1/workloads HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
CLOSE = b"Connection: close\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SCRIPT = "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"
SECOND = b"GET /v1/smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"


def length(value: bytes) -> bytes:
    return b"Content-Length: " + value + b"\r\n"


REFUSED = {  # by gunicorn's parser; nothing after it is parsed as a request
    "two lengths": POST + length(b"2") + length(b"2") + b"\r\n{}",
    "two lengths that differ": POST + length(b"0") + length(b"40") + b"\r\n" + SECOND,
    "CL.TE": POST + length(b"%d" % (5 + len(SECOND))) + CHUNKED + b"\r\n0\r\n\r\n" + SECOND,
    "TE.CL": POST + CHUNKED + length(b"4") + b"\r\n5c\r\n" + SECOND + b"0\r\n\r\n",
    "TE twice": POST + CHUNKED + CHUNKED + b"\r\n0\r\n\r\n" + SECOND,
    "TE.TE": POST + CHUNKED + b"tRANSFER-eNCODING: x\r\n\r\n0\r\n\r\n" + SECOND,
    "TE that is unknown": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + SECOND,
    "TE and chunked again": POST + b"Transfer-Encoding: chunked, cHuNkEd\r\n\r\n" + SECOND,
    "TE of identity": POST + b"Transfer-Encoding: identity\r\n\r\n" + SECOND,
    "TE with a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + SECOND,
    "TE with a space": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SECOND,
    "TE in HTTP/1.0": POST.replace(b"1.1", b"1.0") + CHUNKED + b"\r\n0\r\n\r\n" + SECOND,
    "folded line": GET + b"X: a\r\n b\r\n\r\n",
    "folded length": POST + b"Content-Length:\r\n 2\r\n\r\n{}",
    "bare LF in the request line": b"GET /v1/backends HTTP/1.1\nHost: localhost\r\n\r\n",
    "bare LF in a header": GET + b"X: a\nY: b\r\n\r\n",
    "bare LF everywhere": GET.replace(b"\r", b"") + b"\n",
    "bare CR": GET + b"X: a\rY: b\r\n\r\n",
    "NUL in a value": GET + b"X: a\0b\r\n\r\n",
    "NUL in a name": GET + b"X\0: a\r\n\r\n",
    "NUL in a path": b"GET /v1/\0 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "NULs": b"\0" * 100 + b"\r\n\r\n",
    "no name": GET + b": a\r\n\r\n",
    "no colon": GET + b"X\r\n\r\n",
    "no Host": b"GET /v1/backends HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: localhost\r\n\r\n",
    "HTTP/0.9": b"GET /v1/backends\r\n\r\n",
    "HTTP/0.9 by its name": GET.replace(b"1.1", b"0.9") + b"\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/1.10": GET.replace(b"1.1", b"1.10") + b"\r\n",
    "http/1.1": GET.replace(b"HTTP", b"http") + b"\r\n",
    "no slash": GET.replace(b"/v1", b"v1") + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
    "nothing but line ends": b"\r\n" * 10,
}
LENGTHS = (
    *(b"-1", b"+1", b"1_0", b"1 0", b"0x1", b"", b"1,1", b"1e3", b"1.0", b"\xb2", b"9" * 5000),
    *(b"\xd9\xa1", b"1;", b"\x001"),
)
ANSWERED = {  # statuses of the only response
    "long request line": (GET.replace(b"/v1", b"/" + b"x" * 10_000) + b"\r\n", {414}),
    "long header": (GET + b"X: " + b"x" * 10_000 + b"\r\n\r\n", {431}),
    "many headers": (GET + b"X: a\r\n" * 200 + b"\r\n", {431}),
    "long head without end": (GET + b"X: a\r\n" * 20_000, {431}),
    "long line without end": (b"GET /" + b"x" * 100_000, {414, 431}),
    "unknown expectation": (GET + b"Expect: x\r\n\r\n", {417}),
    "method of its own": (GET.replace(b"GET", b"BREW") + CLOSE + b"\r\n", {405}),
    "other server": (GET.replace(b"localhost", b"evil.example") + CLOSE + b"\r\n", {200, 400}),
    "CONNECT": (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404}),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n" + CLOSE + b"\r\n", {400, 404}),
    "absolute form": (GET.replace(b"/v1", b"http://localhost/v1") + CLOSE + b"\r\n", {200}),
    "huge length": (POST + length(b"9" * 18) + b"\r\n{}", {401, 413}),
    "chunked": (POST + CLOSE + CHUNKED + b"\r\n2\r\n{}\r\n0\r\n\r\n", {401, 411}),
    "chunked, odd casing": (POST + b"tRANSFER-eNCODING:\tcHUNKED\r\n\r\nx", {401, 411}),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", {401, 411}),
    "negative chunk": (UNREAD + CHUNKED + b"\r\n-1\r\n" + SECOND, {200}),
    "huge chunk": (UNREAD + CHUNKED + b"\r\n" + b"f" * 16 + b"\r\n" + SECOND, {200}),
    "chunk size without end": (UNREAD + CHUNKED + b"\r\n" + b"1" * 20_000, {200}),
    "chunk without its end": (UNREAD + CHUNKED + b"\r\n1\r\nabc\r\n" + SECOND, {200}),
    "bad extension": (UNREAD + CHUNKED + b'\r\n1;"\r\na\r\n0\r\n\r\n' + SECOND, {200}),
    "forbidden trailer": (UNREAD + CHUNKED + b"\r\n0\r\nContent-Length: 5\r\n\r\n" + SECOND, {200}),
    "body that nobody reads": (UNREAD + length(b"100000") + b"\r\n" + b"x" * 40_000, {200}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_ambiguous_requests_are_400(server: Server, name: str):
    assert statuses(server.send_raw(REFUSED[name])) == [400]
    server.answers_others()


@pytest.mark.parametrize("value", LENGTHS)
def test_lengths_that_are_not_digits_are_400(server: Server, value: bytes):
    assert statuses(server.send_raw(POST + length(value) + b"\r\n{}")) == [400]
    server.answers_others()


@pytest.mark.parametrize("name", ANSWERED)
def test_each_request_has_one_response(server: Server, name: str):
    data, expected = ANSWERED[name]
    [status] = statuses(server.send_raw(data))
    assert status in expected
    server.answers_others()


def test_a_body_that_ends_early_is_400(server: Server, token: str):
    signed_in = POST + f"Authorization: Token {token}\r\n".encode()
    for sent in (0, 10, 50_000):
        data = signed_in + length(b"100000") + b"\r\n" + b" " * sent
        assert statuses(server.send_raw(data, ends=True)) == [400]
    assert server.send_raw(POST, ends=True) == b""  # the head is incomplete


@pytest.mark.parametrize("path", ["/v1/workloads", "/api-auth/login/", "/admin/login/"])
@pytest.mark.parametrize("framing", [CHUNKED, length(b"999999999999")])
def test_endless_bodies_are_rejected_unread(server: Server, path, framing):
    head = POST.replace(b"/v1/workloads", path.encode()) + framing + b"\r\n"
    with server.connect(head) as client, pytest.raises(ConnectionError):
        send_for_ever(client, b"7fffffff\r\n" + b"x" * 65536)
    server.answers_others()


def test_pipelined_requests_are_answered_in_order(server: Server):
    body = b"x" * 1000 + SECOND  # it is never read
    requests = (
        *(GET + b"\r\n", POST + length(b"%d" % len(body)) + b"\r\n" + body),
        *(b"GET /v1/nope HTTP/1.1\r\nHost: localhost\r\n\r\n", GET + CLOSE + b"\r\n", SECOND),
    )
    answers = server.send_raw(b"".join(requests))
    assert statuses(answers) == [200, 401, 404, 200]
    assert b"smuggled" not in answers


def test_a_request_sent_byte_by_byte_is_served(server: Server):
    with server.connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\n" + GET + CLOSE + b"\r\n":
            client.sendall(bytes([byte]))
        assert statuses(rest(client)) == [200]


BEGUN = {  # the part of a request that was sent, and the expected statuses
    b"": [],
    b"G": [408],
    GET: [408],
    POST + length(b"100") + b"\r\n{": [408],
    GET + b"\r\n" + GET: [200, 408],
}


def test_unfinished_requests_hold_no_thread(server: Server):
    with ExitStack() as stack:
        begun = {data: stack.enter_context(server.attacked(MANY, data)) for data in BEGUN}
        for data, clients in begun.items():
            for client in clients:
                assert statuses(rest(client)) == BEGUN[data]


def test_clients_that_send_a_head_byte_by_byte_time_out(server: Server):
    def trickle(client: socket.socket, stop: threading.Event) -> None:
        with suppress(OSError):
            while not stop.wait(0.1):
                client.sendall(b"x")

    stop = threading.Event()
    with server.attacked(MANY, GET + b"X: ") as clients:
        threads = [threading.Thread(target=trickle, args=[one, stop]) for one in clients]
        for thread in threads:
            thread.start()
        try:
            for client in clients:
                assert statuses(rest(client)) in ([408], [])  # reset when bytes come after it
        finally:
            stop.set()
            for thread in threads:
                thread.join()


def test_unfinished_large_bodies_hold_no_thread_for_long(server: Server, token: str):
    head = POST + f"Authorization: Token {token}\r\n".encode() + length(b"100000") + b"\r\n"
    with server.attacked(BLOCKING, head + b" " * 50_000) as connections:
        answers = [statuses(rest(one)) for one in connections]
    assert [400] in answers
    assert all(answer in ([400], [429]) for answer in answers)  # his share of threads, and beyond


@pytest.mark.parametrize(
    "path", ["/v1/schema", "/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"]
)
def test_clients_that_do_not_read_hold_no_thread_for_long(server: Server, path: str):
    assert len(server.ask("GET", path)[1]) > 40_000
    request = GET.replace(b"/v1/backends", path.encode()) + b"\r\n"
    with server.attacked(BLOCKING, request * 200, receive_buffer=4096):
        pass


def test_clients_that_do_not_read_a_log_hold_no_thread_for_long(server: Server, token: str):
    headers = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
    code = "for (let n = 0; n < 9000; n++) console.log('x'.repeat(100));"
    status, answer = server.ask(
        "POST", "/v1/workloads", {"runtime": "node", "code": code}, **headers
    )
    workload = json.loads(answer)
    assert (status, workload["status"]) == (201, "completed")
    for path in ("", "/logs"):
        request = (
            f"GET /v1/workloads/{workload['id']}{path} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Token {token}\r\n\r\n"
        )
        with server.attacked(BLOCKING, request.encode() * 60, receive_buffer=4096):
            pass


def test_clients_that_do_not_close_their_side_delay_no_one(server: Server):
    """gunicorn's own worker waits two seconds for each, serves no one else, and is killed."""
    with server.attacked(100, b"\r\n\r\n"):
        pass
    with server.attacked(100, GET + CLOSE + b"\r\n"):
        pass


def test_connections_beyond_the_limit_replace_idle_ones(server: Server):
    # Besides connections: one that is just being accepted, and a request's database file.
    most_descriptors = server.descriptors() + 1000 + 5
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        with server.attacked(min(10_000, most - 1000), b""):
            assert server.descriptors() <= most_descriptors
            with server.attacked(1500, GET):
                assert server.descriptors() <= most_descriptors
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def test_a_worker_with_few_descriptors_keeps_some_for_requests(folder: Path):
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, limits[1]))
    with ExitStack() as stack:
        try:
            port, printed = stack.enter_context(running(SERVER, LISTENING, folder))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        few = Server(int(port), int(re.search(LISTENING, printed)[2]))
        with few.attacked(300, b""):
            pass


# What the worker relies on in gunicorn.

PIECES = (
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b"\0", b"GET", b"/", b"HTTP/1.1", b"X"),
    *(b"GET / HTTP/1.1\r\n", b"Host: x\r\n", b"Content-Length: 3\r\n", b"Expect: x\r\n", b"abc"),
)


@given(st.lists(st.sampled_from(PIECES), max_size=12))
def test_gunicorns_parser_never_waits_for_a_complete_head(pieces: list[bytes]):
    incoming = gunicorn_worker._Incoming()
    for piece in pieces:
        incoming.received += piece
        if incoming.is_complete():
            try:
                next(http.get_parser(Config(), [bytes(incoming.received)], ("127.0.0.1", 1)))
            except (NoMoreData, StopIteration):
                pytest.fail(f"it read on after {incoming.received!r}")
            except http.errors.ParseException:
                pass
            break


@pytest.mark.parametrize(
    "request_",
    [
        GET + b"\r\n",
        POST + length(b"5") + b"\r\n12345",
        POST + b"cOnTeNt-LeNgTh:\t 5 \r\n\r\n\r\n\r\n1",
        POST + length(b"5") + b"Expect: 100-continue\r\n\r\n",
        POST + CHUNKED + b"\r\n",
    ],
)
def test_a_request_is_complete_with_its_last_byte(request_: bytes):
    incoming = gunicorn_worker._Incoming()
    for byte in request_[:-1]:
        incoming.received.append(byte)
        assert not incoming.is_complete()
    incoming.received.append(request_[-1])
    assert incoming.is_complete()


def test_the_methods_that_the_worker_overrides_exist_in_gunicorn():
    for name, function in vars(GunicornWorker).items():
        theirs = getattr(ThreadWorker, name, None)
        if inspect.isfunction(function) and name not in ("__init__", *NEW):
            assert theirs is not None, name
            assert _parameters(theirs) == _parameters(function), name


NEW = (
    *("_patience_s", "_wait", "_receive", "_serve", "_half_close", "_drop", "_end", "_answer"),
    *("_close", "_stop_waiting", "_call"),
)


def _parameters(function: Callable[..., object]) -> int:
    return len(inspect.signature(function).parameters)


def test_tls_and_http2_are_refused_at_the_start():
    config = Config()
    config.set("http_protocols", "h2,h1")
    with pytest.raises(RuntimeError, match="plain HTTP/1"):
        GunicornWorker.check_config(config, None)


@pytest.mark.parametrize("direction", ["sends", "reads"])
def test_a_client_that_sends_byte_by_byte_is_dropped(monkeypatch, direction: str):
    monkeypatch.setattr(gunicorn_worker, "POLL_INTERVAL_S", 0.01)
    here, client = socket.socketpair()
    stop = threading.Event()

    def trickle() -> None:
        with suppress(OSError):
            while not stop.wait(0.001):
                client.send(b"x") if direction == "sends" else client.recv(1)

    thread = threading.Thread(target=trickle)
    thread.start()
    with client, ClientSocket.take_over(here, lambda: 0.2) as mine:
        with pytest.raises(ConnectionResetError):
            receive_for_ever(mine) if direction == "sends" else send_for_ever(mine, b"x" * 65536)
        stop.set()
        thread.join()


def test_transferred_bytes_extend_the_time_limit():
    here, client = socket.socketpair()
    with client, ClientSocket.take_over(here, lambda: 2.0 * PATIENCE_S) as mine:
        for operation in (lambda: mine.recv(100_000), lambda: mine.sendall(b"x" * 50_000)):
            mine.slow_s = 1.0
            client.sendall(b"x" * 50_000)
            operation()
            assert mine.slow_s == 0
