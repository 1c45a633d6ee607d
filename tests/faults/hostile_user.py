"""A user who exhausts a server: log streams, waits, slow bodies, submissions."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.faults.site import SLEEPS, Site
from tests.support.programs import PATIENCE_S
from tests.support.servers import user_script

MAX_OPEN = 64  # as many as nginx lets one client have, by ops/nginx/vulcan.conf
ANSWER_S = 1.0  # connections without a response by then are left open


class HostileUser:
    """Sends dozens of requests, and reads only the beginning of each response."""

    def __init__(self, site: Site) -> None:
        self._port = site.port
        done = site.manage("shell", "--no-imports", "-c", user_script("eve"))
        self._token = done.stdout.strip()
        self._open: list[socket.socket] = []

    def send(
        self, method: str, path: str, body: bytes = b"", size: int | None = None, **more: str
    ) -> socket.socket:
        """Send a request, or the beginning of one of `size`, on a connection of its own."""
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
        self._open.append(connection)
        return connection

    def run(self, code: str, given: object, **more: str) -> socket.socket:
        """Request a run without waiting for its end."""
        return self.send("POST", "/v1/workloads", _program(code, given), **more)

    def submit(self, code: str, given: object) -> dict[str, Any]:
        """Submit a workload and return the response, which may be an error envelope."""
        body = _program(code, given)
        connection = self.send("POST", "/v1/workloads/async", body, Connection="close")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found

    def read_log(self, workload_id: str) -> socket.socket:
        """Follow a log without reading it."""
        return self.send("GET", f"/v1/workloads/{workload_id}/logs")

    def begin_body(self) -> socket.socket:
        """Send the headers of a large body and its beginning."""
        return self.send("POST", "/v1/workloads", b'{"runtime": ', size=10_000_000)

    @contextmanager
    def at_full_tilt(self) -> Iterator[None]:
        """Repeat all attacks, each in its own thread; close connections that got a response."""
        workload_id = self.submit(SLEEPS, 300)["id"]
        stop = threading.Event()

        def repeat(attack: Callable[[], socket.socket]) -> None:
            while not stop.is_set():
                with suppress(OSError):
                    connection = attack()
                    connection.settimeout(ANSWER_S)
                    connection.recv(65536)
                while len(self._open) > MAX_OPEN and not stop.is_set():
                    self._open.pop(0).close()

        attacks: list[Callable[[], socket.socket]] = [
            lambda: self.run(SLEEPS, 0.2),
            lambda: self.run(SLEEPS, 60, **{"Idempotency-Key": "k"}),
            lambda: self.read_log(workload_id),
            self.begin_body,
        ]
        threads = [threading.Thread(target=repeat, args=[attack]) for attack in attacks]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            self.close()

    def close(self) -> None:
        """Close all open connections."""
        while self._open:
            self._open.pop().close()


def _program(code: str, given: object) -> bytes:
    return json.dumps({"runtime": "node", "code": code, "input": given}).encode()
