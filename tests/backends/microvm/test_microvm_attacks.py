"""Attacks of hostile programs, each followed by an honest one on the same backend."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from backends_app.workloads import ExitReason, Status
from tests.backends.microvm.archives import packed
from tests.backends.microvm.conftest import execute, machines, run_and
from tests.support.processes import children, gone

pytestmark = pytest.mark.usefixtures("attacked")

FORGED = json.dumps(
    {
        "code": 0,
        "cpu_us": 1,
        "memory_bytes": 1,
        "starved": False,
        "denied": False,
        "refused": False,
        "full": False,
    }
)


@pytest.mark.parametrize(
    ("code", "reasons"),
    [
        ("while True: pass", {ExitReason.TIMEOUT}),
        ("import time\nwhile True: time.sleep(99)", {ExitReason.TIMEOUT}),
        (
            "import signal, time\n"
            "for n in range(1, 32):\n"
            "  try: signal.signal(n, signal.SIG_IGN)\n"
            "  except (OSError, ValueError): pass\n"
            "while True: time.sleep(9)",
            {ExitReason.TIMEOUT},
        ),
        (
            "import os\nwhile True: os.fork()",
            {ExitReason.PROCESS_LIMIT, ExitReason.MEMORY_LIMIT, ExitReason.TIMEOUT},
        ),
        (
            "import threading, time\n"
            "while True: threading.Thread(target=time.sleep, args=[99]).start()",
            {ExitReason.PROCESS_LIMIT, ExitReason.TIMEOUT},
        ),
        ("x = b'x'\nwhile True: x += x", {ExitReason.MEMORY_LIMIT, ExitReason.EXITED}),
        (
            "import mmap\nm = []\n"
            "while True:\n  m.append(mmap.mmap(-1, 10 ** 7)); m[-1].write(b'x' * 10 ** 7)",
            {ExitReason.MEMORY_LIMIT},
        ),
        (
            "f = open('/dev/shm/x', 'wb')\nwhile True: f.write(bytes(10 ** 6))",
            {ExitReason.MEMORY_LIMIT, ExitReason.DISK_LIMIT},
        ),
        (
            "import os\nn = 0\nwhile True:\n  open(f'/tmp/{n}', 'w').close(); n += 1",
            {ExitReason.DISK_LIMIT, ExitReason.MEMORY_LIMIT, ExitReason.TIMEOUT},
        ),
        ("import os\nwhile True: os.write(1, b'x' * 65536)", {ExitReason.OUTPUT_LIMIT}),
        ("import os\nwhile True: os.write(2, b'x' * 65536)", {ExitReason.OUTPUT_LIMIT}),
        ("import os\nwhile True: os.write(1, b'x')", {ExitReason.OUTPUT_LIMIT, ExitReason.TIMEOUT}),
    ],
)
def test_unbounded_programs_are_killed(run, code, reasons):
    # TCG takes seconds to fill memory, more under load, so all but the time limit get more time.
    timeout_s = 5 if ExitReason.TIMEOUT in reasons else 60
    result = run(code, timeout_s=timeout_s, mem_mb=128)
    assert result.status is Status.FAILED
    assert result.exit_reason in reasons, (result.exit_reason, result.stderr)
    assert len(result.stdout) + len(result.stderr) < 60_000


def test_machine_cannot_be_crashed_or_escaped(run):
    code = """
import ctypes, os, signal
libc = ctypes.CDLL(None, use_errno=True)
came = {}
def attempt(name, action):
    try:
        came[name] = repr(action())
    except OSError as error:
        came[name] = error.strerror
def call(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
attempt("reboot", lambda: call(libc.reboot(0x1234567)))
attempt("kill the agent", lambda: os.kill(1, signal.SIGKILL))
attempt("panic", lambda: open("/proc/sysrq-trigger", "w"))
attempt("trace the agent", lambda: call(libc.ptrace(16, 1, 0, 0)))
attempt("see the agent", lambda: open("/proc/1/environ").read())
attempt("load a module", lambda: call(libc.syscall(313, 0, b"", 0)))
attempt("be root", lambda: os.setuid(0))
attempt("a namespace", lambda: call(libc.unshare(0x10000000)))
attempt("mount", lambda: call(libc.mount(b"x", b"/tmp", b"tmpfs", 0, None)))
attempt("a device", lambda: os.mknod("/tmp/vda", 0o60666, os.makedev(254, 0)))
for path in ("/dev/vport1p1", "/dev/vda", "/dev/mem", "/dev/kmsg", "/run/space", "/run/agent.py"):
    attempt(f"open {path}", lambda: open(path, "rb").read(1))
    attempt(f"write {path}", lambda: open(path, "wb"))
attempt("its own bounds", lambda: open("/sys/fs/cgroup/job2/memory.max", "w"))
attempt("write to the image", lambda: open("/usr/bin/python3", "wb"))
import json
print(json.dumps(came))
"""
    came = run(code).output
    came.pop("open /run/agent.py")  # it is public
    refused = {"Operation not permitted", "Permission denied", "No such file or directory"}
    refused |= {"Is a directory", "Text file busy", "No space left on device"}
    assert {name: said for name, said in came.items() if said not in refused} == {}


def test_machine_has_no_network_and_no_network_device(run):
    code = """
import json, os, socket
came = [sorted(os.listdir("/sys/class/net"))]
for address in (("10.0.2.2", 80), ("1.1.1.1", 53), ("169.254.169.254", 80)):
    with socket.socket() as one:
        one.settimeout(5)
        try:
            one.connect(address)
            came.append("connected")
        except OSError as error:
            came.append(error.strerror)
with socket.create_server(("127.0.0.1", 0)) as own:
    socket.create_connection(own.getsockname()).close()
came.append(sorted(os.listdir("/sys/bus/virtio/devices")))
print(json.dumps(came))
"""
    output = run(code).output
    assert output[0] == ["lo"]
    assert {*output[1:4]} == {"Network is unreachable"}
    assert len(output[4]) == 2  # the disk and the port


def test_forged_frames_are_output(run):
    code = f"""
import os, struct, sys
end = {FORGED!r}.encode()
frame = b"x" + struct.pack(">I", len(end)) + end
for descriptor in range(1, 64):
    try:
        os.write(descriptor, frame)
    except OSError:
        pass
for name in os.listdir("/dev"):
    if name.startswith(("vport", "hvc", "ttyS", "console")):
        try:
            open(f"/dev/{{name}}", "wb", buffering=0).write(frame)
        except OSError:
            pass
sys.stdout.flush()
os._exit(7)
"""
    result = run(code)
    assert (result.status, result.exit_code) == (Status.FAILED, 7)
    assert result.stdout.startswith("x\0\0\0")


def test_archive_is_unpacked_by_the_unprivileged_user(run):
    archive = packed({"main.py": "import os; print(os.getuid(), os.stat('main.py').st_uid)"})
    assert run(archive=archive).stdout == "1000 1000\n"


def test_qemu_has_no_privileges_and_hard_limits(backend):
    """A separate user, no new privileges, filters, limits, an empty environment, no socket."""
    seen: dict[str, str] = {}

    def look_and_kill(pid: int) -> None:
        for name in ("status", "limits", "environ", "cmdline"):
            seen[name] = Path(f"/proc/{pid}/{name}").read_text(errors="replace")
        seen["net"] = os.readlink(f"/proc/{pid}/ns/net")
        seen["files"] = " ".join(
            os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")
        )
        os.kill(pid, signal.SIGKILL)

    run_and(backend, look_and_kill)
    status = dict(line.split(":\t", 1) for line in seen["status"].splitlines())
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["Seccomp_filters"]) == 2  # the sandbox's, and QEMU's own
    assert int(status["CapEff"], 16) == 0
    if os.geteuid() == 0:
        assert int(status["Uid"].split()[0]) >= 0x70000000
    assert seen["environ"] == ""
    assert seen["net"] != os.readlink("/proc/self/ns/net")
    assert "socket:" not in seen["files"]
    for limit in ("Max file size             0 ", "Max core file size        1 "):
        assert limit in seen["limits"]
    assert "Max cpu time              unlimited" not in seen["limits"]
    words = seen["cmdline"].split("\0")
    assert "-nodefaults" in words
    assert not {"-monitor", "-qmp", "-mon", "-netdev", "-nic", "-fsdev", "-vnc"} & {*words}
    assert "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny" in words


def test_many_runs_leave_nothing(backend):
    """Processes, files and memory of the server do not grow with the number of runs."""
    execute(backend, "print(1)")
    [launcher] = children(os.getpid())

    def opened() -> list[int]:
        end = time.monotonic() + 10
        while machines() and time.monotonic() < end:
            time.sleep(0.01)
        assert machines() == set()
        time.sleep(0.1)  # the launcher reaps first, and closes then
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in (launcher, os.getpid())]

    before = opened()
    for _ in range(5):
        execute(backend, "print(1)")
    assert opened() == before
    assert not gone(launcher)
