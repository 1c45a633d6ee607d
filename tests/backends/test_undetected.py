"""gVisor and microVM on hosts without them: probes are correct, and nothing runs."""

import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from backends_app.backends.gvisor import GVisorBackend
from backends_app.backends.microvm import MicroVMBackend
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import WorkloadSpec


def test_missing_engine_is_undetected_with_instructions(tmp_path: Path):
    found = GVisorBackend(engine=f"unix://{tmp_path}/docker.sock").probe()
    assert found.state == "undetected"
    assert "manage.py setup_backend gvisor" in found.description


def test_engine_that_does_not_answer_is_unhealthy(tmp_path: Path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(f"{tmp_path}/docker.sock")
        found = GVisorBackend(engine=f"unix://{tmp_path}/docker.sock").probe()
    assert found.state == "unhealthy"
    assert "does not answer" in found.description


def test_probe_shows_no_credentials_of_the_engine():
    found = GVisorBackend(engine="tcp://someone:secret@127.0.0.1:9").probe()
    assert found.state == "unhealthy"
    assert "127.0.0.1:9" in found.description
    assert "secret" not in found.description


@contextmanager
def engine(info: str) -> Iterator[str]:
    """A server that imitates a Docker Engine; the backend's own tests use a real one."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = info if self.path.endswith("/info") else '{"ApiVersion": "1.44"}'
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_engine_without_runsc_is_undetected():
    with engine('{"ServerVersion": "28", "Runtimes": {"runc": {}}}') as address:
        found = GVisorBackend(engine=address).probe()
    assert found.state == "undetected"
    assert "runsc" in found.description
    assert found.attributes["engine_version"] == "28"


def test_engine_that_only_claims_runsc_is_unhealthy():
    with engine('{"ServerVersion": "28", "Runtimes": {"runsc": {}}}') as address:
        found = GVisorBackend(engine=address).probe()
    assert (found.detected, found.healthy) == (True, False)


def test_missing_qemu_is_undetected_with_instructions(tmp_path: Path):
    found = MicroVMBackend(qemu=str(tmp_path / "qemu")).probe()
    assert found.state == "undetected"
    assert "manage.py setup_backend microvm" in found.description


@pytest.mark.parametrize(
    ("script", "state", "said"),
    [
        ("exit 1", "unhealthy", "does not start"),
        (
            "echo 'QEMU emulator version 7.2.1'; echo 'microvm  microvm (i386)'",
            "unhealthy",
            "images are missing: none exist; build them with: manage.py setup_backend microvm",
        ),
        ("echo 'QEMU emulator version 7.2.1'; echo 'pc'", "undetected", "no machine"),
    ],
)
def test_qemu_version_and_files_are_detected(tmp_path: Path, script: str, state: str, said: str):
    qemu = tmp_path / "qemu"
    qemu.write_text(f"#!/bin/sh\n{script}\n")
    qemu.chmod(qemu.stat().st_mode | stat.S_IXUSR)
    found = MicroVMBackend(qemu=str(qemu), folder=str(tmp_path / "images")).probe()
    assert found.state == state
    assert said in found.description
    assert str(tmp_path) not in found.description


def test_undetected_backends_run_nothing(tmp_path: Path):
    with pytest.raises(BackendUnavailable, match="no Docker Engine"):
        GVisorBackend(engine=f"unix://{tmp_path}/docker.sock").run(WorkloadSpec(image="x"))
    with pytest.raises(BackendUnavailable, match="QEMU is not installed"):
        MicroVMBackend(qemu="/no/qemu").run(WorkloadSpec(runtime="python", code=""))
