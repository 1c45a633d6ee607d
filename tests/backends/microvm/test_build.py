"""Building images: what is current is left alone, and what fails leaves nothing.

The real images are built by `make host`; here are the ways in which that can go wrong.
"""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from backends_app.backends import progress
from backends_app.backends.microvm import build, initramfs, parts, snapshot
from backends_app.backends.microvm.build import Builder
from backends_app.backends.microvm.channel import GuestLimits
from backends_app.backends.microvm.images import Artifact, Images
from backends_app.backends.microvm.machine import MachineSize
from backends_app.backends.microvm.qemu import Accelerators
from backends_app.backends.setup import SetupError
from tests.support.needs import need
from tests.support.processes import gone
from tests.support.programs import ROOT, manage, wait_until

PART = Artifact(name="thing", files=("a",), made_from={"of": "nothing"})


def builder(folder: Path) -> Builder:
    return Builder(
        images=Images(folder),
        program="qemu-system-x86_64",
        accelerators=Accelerators("tcg"),
        size=MachineSize(mem_mb=512, cpus=1),
        guest_limits=GuestLimits(cpus=1, memory_bytes=2**28, disk_bytes=2**27, processes=256),
        sources=None,
    )


def step(folder: Path, words: str):
    return next(one for one in builder(folder).steps(["python"]) if words in one.what)


def listed(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name != build.LOCK)


def test_current_artifacts_are_not_rebuilt(folder: Path, tmp_path: Path):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = manage(
        *("setup_backend", "microvm"),
        folder=tmp_path,
        MICROVM_FOLDER=str(folder),
        MICROVM_ACCELERATOR="any",
    )
    assert done.returncode == 0, done.stderr
    assert "missing" not in done.stdout
    assert done.stdout.count("present  ") == 1 + 1 + 3 + 3
    assert done.stdout.splitlines()[-1].startswith("healthy  microvm: python, node, go run")
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_dry_run_lists_the_steps_and_builds_nothing(tmp_path: Path):
    done = manage(
        *("setup_backend", "microvm", "--runtime", "python", "--dry-run"),
        folder=tmp_path,
        MICROVM_FOLDER=str(tmp_path / "images"),
    )
    assert done.returncode == 0, done.stderr
    for words in ("kernel and initramfs", "root of python", "snapshot of python"):
        assert f"missing  {words}" in done.stdout
    assert "node" not in done.stdout
    assert not (tmp_path / "images").exists()


def test_unknown_runtime_is_rejected(tmp_path: Path):
    done = manage("setup_backend", "microvm", "--runtime", "cobol", folder=tmp_path)
    assert done.returncode == 1
    assert "does not run cobol. It runs: python, node, go" in done.stderr


@pytest.fixture
def debian(tmp_path: Path, monkeypatch):
    """Puts another program in the place of mmdebstrap."""

    def debian(script: str) -> None:
        program = tmp_path / "bin" / "mmdebstrap"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")

    return debian


@pytest.mark.parametrize("what", ["kernel", "root of python"])
def test_failed_build_reports_why_and_leaves_nothing(tmp_path, debian, what):
    debian("echo 'I: downloading packages' >&2; echo 'E: no such host' >&2; exit 3")
    images = tmp_path / "images"
    with pytest.raises(SetupError, match="E: no such host"):
        step(images, what).apply()
    assert listed(images) == []
    assert stat.S_IMODE(images.stat().st_mode) == 0o700


def test_kernel_without_its_modules_is_rejected(tmp_path, debian):
    debian(
        'for tar; do :; done; mkdir -p "$0.d/boot" && cd "$0.d" && touch boot/vmlinuz-1'
        ' && tar -cf "$tar" boot'
    )
    with pytest.raises(SetupError, match="no module virtio"):
        step(tmp_path / "images", "kernel").apply()
    assert listed(tmp_path / "images") == []


def test_build_reports_progress(tmp_path, debian):
    debian(
        "for stage in 'running apt-get update...' 'downloading packages with apt...'"
        " 'extracting archives...' 'installing remaining packages'; do"
        ' echo "I: $stage" >&2; done; exit 1'
    )
    seen: list[tuple[str, float, float]] = []

    @contextmanager
    def show(title: str):
        yield lambda done, total: seen.append((title, done, total))

    with progress.use(show), pytest.raises(SetupError):
        step(tmp_path / "images", "root of python").apply()
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})
    assert len(seen) == 4
    assert {title for title, _, _ in seen} == {"Building root of python"}
    assert all(done <= total for _, done, total in seen)


def full_disk(tmp_path: Path, megabytes: int):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk: run the tests as root")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = f"size={megabytes}m,mode=700"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", disk], check=True)
    return disk


def test_full_disk_during_a_root_build_is_reported(tmp_path, debian):
    disk = full_disk(tmp_path, 2)
    try:
        debian('for tar; do :; done; head -c 9000000 /dev/zero > "$tar"')
        with pytest.raises(SetupError, match="No space left on device"):
            step(disk, "root of python").apply()
        assert listed(disk) == []
    finally:
        subprocess.run(["umount", disk], check=True)


def test_full_disk_during_a_snapshot_is_reported(folder, tmp_path):
    disk = full_disk(tmp_path, 40)
    try:
        for artifact in (parts.kernel(), parts.root("python")):
            (disk / artifact.folder).symlink_to(folder / artifact.folder)
        before = listed(disk)
        with pytest.raises(SetupError):
            step(disk, "snapshot of python").apply()
        assert listed(disk) == before
    finally:
        subprocess.run(["umount", disk], check=True)


KILLED = """
import sys, django
from pathlib import Path
django.setup()
from tests.backends.microvm.test_build import step
step(Path(sys.argv[1]), "root of python").apply()
"""


def test_leftovers_of_a_killed_build_are_removed_by_the_next(tmp_path, debian):
    images, pid = tmp_path / "images", tmp_path / "pid"
    debian(f'echo $$ > {pid}.new; mv {pid}.new {pid}; for tar; do :; done; touch "$tar"; sleep 99')
    with subprocess.Popen([sys.executable, "-c", KILLED, str(images)], cwd=ROOT) as killed:
        wait_until(pid.exists)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    os.kill(int(pid.read_text()), signal.SIGKILL)
    wait_until(lambda: gone(int(pid.read_text())))
    assert any(name.startswith(build.MAKING) for name in listed(images))
    debian("exit 1")
    with pytest.raises(SetupError):
        step(images, "root of python").apply()
    assert listed(images) == []


KILLED_SNAPSHOT = """
import sys, django
from pathlib import Path
django.setup()
from backends_app.backends.microvm import snapshot
from backends_app.backends.microvm.channel import GuestLimits
from backends_app.backends.microvm.machine import MachineSize
from backends_app.backends.microvm.qemu import Qemu
qemu = Qemu(path=sys.argv[1], version="0", data_folders=())
files = {name: Path(name) for name in ("kernel", "initramfs", "root", "ram", "state")}
limits = GuestLimits(cpus=1, memory_bytes=1, disk_bytes=1, processes=1)
size = MachineSize(mem_mb=1, cpus=1)
snapshot.take_snapshot(qemu, "tcg", size, files, limits, (), lambda *_: None)
"""


def test_machine_is_killed_with_its_setup(tmp_path):
    machine, pid = tmp_path / "qemu", tmp_path / "pid"
    machine.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 99\n")
    machine.chmod(0o700)
    with subprocess.Popen([sys.executable, "-c", KILLED_SNAPSHOT, machine], cwd=ROOT) as killed:
        wait_until(pid.exists)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    wait_until(lambda: gone(int(pid.read_text())))


def test_concurrent_builds_build_once(tmp_path):
    made: list[int] = []

    def make(new: Path, advance) -> dict[str, str]:
        made.append(1)
        time.sleep(0.2)
        (new / "a").write_text("a")
        return {}

    threads = [
        threading.Thread(target=builder(tmp_path)._make, args=[PART, "Making a thing", make])
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert listed(tmp_path) == [PART.folder]
    Images(tmp_path).verify(PART)


def test_corrupt_artifact_is_rebuilt_and_outdated_ones_are_bounded(tmp_path):
    def make(new: Path, advance) -> dict[str, str]:
        (new / "a").write_text("a")
        return {}

    for number in range(build.MAX_OUTDATED + 3):
        artifact = Artifact(name="thing", files=("a",), made_from={"of": number})
        builder(tmp_path)._make(artifact, "Making a thing", make)
    assert len(listed(tmp_path)) == 1 + build.MAX_OUTDATED
    (tmp_path / artifact.folder / "a").write_text("b")
    builder(tmp_path)._make(artifact, "Making a thing", make)
    Images(tmp_path).verify(artifact)
    assert artifact.folder in listed(tmp_path)


@pytest.mark.parametrize("data", [b"", b"junk", b"QEVM\0\0\0\3", b"QEVM\0\0\0\3\1" + bytes(40)])
def test_state_in_an_unknown_format_is_rejected(data: bytes):
    with pytest.raises(SetupError, match="unknown format"):
        snapshot.strip_capabilities(data)


def test_modules_follow_their_dependencies(tmp_path):
    need("cpio")
    modules = tmp_path / "lib/modules/6/kernel"
    modules.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/busybox").write_bytes(b"busybox")
    for name, needs in (("top", "mid-dle,low"), ("mid_dle", "low"), ("low", "")):
        (modules / f"{name}.ko").write_bytes(b"\0depends=" + needs.encode() + b"\0")
    made = initramfs.build(tmp_path, ["top"], {"init": b"i", "agent.py": b"a"})
    archive = tmp_path / "archive"
    archive.write_bytes(made)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(f"zcat {archive} | cpio -id --quiet", shell=True, cwd=out, check=True)
    assert (out / "modules").read_text() == "low.ko\nmid_dle.ko\ntop.ko\n"
    assert (out / "init").read_bytes() == b"i"
    assert os.access(out / "init", os.X_OK)
