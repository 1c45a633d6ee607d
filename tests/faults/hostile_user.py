"""A user who takes all that a server gives: log streams, waits, slow bodies, submissions."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tests.faults.site import SLEEPS, Site
from tests.programs import PATIENCE_S

USER = """
from django.contrib.auth.models import User
from knox.models import get_token_model
print(get_token_model().objects.create(user=User.objects.create_user("eve"))[1])
"""
MAX_OPEN = 64  # as many as nginx lets one client have, by ops/nginx/vulcan.conf
ANSWER_S = 1.0  # what is not answered by then is left open


class HostileUser:
    """Sends requests by the dozen, and reads no more of an answer than its beginning."""

    def __init__(self, site: Site) -> None:
        self._port = site.port
        self._token = site.manage("shell", "--no-imports", "-c", USER).stdout.strip()
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
        """Ask for a run, which nobody waits for here."""
        return self.send("POST", "/v1/workloads", _program(code, given), **more)

    def submit(self, code: str, given: object) -> dict[str, Any]:
        """Submit a workload and return the answer, which may be an error's envelope."""
        body = _program(code, given)
        connection = self.send("POST", "/v1/workloads/async", body, Connection="close")
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
        found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
        return found

    def read_log(self, workload_id: str) -> socket.socket:
        """Follow a log that is not read."""
        return self.send("GET", f"/v1/workloads/{workload_id}/logs")

    def begin_body(self) -> socket.socket:
        """Announce a large body and send the beginning."""
        return self.send("POST", "/v1/workloads", b'{"runtime": ', size=10_000_000)

    @contextmanager
    def at_full_tilt(self) -> Iterator[None]:
        """Do all of it again and again, in a thread for each kind; what has an answer is closed."""
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
        """Close what is open."""
        while self._open:
            self._open.pop().close()


def _program(code: str, given: object) -> bytes:
    return json.dumps({"runtime": "node", "code": code, "input": given}).encode()
