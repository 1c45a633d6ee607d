"""Puts load on one path of a local server: with `wrk` where there is one, else by itself."""

import re
import selectors
import shutil
import socket
import subprocess
import time

CONNECTIONS = 8
ROUND_S = 1
WRK = shutil.which("wrk")
GENERATOR = "wrk" if WRK else "a loop over sockets"
PATIENCE_S = 30


def per_second(port: int, path: str, headers: dict[str, str]) -> float:
    """Answers in a second, over kept connections, each with one request under way."""
    return (_wrk if WRK else _sockets)(port, path, headers)


def _wrk(port: int, path: str, headers: dict[str, str]) -> float:
    assert WRK is not None
    printed = subprocess.run(
        [
            *(WRK, f"-c{CONNECTIONS}", "-t1", f"-d{ROUND_S}s"),
            *(f"-H{name}: {value}" for name, value in headers.items()),
            f"http://127.0.0.1:{port}{path}",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_S,
    ).stdout
    rate = re.search(r"Requests/sec:\s+([\d.]+)", printed)
    if rate is None or "Non-2xx" in printed or "Socket errors" in printed:
        raise RuntimeError(f"the load on {path} failed:\n{printed}")
    return float(rate[1])


def _sockets(port: int, path: str, headers: dict[str, str]) -> float:
    lines = [f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *map(": ".join, headers.items())]
    request = "\r\n".join([*lines, "", ""]).encode()
    missing: dict[socket.socket, int] = {}
    answers = 0
    with selectors.DefaultSelector() as selector:
        for _ in range(CONNECTIONS):
            connection = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
            selector.register(connection, selectors.EVENT_READ)
            connection.sendall(request)
            length = missing[connection] = 0
        started = time.perf_counter()
        while (passed := time.perf_counter() - started) < ROUND_S:
            for key, _ in selector.select(ROUND_S - passed):
                connection = key.fileobj
                chunk = connection.recv(65536)
                if not chunk:
                    raise RuntimeError(f"the server hung up on {path}")
                length = length or _length(chunk)
                missing[connection] = (missing[connection] or length) - len(chunk)
                if missing[connection] == 0:
                    answers += 1
                    connection.sendall(request)
    for connection in missing:
        connection.close()
    return answers / passed


def _length(chunk: bytes) -> int:
    """How long the answer is that begins here; all answers of a path are as long as the first."""
    head, separator, _ = chunk.partition(b"\r\n\r\n")
    body = re.search(rb"(?i)content-length: (\d+)", head)
    if not separator or not re.match(rb"HTTP/1.1 (200|304) ", head):
        raise RuntimeError(f"an answer begins with {chunk[:100]!r}")
    return len(head) + 4 + (int(body[1]) if body else 0)
