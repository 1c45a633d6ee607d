"""Sandbox layers are effective without an interpreter's help, and without each other."""

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends_app.sandbox import seccomp
from backends_app.sandbox.client import Launcher
from backends_app.sandbox.walls import FIRST_UID
from tests.sandbox.test_launcher import idle
from tests.support.processes import children
from tests.support.programs import PATIENCE_S, ROOT

COLUMN = seccomp.MACHINES[os.uname().machine][1]
NUMBERS = {
    "x86_64": {"execve": 59, "execveat": 322, "socket": 41, "kill": 62, "setrlimit": 160}
    | {"setuid": 105, "fstat": 5, "prlimit64": 302},
    "aarch64": {"execve": 221, "execveat": 281, "socket": 198, "kill": 129, "setrlimit": 164}
    | {"setuid": 146, "fstat": 80, "prlimit64": 261},
}[os.uname().machine]
CALLS = {
    name: numbers[COLUMN] for name, numbers in seccomp.DENIED_SYSCALLS.items() if numbers[COLUMN]
}
OTHERS = {"clone3": 435, "getpid of x32": 0x40000000 + 39}


@pytest.fixture(scope="module")
def attempts(tmp_path_factory) -> Iterator:
    """Return the outcomes of an escaped program's attempts, on a host that lacks some layers."""
    secret = tmp_path_factory.mktemp("server") / "secret"
    secret.write_text("a secret")
    secret.chmod(0o644)
    unix = secret.parent / "socket"
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(unix))
        local.listen()
        given = {
            "secret": str(secret),
            "server": os.getpid(),
            "port": tcp.getsockname()[1],
            "socket": str(unix),
            "numbers": NUMBERS,
        }
        known: dict[tuple[str, ...], dict] = {}

        def attempts(*lacks: str) -> dict:
            if lacks not in known:
                # Without the filter some of them would succeed and break the test's host.
                given["calls"] = {} if "no-seccomp" in lacks else CALLS | OTHERS
                given["become"] = len(lacks) < 3
                done = subprocess.run(
                    [sys.executable, "-m", "tests.sandbox.escaped", json.dumps(given), *lacks],
                    cwd=ROOT,
                    capture_output=True,
                    text=True,
                    timeout=PATIENCE_S,
                    check=False,
                )
                assert done.returncode == 0, done.stderr
                known[lacks] = json.loads(done.stdout)
            return known[lacks]

        yield attempts


HOSTS = [
    (),
    ("not-root",),
    ("no-namespaces",),
    ("no-landlock",),
    ("no-seccomp",),
    ("no-namespaces", "not-root"),
    ("no-landlock", "not-root"),
    ("no-seccomp", "not-root"),
]
hosts = pytest.mark.parametrize("lacks", HOSTS, ids=" ".join)


@hosts
def test_missing_layer_leaves_the_others_effective(attempts, lacks):
    """Files and network have two layers each; one of them is enough."""
    came = attempts(*lacks)["came"]
    reached = {name for name, (outcome, _) in came.items() if outcome == "done"}
    harmless = {"list the root", "list /proc", "open a socket", "signal everybody"}
    if "no-seccomp" in lacks:  # then only a separate user prevents this
        harmless |= {"limit the launcher", "limit the server"}
    assert reached - harmless == {
        "see the environment",
        "find descriptors",
    }
    assert came["see the environment"] == ["done", "DENO_DIR,NO_COLOR"]
    assert came["find descriptors"] == ["done", ""]


@hosts
def test_missing_layers_are_reported(attempts, lacks):
    found = attempts(*lacks)
    assert set(found["missing"]) == ({"syscalls"} if "no-seccomp" in lacks else set())
    layers = json.dumps(found["active"])
    assert ("a root of its own" in layers) == ("no-namespaces" not in lacks)
    assert ("network namespace" in layers) == ("no-namespaces" not in lacks)
    assert ("Landlock" in layers) == ("no-landlock" not in lacks)
    assert ("seccomp" in layers) == ("no-seccomp" not in lacks)
    assert ("an unprivileged user" in layers) == ("not-root" not in lacks)


def test_all_layers_are_reported_missing_without_any(attempts):
    found = attempts("no-namespaces", "no-landlock", "no-seccomp", "not-root")
    assert set(found["missing"]) == {"files", "network", "processes", "syscalls"}
    assert found["came"]["read a secret of the server"][0] == "done"  # so the attempts are real
    assert found["came"]["reach the server by TCP"][0] == "done"
    assert found["came"]["signal the launcher"][0] == "done"


def test_calls_that_no_workload_needs_are_denied(attempts):
    came = attempts()["came"]
    assert {name: came[f"call {name}"] for name in CALLS} == {
        key: ["refused", str(errno.EPERM)] for key in CALLS
    }


def test_process_cannot_create_another(attempts):
    came = attempts()["came"]
    assert came["call fork"] == came["become a program"] == ["refused", str(errno.EPERM)]
    assert came["become a program by execveat"][0] == "refused"
    assert came["signal everybody"] == ["refused", str(errno.EPERM)]


def test_root_holds_only_the_program_and_its_libraries(attempts):
    came = attempts("no-landlock")["came"]  # which would hide even this
    assert came["list /proc"] == ["done", "self"]
    assert came["list the root"][0] == "done"
    assert {*came["list the root"][1].split(",")} <= {"deno", "lib", "lib64", "proc", "usr"}


def test_calls_by_other_numbers_are_denied(attempts):
    """clone3 hides its flags from filters, and x86_64 has a second set of numbers."""
    came = attempts()["came"]
    assert came["call clone3"] == ["refused", str(errno.ENOSYS)]
    if COLUMN == 0:
        assert came["call getpid of x32"] == ["refused", str(errno.EPERM)]


def test_process_has_no_privileges_and_hard_limits(launcher: Launcher):
    pids = sorted(idle(launcher, "sys.stdin.read()", 2))
    (own,) = children(os.getpid())
    for pid in pids:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
        assert status["NoNewPrivs"] == ["1"]
        assert status["Seccomp"] == ["2"]
        assert int(status["CapEff"][0], 16) == int(status["CapPrm"][0], 16) == 0
        assert status["Groups"] == []
        if os.geteuid() == 0:
            assert {*status["Uid"], *status["Gid"]} == {str(FIRST_UID + pid)}
        limits = Path(f"/proc/{pid}/limits").read_text()
        for line in ("Max core file size        1 ", "Max file size             4096 "):
            assert line in limits
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"
        assert os.getsid(pid) == pid
        for kind in ("net", "mnt", "ipc", "uts"):
            namespace = os.readlink(f"/proc/{pid}/ns/{kind}")
            assert namespace != os.readlink(f"/proc/self/ns/{kind}")
            assert namespace == os.readlink(f"/proc/{own}/ns/{kind}")


def test_launcher_inherits_nothing_from_the_server(launcher: Launcher):
    idle(launcher, "sys.stdin.read()", 1)
    (own,) = children(os.getpid())
    assert Path(f"/proc/{own}/environ").read_bytes() == b""
    assert os.readlink(f"/proc/{own}/cwd") == "/"
    descriptors = {*os.listdir(f"/proc/{own}/fd")} - {"2"}  # the server's stderr
    open_files = {os.readlink(f"/proc/{own}/fd/{number}") for number in descriptors}
    kinds = ("socket:", "pipe:", "anon_inode:", "/dev/null", "/proc")
    others = {name for name in open_files if not name.startswith(kinds)}
    assert others <= {os.path.realpath(sys.executable)}
