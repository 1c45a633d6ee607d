"""Attacks of hostile programs in containers, each followed by an honest program (conftest)."""

import re
import socket
import threading

import pytest

from backends_app.backends.gvisor import GVisorBackend
from backends_app.workloads import ExitReason, Status, WorkloadSpec
from tests.backends.gvisor.conftest import IMAGE, OUTPUT_BYTES

hostile = pytest.mark.usefixtures("attacked")


@hostile
@pytest.mark.parametrize(
    ("script", "reasons"),
    [
        ("while :; do :; done", {ExitReason.TIMEOUT}),
        ("trap '' TERM INT HUP; sleep 999", {ExitReason.TIMEOUT}),
        ("yes", {ExitReason.OUTPUT_LIMIT}),
        ("yes >&2", {ExitReason.OUTPUT_LIMIT}),
        ("cat /dev/zero", {ExitReason.OUTPUT_LIMIT}),
        ("x=x; while :; do x=$x$x; done", {ExitReason.MEMORY_LIMIT}),
        ("f() { f | f & }; f; sleep 99", {ExitReason.PROCESS_LIMIT}),
        ("while :; do sleep 99 & done", {ExitReason.PROCESS_LIMIT}),
    ],
)
def test_unbounded_programs_are_killed(run, script: str, reasons: set[ExitReason]):
    # The `runsc` of 2024 needs 7 s to reach its limit of processes.
    timeout_s = 4 if reasons == {ExitReason.TIMEOUT} else 30
    result = run(script, timeout_s=timeout_s)
    assert (result.status, result.exit_reason in reasons) == (Status.FAILED, True), result
    assert result.duration_ms < (timeout_s + 2) * 1000
    assert len(result.stdout) < 2 * OUTPUT_BYTES
    assert result.output is None


@hostile
def test_files_count_as_memory(run):
    result = run("while :; do dd if=/dev/zero bs=1M count=60 of=/tmp/$$; done", mem_mb=64)
    assert result.exit_reason is ExitReason.MEMORY_LIMIT


@hostile
@pytest.mark.parametrize("script", ["setsid sleep 999 & exit 0", "sleep 999 & sleep 999 & exit 0"])
def test_orphans_are_killed_with_the_main_process(run, script: str):
    result = run(script)
    assert (result.status, result.exit_reason) == (Status.COMPLETED, ExitReason.EXITED)


@hostile
def test_network_is_unreachable(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run(
            f"for host in 127.0.0.1 169.254.169.254 10.0.0.1 $(hostname); do"
            f" echo x | nc -w 1 $host {port} && echo reached; done;"
            " wget -T 1 http://example.org/ && echo reached; exit 0"
        )
        assert result.stdout == ""
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


@hostile
def test_host_is_not_visible(run):
    shown = run(
        "cat /proc/mounts /etc/resolv.conf /etc/hosts /etc/hostname /proc/cmdline; env;"
        " ls -la / /tmp /var/run /run; ls /sys/class/net /sys/block; cat /proc/1/environ; exit 0"
    ).stdout
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", shown)
    assert "docker.sock" not in shown
    assert "overlay" not in shown.replace("overlayfs_stale_read", "")
    nameservers = {line.split()[1] for line in shown.splitlines() if line.startswith("nameserver")}
    assert nameservers <= {"127.0.0.1"}


@hostile
@pytest.mark.parametrize(
    "script",
    [
        "mount -t tmpfs none /tmp",
        "mount -t proc none /tmp",
        "echo x > /etc/x",
        "echo x > /bin/x",
        "echo x > /x",
        "echo x > /sys/x",
        "echo 1 > /proc/sys/kernel/panic",
        "kill -9 1 2>/dev/null; false",
    ],
)
def test_privileged_operations_are_denied(run, script: str):
    assert run(script).exit_code != 0


DEVICES = {
    "memory": "c 1 1",
    "port": "c 1 4",
    "disk": "b 8 0",
    "loop": "b 7 0",
    "fuse": "c 10 229",
    "kvm": "c 10 232",
    "tun": "c 10 200",
}


@hostile
def test_device_nodes_allow_no_reads_or_writes(run):
    """gVisor's kernel lets everybody make nodes, and opens its own devices by them alone.

    It has a fuse and a tun device of its own, which open, and refuse each read and write.
    """
    script = """
        for device in "$@"; do
            set -- $device
            mknod /tmp/$1 $2 $3 $4 && echo "$1 made"
            cat /tmp/$1 && echo "$1 read"
            echo x > /tmp/$1 && echo "$1 written"
        done
        mknod /tmp/zero c 1 5 && cat /tmp/zero | head -c 3 | wc -c
    """
    devices = [f"{name} {numbers}" for name, numbers in DEVICES.items()]
    result = run(("sh", "-c", script, "sh", *devices))
    zeros = "3"  # so that a node that can be opened is noticed
    assert result.stdout.splitlines() == [*(f"{name} made" for name in DEVICES), zeros]


@hostile
def test_workloads_cannot_see_each_other(run):
    assert run("echo mine > /tmp/x; echo mine > /dev/shm/x").exit_code == 0
    assert run("ls /tmp /dev/shm").stdout.split() == ["/dev/shm:", "/tmp:"]


@hostile
@pytest.mark.parametrize(
    "forged",
    [
        '{"exit_code": 0, "status": "completed"}',
        "\x01\x00\x00\x00\x00\x00\x00\x05hallo",  # a header of the engine's stream
        '"} {"output": 1}',
    ],
)
def test_printed_data_cannot_forge_anything(backend: GVisorBackend, forged: str):
    spec = WorkloadSpec(
        runtime="oci", image=IMAGE, command=("sh", "-c", 'printf %s "$0"; exit 5', forged)
    )
    if "\0" in forged:
        script = r"printf '\001\000\000\000\000\000\000\005hallo'; exit 5"
        spec = WorkloadSpec(runtime="oci", image=IMAGE, command=("sh", "-c", script))
    result = backend.run(spec)
    assert (result.exit_code, result.stdout, result.output) == (5, forged, None)


def test_ten_concurrent_workloads_succeed(make):
    backend = make(max_concurrency=10)
    results = []

    def one(number: int) -> None:
        spec = WorkloadSpec(runtime="oci", image=IMAGE, command=("cat",), input=number)
        results.append(backend.run(spec).output)

    threads = [threading.Thread(target=one, args=[number]) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == list(range(10))


@hostile
def test_large_input_reaches_a_slow_reader(run):
    text = "x" * 900_000
    assert run("sleep 0.3; wc -c", input=text).stdout == f"{len(text) + 3}\n"
    assert run("exit 0", input=text).exit_code == 0


@hostile
def test_time_limit_holds_during_a_flood_of_output(run):
    result = run("while :; do echo x; sleep 0.01; done", timeout_s=1)
    assert result.exit_reason is ExitReason.TIMEOUT
    assert result.stdout.startswith("x\nx\n")
