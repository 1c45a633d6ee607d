"""Files that are opened for writing to be mapped privately, but cannot be changed."""

import ast
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from backends_app.sandbox import client
from backends_app.sandbox.client import Launcher
from backends_app.sandbox.streams import Capture
from tests.sandbox.programs import READY, Command, command, process

PAGES = 64
WITHOUT_LANDLOCK = """
import sys
sys.path.append(sys.argv[1])
from backends_app.sandbox import landlock
landlock.abi = lambda: 0
"""
ATTEMPTS = """
import fcntl, mmap, struct
path = {path!r}
file = os.open(path, os.O_RDWR)
size = os.fstat(file).st_size
came = {{}}
def attempt(name, action):
    try:
        action()
        came[name] = "done"
    except (OSError, ValueError, SystemError) as error:
        came[name] = type(error).__name__
def private():
    with mmap.mmap(file, size, flags=mmap.MAP_PRIVATE) as mapped:
        mapped[0:5] = b"mine!"
        mapped[100_000:100_005] = b"mine!"
        assert mapped[100_000:100_005] == b"mine!"
def shared(offset, length, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    return mmap.mmap(file, length, flags=mmap.MAP_SHARED, prot=prot, offset=offset)
def grown():
    with shared(0, 4096) as mapped:
        mapped.resize(size)
signal_ignored = __import__("signal").signal(25, 1)
attempt("map it privately", private)
attempt("map it shared", lambda: shared(0, size))
attempt("map a page of it shared", lambda: shared(65536, 4096))
attempt("map its first page shared", lambda: shared(0, 4096))
attempt("map it shared to read", lambda: shared(0, size, mmap.PROT_READ))
attempt("map a page of it shared, and grow that", grown)
attempt("write", lambda: os.pwrite(file, b"x", 100))
attempt("write behind the first page", lambda: os.pwrite(file, b"x", 100_000))
attempt("append", lambda: os.pwrite(file, b"x", size))
attempt("cut it", lambda: os.ftruncate(file, 10))
attempt("cut it by its name", lambda: os.truncate(path, 10))
attempt("cut it while opening", lambda: os.open(path, os.O_RDWR | os.O_TRUNC))
attempt("grow it", lambda: os.ftruncate(file, size * 2))
attempt("allocate", lambda: os.posix_fallocate(file, 0, size * 2))
attempt("copy within it", lambda: os.copy_file_range(file, file, 4096, 0, 65536))
attempt("send to it", lambda: os.sendfile(file, file, 0, 4096))
def command(number):  # of xfs, which every file system knows: where, from where, and how much
    fcntl.ioctl(file, number, struct.pack("hhqqll4i", 0, 0, 4096, 65536, 0, 0, 0, 0, 0, 0))
attempt("punch a hole", lambda: command(0x4030582B))
attempt("fill it with zeros", lambda: command(0x40305839))
attempt("reserve room", lambda: command(0x4030582A))
attempt("mark it", lambda: fcntl.ioctl(file, 0x40086602, struct.pack("l", 0x10)))
attempt("change its mode", lambda: os.fchmod(file, 0o400))
attempt("change its owner", lambda: os.fchown(file, os.getuid(), -1))
attempt("change its times", lambda: os.utime(path))
attempt("write beside it", lambda: os.setxattr(path, "user.x", b"x"))
attempt("take a lease", lambda: fcntl.fcntl(file, 1024, 1))
attempt("lock it", lambda: fcntl.flock(file, fcntl.LOCK_EX))
attempt("remove it", lambda: os.unlink(path))
attempt("rename it", lambda: os.rename(path, path + "2"))
attempt("make another", lambda: os.open(path + "2", os.O_CREAT | os.O_RDWR))
attempt("open what is exposed", lambda: os.open({exposed!r}, os.O_RDWR))
print(came)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "memory"
    path.write_bytes(os.urandom(PAGES * 4096))
    path.chmod(0o666)
    tmp_path.chmod(0o755)
    return path


@pytest.mark.parametrize("landlocks", [True, False])
def test_mapped_file_cannot_be_changed(file: Path, landlocks: bool, monkeypatch):
    """Also on a host without Landlock, simulated in the launcher, a separate program."""
    if not landlocks:
        monkeypatch.setattr(client, "PROGRAM", WITHOUT_LANDLOCK + client.PROGRAM)
    exposed = file.with_name("exposed")
    exposed.write_bytes(b"exposed")
    exposed.chmod(0o666)
    before, looked = file.read_bytes(), file.stat()
    stdlib = sysconfig.get_path("stdlib")
    launcher = Launcher(
        sys.executable,
        name="python",
        readable_files=[stdlib, str(exposed)],
        mapped_files=[str(file)],
    )
    try:
        active, missing = launcher.layers
        assert missing == {}
        assert ("Landlock" in active["files"]) == landlocks
        code = ATTEMPTS.format(path=str(file), exposed=str(exposed))
        stdout, stderr = Capture(10_000), Capture(10_000)
        exit = process(launcher, command(code)).run(b"", stdout, stderr)
    finally:
        launcher.close()
    assert exit.exit_code == 0, stderr.text()
    came = ast.literal_eval(stdout.text())
    assert {name for name, what in came.items() if what == "done"} == {"map it privately"}
    assert file.read_bytes() == before
    for name in ("st_mode", "st_uid", "st_mtime_ns", "st_ctime_ns", "st_blocks", "st_size"):
        assert getattr(file.stat(), name) == getattr(looked, name)


def test_files_are_open_for_reading_from_descriptor_3(file: Path):
    stdlib = sysconfig.get_path("stdlib")
    launcher = Launcher(sys.executable, name="python", readable_files=[stdlib, str(file)])
    code = f"{READY}print(os.pread(3, 4, 0), os.pread(4, 4, 4))\ntry: os.write(3, b'x')\n"
    code += "except OSError as error: print(error.strerror)"
    given = Command(
        arguments=["-I", "-S", "-c", code],
        environment={"PYTHONHOME": sys.base_prefix},
        memory_bytes=10**9,
        files=[str(file), str(file)],
    )
    stdout = Capture(1000)
    try:
        process(launcher, given).run(b"", stdout, Capture(1000))
    finally:
        launcher.close()
    whole = file.read_bytes()
    assert stdout.text() == f"{whole[:4]} {whole[4:8]}\nBad file descriptor\n"


def test_missing_file_is_reported(tmp_path: Path):
    launcher = Launcher(
        sys.executable, name="python", readable_files=[sysconfig.get_path("stdlib")]
    )
    given = Command(
        arguments=["-c", READY], environment={}, memory_bytes=10**9, files=[str(tmp_path / "no")]
    )
    try:
        with pytest.raises(Exception, match="not started: "):
            process(launcher, given).run(b"", Capture(9), Capture(9))
    finally:
        launcher.close()
