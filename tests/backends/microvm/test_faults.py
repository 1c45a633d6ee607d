"""Faults of QEMU, of its server and of its images, and how they are reported."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends_app.backends.microvm.images import (
    KEY_CHARS,
    MANIFEST,
    Artifact,
    digest,
    write_manifest,
)
from backends_app.exceptions import BackendUnavailable
from backends_app.workloads import ExitReason, Status
from tests.backends.microvm.conftest import execute, machines, run_and
from tests.support.processes import broken, children, gone
from tests.support.programs import ROOT, environment, wait_until


@pytest.mark.usefixtures("attacked")
def test_killed_qemu_fails_only_its_workload(backend):
    result = run_and(backend, lambda pid: os.kill(pid, signal.SIGKILL))
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.BACKEND_ERROR)
    assert result.stdout == "begun\n"
    assert "ended by SIGKILL" in result.error


@pytest.mark.usefixtures("attacked")
def test_stopped_qemu_is_killed_at_its_time_limit(backend):
    result = run_and(backend, lambda pid: os.kill(pid, signal.SIGSTOP), timeout_s=10)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.TIMEOUT)
    assert result.stdout == "begun\n"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_broken_warm_process_affects_no_workload(make, number):
    backend = make(pool_size=1)
    assert execute(backend, "print(1)").output == 1
    wait_until(lambda: backend.warm_count() == 1)
    [pid] = machines()
    os.kill(pid, number)
    wait_until(lambda: broken(pid))
    assert execute(backend, "print(2)").output == 2


def test_machine_is_killed_with_its_launcher(backend):
    def kill_the_launcher(pid: int) -> None:
        [launcher] = children(os.getpid())
        os.kill(launcher, signal.SIGKILL)
        wait_until(lambda: gone(pid))

    with pytest.raises(BackendUnavailable, match="its launcher has ended"):
        run_and(backend, kill_the_launcher)  # the end of that one is unknown
    assert execute(backend, "print(1)").output == 1


SERVER = """
import sys, django
django.setup()
from backends_app.backends.microvm import MicroVMBackend
from tests.backends.microvm.conftest import execute
backend = MicroVMBackend(folder=sys.argv[1], accelerator="any", pool_size=1)
print(execute(backend, "print(1)").output, flush=True)
execute(backend, "while True: pass", timeout_s=120)
"""


def test_killed_server_leaves_no_machine(folder, tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(folder)],
        cwd=ROOT,
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
    ) as server:
        assert server.stdout.readline() == b"1\n"

        def started() -> set[int]:
            return {pid for one in children(server.pid) for pid in children(one)}

        wait_until(lambda: len(started()) == 2)  # one running, and one warm
        pids = started()
        server.kill()
        server.wait()
    wait_until(lambda: all(map(gone, pids)))


@pytest.fixture
def own_images(folder: Path, tmp_path: Path) -> Iterator[Path]:
    """Images of Python that a test may damage; copies that preserve holes."""
    for part in folder.iterdir():
        if part.name.startswith(("kernel-", "python-")):
            subprocess.run(["cp", "-a", "--sparse=always", part, tmp_path / part.name], check=True)
    yield tmp_path
    shutil.rmtree(tmp_path)


def part_of(folder: Path, name: str, file: str) -> Path:
    """Return the file of the current artifact: the one with the newest manifest."""
    found = folder.glob(f"{name}-{'[0-9a-f]' * KEY_CHARS}/{file}")
    return max(found, key=lambda path: (path.parent / MANIFEST).stat().st_mtime)


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def scribbled(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(os.urandom(100))


@pytest.mark.parametrize(
    ("name", "file", "damage"),
    [
        ("python-snapshot", "ram", truncated),
        ("python-snapshot", "ram", scribbled),
        ("python-snapshot", "state", truncated),
        ("python-snapshot", "state", os.unlink),
        ("python", "root", truncated),
        ("kernel", "kernel", os.unlink),
        ("kernel", "initramfs", scribbled),
    ],
)
def test_damaged_images_are_rejected_until_repaired(
    own_images: Path, make, name: str, file: str, damage
):
    backend = make(folder=str(own_images))
    assert execute(backend, "print(1)").output == 1
    path = part_of(own_images, name, file)
    whole = path.with_name("whole")
    subprocess.run(["cp", "-a", "--sparse=always", path, whole], check=True)
    damage(path)
    for _ in range(2):
        with pytest.raises(BackendUnavailable) as caught:
            execute(backend, "print(1)")
        assert str(own_images) not in caught.value.reason
        assert repr(name) in caught.value.reason
    found = backend.probe()
    assert (found.detected, found.healthy) == (True, False)
    assert repr(name) in found.description
    whole.replace(path)
    assert execute(backend, "print(2)").output == 2


def test_rebuilt_images_replace_warm_machines(own_images: Path, make):
    backend = make(folder=str(own_images), pool_size=1)
    for _ in range(3):
        assert execute(backend, "print(1)").output == 1
        part_of(own_images, "python-snapshot", "state").touch()
    assert execute(backend, "print(1)").output == 1
    wait_until(lambda: len(children(os.getpid())) == 1)
    wait_until(lambda: len(machines()) == 1)


def test_snapshot_that_qemu_rejects_is_a_fault_with_a_reason(own_images: Path, make):
    """An artifact that matches its manifest."""
    backend = make(folder=str(own_images))
    state = part_of(own_images, "python-snapshot", "state")
    state.write_bytes(state.read_bytes()[:20_000])

    manifest = json.loads((state.parent / MANIFEST).read_text())
    part = Artifact(name="any", files=("ram", "state"), made_from=manifest["made_from"])
    write_manifest(state.parent, part, manifest["versions"])
    with pytest.raises(BackendUnavailable, match="QEMU could not be run") as caught:
        execute(backend, "print(1)")
    assert str(own_images) not in str(caught.value)
    assert not backend.probe().healthy
    assert machines() == set()


def test_missing_images_are_unhealthy_with_instructions(make, tmp_path):
    backend = make(folder=str(tmp_path / "nothing"))
    found = backend.probe()
    assert found.state == "unhealthy"
    assert "manage.py setup_backend microvm" in found.description
    with pytest.raises(BackendUnavailable, match="images are missing"):
        execute(backend, "print(1)")
    assert not (tmp_path / "nothing").exists()


def test_servers_share_a_folder_and_change_nothing_in_it(folder, tmp_path):
    last = "print(execute(backend, 'x = bytearray(10 ** 8)').status, flush=True)\nbackend.close()"
    code = "\n".join([*SERVER.splitlines()[:-1], last])
    ram = part_of(folder, "python-snapshot", "ram")
    before = digest(ram)
    servers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder)],
            cwd=ROOT,
            env=environment(tmp_path),
            stdout=subprocess.PIPE,
        )
        for _ in range(2)
    ]
    for server in servers:
        with server:
            assert server.stdout.read() == b"1\ncompleted\n"
        assert server.returncode == 0
    assert digest(ram) == before
