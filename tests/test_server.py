"""A real server with real processes: behaviour that only shows over a socket."""

import json
import os
import signal
import socket
import subprocess
import threading
import urllib.request
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.support.needs import need
from tests.support.processes import children, gone
from tests.support.programs import manage, running, wait_until
from tests.support.servers import LISTENING, gunicorn, user_script


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with a migrated database."""
    folder = tmp_path_factory.mktemp("server")
    assert manage("migrate", "--verbosity", "0", folder=folder).returncode == 0
    return folder


@pytest.fixture(scope="module")
def token(folder: Path) -> str:
    return manage("shell", "--no-imports", "-c", user_script("ada"), folder=folder).stdout.strip()


@pytest.fixture(scope="module")
def port(folder: Path):
    with running(gunicorn(workers=2, threads=16), LISTENING, folder) as (port, _):
        yield int(port)


@pytest.fixture
def ask(port: int, token: str):
    """Send one request on its own connection; return status, headers and body."""

    def ask(method: str, path: str, body=None, **headers: str):
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            data = json.dumps(body).encode() if isinstance(body, dict) else body
            head = {"Authorization": f"Token {token}", "Content-Type": "application/json"}
            connection.request(method, path, data, {**head, **headers})
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read())
        finally:
            connection.close()

    return ask


def test_every_worker_probes_by_itself(ask):
    def healthy() -> bool:
        status, _, backends = ask("GET", "/v1/backends")
        assert status == 200
        found = {one["name"]: one["healthy"] for one in backends}["isolate"]
        assert found is not False
        return bool(found)

    wait_until(lambda: all(healthy() for _ in range(10)))


def test_typescript_runs(ask):
    body = {"runtime": "node", "code": "export default (n: number) => n * 2", "input": 21}
    status, _, workload = ask("POST", "/v1/workloads", body)
    assert (status, workload["output"], workload["isolation_used"]) == (201, 42, "isolate")


def test_a_body_over_the_limit_is_413_while_the_client_still_sends(ask):
    status, headers, body = ask("POST", "/v1/workloads", b" " * 40_000_000)
    assert (status, headers["Content-Type"]) == (413, "application/json")
    assert body["errors"][0]["code"] == "payload_too_large"


def test_a_chunked_body_is_411(ask):
    status, _, body = ask("POST", "/v1/workloads", iter([b"{}"] * 3))
    assert (status, body["errors"][0]["code"]) == (411, "length_required")


def test_a_path_that_is_not_utf8_is_404(port: int):
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET /v1/backends/\xff%ff HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))


def send_raw(port: int, text: str) -> bytes:
    """Send exactly this; return everything until the server closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(text.replace("\n", "\r\n").encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("header", ["SCRIPT_NAME: /evil", "PATH_INFO: /v1/nope"])
def test_a_client_cannot_set_the_script_name(port: int, header: str):
    head = f"Host: localhost\n{header}\nConnection: close\n\n"
    answer = send_raw(port, f"GET /v1/routes HTTP/1.1\n{head}")
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"evil" not in answer
    assert send_raw(port, f"GET /evil/healthz HTTP/1.1\n{head}").startswith(b"HTTP/1.1 404")


@pytest.mark.parametrize(
    ("status", "given"),
    [
        (401, "Content-Length: 2\nContent-Type: application/json\n"),
        (413, "Content-Length: 40000000\nContent-Type: application/json\n"),
        (415, "Content-Length: 2\nContent-Type: application/json; charset=hex\n"),
        (415, "Content-Length: 2\nContent-Type: text/csv\n"),
    ],
)
def test_a_rejected_request_gets_no_100_continue(port: int, status: int, given: str):
    head = f"POST /v1/workloads HTTP/1.1\nHost: localhost\n{given}Expect: 100-continue\n\n"
    assert send_raw(port, head).startswith(f"HTTP/1.1 {status} ".encode())


def test_an_accepted_request_gets_100_continue(port: int, token: str):
    body = b'{"runtime": "nope", "code": "1"}'
    head = (
        "POST /v1/workloads HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Token {token}\r\nContent-Length: {len(body)}\r\n"
        "Expect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(100).startswith(b"HTTP/1.1 400")


def test_disconnected_clients_release_their_slots(port: int, token: str, ask):
    """More clients than all workers have slots disconnect before their workloads end."""
    body = json.dumps(
        {"runtime": "node", "code": "for (;;);", "resources": {"timeout_s": 0.5}}
    ).encode()
    head = (
        "POST /v1/workloads HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Token {token}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    for _ in range(12):
        with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
            connection.sendall(head + body)

    def completed() -> Any:
        status, _, answer = ask("POST", "/v1/workloads", {"runtime": "node", "code": "1"})
        return answer if status == 201 else None  # while the disconnected ones still wait

    assert wait_until(completed)["status"] == "completed"


def test_many_concurrent_requests_are_201_or_202(ask):
    seen: list[int] = []
    body = {"runtime": "node", "code": "export default (n: number) => n"}

    def one(number: int) -> None:
        status, headers, answer = ask("POST", "/v1/workloads", {**body, "input": number})
        assert status in (201, 202)
        assert status == 202 or answer["output"] == number
        assert status == 201 or headers["Retry-After"] == "1"
        seen.append(status)

    threads = [threading.Thread(target=one, args=[number]) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 20
    assert 201 in seen


def test_killed_workers_leave_no_process_and_no_slot(ask):
    (master,) = [
        pid
        for pid in children(os.getpid())
        if b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    endless = {"runtime": "node", "code": "for (;;);", "resources": {"timeout_s": 300}}

    def lost() -> None:
        with suppress(OSError, HTTPException):
            ask("POST", "/v1/workloads", endless)

    def below(parents: set[int]) -> set[int]:
        return {child for parent in parents for child in children(parent)}

    threads = [threading.Thread(target=lost) for _ in range(3)]
    for thread in threads:
        thread.start()
    workers = children(master)
    wait_until(lambda: sum(map(is_busy, below(below(workers)))) >= 3)
    doomed = workers | below(workers) | below(below(workers))
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    for thread in threads:
        thread.join()
    wait_until(lambda: all(map(gone, doomed)))
    answers: list[tuple[int, Any, Any]] = []

    def served() -> None:
        body = {"runtime": "node", "code": "await new Promise((done) => setTimeout(done, 300))"}

        def answer() -> Any:
            with suppress(OSError, HTTPException):  # until the master has started new workers
                return ask("POST", "/v1/workloads", body)

        answers.append(wait_until(answer))

    threads = [threading.Thread(target=served) for _ in range(4)]  # as many as there are slots
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # A request beyond the user's share of threads is a submission, 202.
    assert [status in (201, 202) for status, _, _ in answers] == [True] * 4
    for _, _, workload in answers:
        path = f"/v1/workloads/{workload['id']}"
        wait_until(lambda path=path: ask("GET", path)[2]["status"] == "completed")


def is_busy(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] == "R"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_development_server_prints_a_command_that_works(tmp_path: Path):
    """What `make run` does after the installation."""
    need("curl")
    assert manage("migrate", "--verbosity", "0", folder=tmp_path).returncode == 0
    server = ["manage.py", "develop", "127.0.0.1:0"]
    tokens = set()
    for start in (1, 2):
        with running(server, r"""(-d '\{.*\}'$)""", tmp_path) as (_, printed):
            assert (" with password " in printed) is (start == 1)
            for word in ("isolate", "healthy", "gvisor", "microvm"):
                assert word in printed
            command = printed[printed.index("curl") :]
            done = subprocess.run(
                ["bash", "-c", command], capture_output=True, text=True, check=True, timeout=60
            )
            workload = json.loads(done.stdout)
            assert (workload["output"], workload["isolation_used"]) == ({"sum": 3}, "isolate")
            tokens.add(command.split("Token ")[1][:64])
            base = command.split("curl -s ")[1].split("/v1/")[0]
            with urllib.request.urlopen(f"{base}/v1/backends", timeout=60) as answer:
                states = {one["name"]: one["healthy"] for one in json.load(answer)}
            assert states["isolate"] is True
    assert len(tokens) == 2
