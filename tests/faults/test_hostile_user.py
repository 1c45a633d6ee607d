"""One user takes all that a server gives; another one is served as ever."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.faults.site import RETURNS, SLEEPS, Site
from tests.programs import PATIENCE_S

EVE = """
from django.contrib.auth.models import User
from knox.models import get_token_model
print(get_token_model().objects.create(user=User.objects.create_user("eve"))[1])
"""
THREADS = 8
MANY = 3 * THREADS


class Eve:
    """A user who sends requests by the dozen and reads no answer."""

    def __init__(self, site: Site) -> None:
        self._port = site.port
        self._token = site.manage("shell", "--no-imports", "-c", EVE).stdout.strip()
        self.connections: list[socket.socket] = []

    def send(self, method: str, path: str, body: bytes = b"", size: int | None = None, **more: str):
        """Send a request, or the beginning of one, on a connection of its own."""
        head = {
            "Host": "localhost",
            "Authorization": f"Token {self._token}",
            "Content-Type": "application/json",
            "Content-Length": str(len(body) if size is None else size),
            **more,
        }
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {text}" for name, text in head.items())]
        connection = socket.create_connection(("127.0.0.1", self._port), timeout=PATIENCE_S)
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        self.connections.append(connection)
        return connection

    def run(self, code: str, given: object, path: str = "/v1/workloads", **more: str):
        body = {"runtime": "node", "code": code, "input": given}
        return self.send("POST", path, json.dumps(body).encode(), **more)


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(65536).split()[1])


@pytest.fixture
def eve(local: Site) -> Iterator[Eve]:
    local.serve(threads=THREADS)
    local.healthy()
    eve = Eve(local)
    yield eve
    with ExitStack() as closing:
        for connection in eve.connections:
            closing.enter_context(connection)


def is_served(site: Site) -> None:
    """Let the honest user do what people do; nothing of it is refused."""
    for number in range(5):
        for path in ("backends", "workloads"):
            assert site.ask("GET", path)[0] == 200
        status, workload = site.ask(
            "POST", "workloads", {"runtime": "node", "code": RETURNS, "input": number}
        )
        assert status == 201, workload
        assert workload["output"] == number


def test_streams(local: Site, eve: Eve):
    answer = eve.run(SLEEPS, 600, "/v1/workloads/async").recv(65536)
    workload_id = json.loads(answer.partition(b"\r\n\r\n")[2])["id"]
    streams = [eve.send("GET", f"/v1/workloads/{workload_id}/logs") for _ in range(MANY)]
    statuses = [status_of(one) for one in streams]
    assert (statuses.count(200), statuses.count(429)) == (THREADS // 4, MANY - THREADS // 4)
    is_served(local)


def test_requests_that_wait_for_one_key(local: Site, eve: Eve):
    waiting = [eve.run(SLEEPS, 60, **{"Idempotency-Key": "k"}) for _ in range(MANY)]
    is_served(local)
    told = [status_of(one) for one in waiting[THREADS:]]
    assert set(told) == {202}


def test_submissions(local: Site, eve: Eve):
    """She has ten times as many in line as there are slots, and goes on."""
    stop = threading.Event()

    def submit() -> None:
        while not stop.is_set():
            eve.run(SLEEPS, 0.2, "/v1/workloads/async").recv(65536)

    for _ in range(40):
        eve.run(SLEEPS, 0.2, "/v1/workloads/async").recv(65536)
    thread = threading.Thread(target=submit)
    thread.start()
    try:
        is_served(local)
    finally:
        stop.set()
        thread.join()


def test_bodies_that_do_not_come(local: Site, eve: Eve):
    for _ in range(MANY):
        eve.send("POST", "/v1/workloads", b'{"runtime": ', size=10_000_000)
    is_served(local)
