"""The cost of `GET /v1/backends`, relative to a plain Django view in the same gunicorn worker."""

import selectors
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support.programs import running
from tests.support.servers import LISTENING, gunicorn

from .ratios import Ratio, at_least, in_turns

ROUNDS = 10
ROUND_S = 1.0
CONNECTIONS = 8
SERVER = gunicorn(workers=1, threads=8)


def ratios() -> Iterator[Ratio]:
    with tempfile.TemporaryDirectory() as folder:
        settings = {"DJANGO_SETTINGS_MODULE": "tools.bench.settings"}
        with running(SERVER, LISTENING, Path(folder), **settings) as (port, _):
            yield from _ratios(int(port))


def _ratios(port: int) -> Iterator[Ratio]:
    for _ in range(2):  # the first request starts the probes; the second comes after them
        first = Load(port, "/v1/backends").response()
        time.sleep(ROUND_S)
    etag = next(line for line in first.split(b"\r\n") if line.lower().startswith(b"etag: "))
    plain = Load(port, "/plain")
    full = Load(port, "/v1/backends")
    unchanged = Load(port, "/v1/backends", f"If-None-Match: {etag[6:].decode()}\r\n")
    for load in (plain, full, unchanged):
        load.rate()  # to warm up
    rates = in_turns(ROUNDS, unchanged.rate, full.rate, plain.rate)
    for load, status in ((plain, b" 200 "), (full, b" 200 "), (unchanged, b" 304 ")):
        if status not in load.response().split(b"\r\n")[0]:  # the response changed during the run
            raise RuntimeError(f"{load.path} did not return{status.decode()}")
    if plain.response().partition(b"\r\n\r\n")[2] != full.response().partition(b"\r\n\r\n")[2]:
        raise RuntimeError("the two sides returned different bodies")
    yield at_least(0.9, "GET /v1/backends, 304 : plain Django view", rates[0], rates[2])
    yield at_least(0.6, "GET /v1/backends, full : plain Django view", rates[1], rates[2])


@dataclass(frozen=True)
class Load:
    """A load generator that requests one path repeatedly on several keep-alive connections."""

    port: int
    path: str
    headers: str = ""

    @property
    def request(self) -> bytes:
        return f"GET {self.path} HTTP/1.1\r\nHost: localhost\r\n{self.headers}\r\n".encode()

    def response(self) -> bytes:
        """Return one complete response; later ones must have the same length."""
        with self._connect() as connection:
            connection.sendall(self.request)
            data = connection.recv(65536)
            while b"\r\n\r\n" not in data:
                data += connection.recv(65536)
            head, _, body = data.partition(b"\r\n\r\n")
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length: "):
                    length = int(line[16:])
            while len(body) < length:
                body += connection.recv(65536)
            return head + b"\r\n\r\n" + body

    def rate(self) -> float:
        """Return the responses per second during one round."""
        size, request, responses = len(self.response()), self.request, 0
        with selectors.DefaultSelector() as selector:
            connections = [self._connect() for _ in range(CONNECTIONS)]
            missing = dict.fromkeys(connections, size)
            for connection in connections:
                selector.register(connection, selectors.EVENT_READ)
                connection.sendall(request)
            started = time.perf_counter()
            while time.perf_counter() < started + ROUND_S:
                for key, _ in selector.select(ROUND_S):
                    connection = key.fileobj
                    received = len(connection.recv(65536))
                    if not received:
                        raise RuntimeError("the server closed a connection")
                    missing[connection] -= received
                    if missing[connection] <= 0:
                        responses += 1
                        missing[connection] = size
                        connection.sendall(request)
            elapsed = time.perf_counter() - started
            for connection in connections:
                connection.close()
        return responses / elapsed

    def _connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)
