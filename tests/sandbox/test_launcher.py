"""The launcher: results of processes, warm processes, and cleanup with the server."""

import gc
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from backends_app.sandbox import client
from backends_app.sandbox.client import (
    PROGRAM,
    SOURCES,
    ConfinedProcess,
    Launcher,
    LauncherProcess,
    LaunchError,
)
from backends_app.sandbox.streams import Capture
from backends_app.workloads import ExitReason
from tests.sandbox.programs import command, process, run
from tests.support.processes import broken, children, gone, state
from tests.support.programs import PATIENCE_S, ROOT, wait_until


def launched(parent: int | None = None) -> set[int]:
    """Return the processes of this process's launchers, or of another process's."""
    return {pid for one in children(parent or os.getpid()) for pid in children(one)}


# Results of a process


def test_input_and_streams_are_transferred(launcher):
    code = "print(len(sys.stdin.read())); print('err', file=sys.stderr); sys.exit(3)"
    exit, stdout, stderr = run(launcher, code, stdin=b"x" * 300_000)
    assert (exit.exit_code, exit.signal, exit.kill_reason) == (3, None, None)
    assert (stdout, stderr) == ("300000\n", "err\n")


def test_process_inherits_only_its_three_streams(launcher):
    """In particular no channel, on which it could report how another process has ended."""
    code = """
found = []
for number in range(256):
    try:
        os.fstat(number)
        found.append(number)
    except OSError:
        pass
print(found)"""
    for _ in range(3):
        assert run(launcher, code, warm=2)[1] == "[0, 1, 2]\n"


def test_unread_stdin_is_ignored(launcher):
    exit, _, _ = run(launcher, "os.close(0); print(1)", stdin=b"x" * 10_000_000)
    assert exit.exit_code == 0


def test_time_limit_counts_from_ready(launcher):
    slow = command("import time; time.sleep(1000)", before="import time; time.sleep(0.3)")
    exit = process(launcher, slow, timeout_s=0.1).run(b"", Capture(9), Capture(9))
    assert (exit.kill_reason, exit.signal) == (ExitReason.TIMEOUT, "SIGKILL")
    assert exit.duration_ms >= 100


class Preparing:
    """Sink that starts the process's timer as soon as it prints something."""

    process: ConfinedProcess

    def write(self, data: bytes) -> None:
        self.process.start_timer()


@pytest.mark.parametrize(
    ("code", "kill_reason", "prepares"),
    [
        # It goes on for long enough to be told from one that ended without being prepared.
        ("time.sleep(0.6); print('prepared', flush=True); time.sleep(0.5)", None, True),
        ("print('prepared', flush=True); time.sleep(1000)", ExitReason.TIMEOUT, True),
        ("time.sleep(1000)", ExitReason.TIMEOUT, False),
    ],
)
def test_preparation_has_its_own_time_limit(launcher, code, kill_reason, prepares):
    stdout = Preparing()
    limits = {"prepare_s": 60 if prepares else 0.3, "timeout_s": 0.5 if kill_reason else 60}
    stdout.process = process(launcher, command(f"import time\n{code}"), **limits)
    exit = stdout.process.run(b"", stdout, Capture(9))
    assert exit.kill_reason is kill_reason
    assert (exit.prepare_ms is not None) == prepares
    if prepares and not kill_reason:
        assert exit.prepare_ms >= 600


def test_report_arrives_though_the_launcher_did_not_read_the_last_message():
    """A process can end at the moment in which its timer is started, or in which it is killed."""
    ours, theirs = client._socketpair()
    with ours:
        ours.send(b"start the timer")
        theirs.send(json.dumps({"code": 0}).encode())
        theirs.close()
        assert client._receive(ours) == ({"code": 0}, [])
        with pytest.raises(LaunchError, match="its launcher has ended"):
            client._receive(ours)


def test_time_limit_begins_once(launcher):
    """However often it is started."""
    stdout = Preparing()
    often = command("import time\nwhile True: print('prepared', flush=True); time.sleep(0.05)")
    stdout.process = process(launcher, often, prepare_s=60, timeout_s=1)
    assert stdout.process.run(b"", stdout, Capture(9)).kill_reason is ExitReason.TIMEOUT


def test_memory_is_limited(launcher):
    code = "a = []\nwhile True: a.append(b'x' * 1_000_000)"
    exit, _, _ = run(launcher, code, memory_bytes=100_000_000)
    assert exit.kill_reason is ExitReason.MEMORY_LIMIT
    assert exit.memory_bytes > 100_000_000


def test_threads_are_limited(launcher):
    code = """
import threading, time
for _ in range(100): threading.Thread(target=time.sleep, args=[1000], daemon=True).start()
time.sleep(1000)"""
    assert run(launcher, code, threads=50)[0].kill_reason is ExitReason.PROCESS_LIMIT


def test_output_is_limited(launcher):
    exit, stdout, _ = run(launcher, "while True: print('x' * 1000)", output_bytes=100_000)
    assert exit.kill_reason is ExitReason.OUTPUT_LIMIT
    assert len(stdout) < 20_000


def test_signal_is_named(launcher):
    exit, _, _ = run(launcher, "os.kill(os.getpid(), 11)")
    assert (exit.exit_code, exit.signal) == (None, "SIGSEGV")


def test_figures_exclude_the_server_and_the_start(launcher):
    ballast = bytearray(300 * 1024 * 1024)
    ballast[::4096] = b"x" * len(ballast[::4096])
    busy = command("pass", before="import time\nwhile time.process_time() < 0.5: pass")
    exit = process(launcher, busy).run(b"", Capture(9), Capture(9))
    assert exit.memory_bytes < 100 * 1024 * 1024
    assert exit.cpu_time_ms < 250
    assert len(ballast)
    exit, _, _ = run(launcher, "import time\nwhile time.process_time() < 0.3: pass")
    assert exit.cpu_time_ms > 200


@pytest.mark.parametrize("before", ["", "import time; time.sleep(0.2)"])
def test_kill_before_run_takes_effect(launcher, before):
    waiting = process(launcher, command("import time; time.sleep(1000)", before=before))
    if before:
        threading.Timer(0.1, waiting.kill).start()
    else:
        waiting.kill()
    assert waiting.run(b"", Capture(10), Capture(10)).kill_reason is ExitReason.KILLED
    waiting.kill()  # has no effect after its end


def test_threads_may_run_processes_concurrently(launcher):
    outputs: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: outputs.append(run(launcher, f"print({n})")[1]))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == [f"{n}\n" for n in range(8)]


# Processes that cannot be started


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("/nowhere", "No such file"),
        (__file__, "not a 64-bit ELF program"),
        ("/proc/self/exe/x", "Not a directory"),
    ],
)
def test_unusable_program_is_reported_and_leaves_nothing(program, reason):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(LaunchError, match=reason) as raised:
        run(Launcher(program, name="x"), "")
    assert program not in str(raised.value)
    assert len(os.listdir("/proc/self/fd")) == before
    assert launched() == set()


def test_process_that_ends_before_it_is_ready_reports_why(launcher):
    broken = command("", before="import sys; sys.exit('no harness')")
    with pytest.raises(LaunchError, match=r"it ended at once, with exit code 1: no harness"):
        process(launcher, broken, warm=3).run(b"", Capture(9), Capture(9))
    wait_until(lambda: not launched())  # nor are warm ones tried for ever
    assert run(launcher, "print(1)")[1] == "1\n"


# Warm processes


def idle(launcher: Launcher, code: str, warm: int) -> set[int]:
    """Run it once, and wait until its warm processes are ready."""
    run(launcher, code, warm=warm)
    wait_until(lambda: len(launched()) == warm and all(map(is_ready, launched())))
    return launched()


def is_ready(pid: int) -> bool:
    """Return whether the launcher has limited its memory, which it does for ready processes."""
    try:
        return "Max data size             unlimited" not in Path(f"/proc/{pid}/limits").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


PID = "sys.stdin.read(); print(os.getpid())"


def test_warm_process_is_used_once_and_replaced(launcher):
    used: set[int] = set()
    for _ in range(4):
        ready = idle(launcher, PID, 2)
        assert not used & ready
        _, stdout, _ = run(launcher, PID, warm=2)
        assert int(stdout) in ready
        used.add(int(stdout))


def test_warm_count_starts_nothing(launcher):
    started = children(os.getpid())
    assert launcher.warm_count() == 0
    assert children(os.getpid()) == started
    idle(launcher, PID, 2)
    wait_until(lambda: launcher.warm_count() == 2)
    run(launcher, PID, warm=0)
    wait_until(lambda: launcher.warm_count() == 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_broken_warm_processes_affect_no_workload(launcher, number):
    ready = idle(launcher, PID, 2)
    for pid in ready:
        os.kill(pid, number)
    if number != signal.SIGTERM:  # which the first process of a namespace ignores
        wait_until(lambda: all(map(broken, ready)))
    exit, stdout, _ = run(launcher, PID, warm=2)
    assert exit.exit_code == 0
    assert int(stdout)
    wait_until(lambda: len(launched()) == 2)


def test_warm_process_that_dies_at_its_start_delays_no_request(launcher):
    slow = command(PID, before="import time; time.sleep(0.4)")
    outputs = Capture(1000)
    waiting = process(launcher, slow, warm=3)
    thread = threading.Thread(target=waiting.run, args=[b"", outputs, Capture(9)])
    thread.start()
    wait_until(lambda: len(launched()) == 4)
    for pid in sorted(launched())[1:]:
        os.kill(pid, signal.SIGKILL)
    thread.join()
    assert int(outputs.text())


def test_warm_processes_follow_recent_commands(launcher):
    first = idle(launcher, PID, 2)
    other = f"{PID}; print('other')"
    run(launcher, other, warm=2)
    run(launcher, other, warm=2)
    wait_until(lambda: len(launched()) == 2 and not launched() & first)
    ready = launched()
    assert int(run(launcher, other, warm=2)[1].split()[0]) in ready


def test_zero_warm_processes_keeps_none(launcher):
    idle(launcher, PID, 2)
    run(launcher, PID, warm=0)
    wait_until(lambda: not launched())


# Lifetime of the launcher


def test_launcher_starts_nothing_before_first_use(launcher):
    assert children(os.getpid()) == set()


def test_closed_launcher_has_and_starts_no_process(launcher):
    idle(launcher, PID, 1)
    launcher.close()
    launcher.close()
    assert children(os.getpid()) == set()
    with pytest.raises(LaunchError, match="closed"):
        run(launcher, PID)


def test_close_kills_running_processes(launcher):
    raised: list[Exception] = []

    def wait() -> None:
        try:
            run(launcher, "import time; time.sleep(1000)")
        except LaunchError as error:
            raised.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(launched)
    launcher.close()
    thread.join()
    assert launched() == set()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_broken_launcher_is_replaced_and_its_processes_are_killed(launcher, number):
    ready = idle(launcher, PID, 1)
    (own,) = children(os.getpid())
    stuck = process(launcher, command("import time; time.sleep(1000)"), timeout_s=0.5)
    threading.Timer(0.2, os.kill, [own, number]).start()
    with pytest.raises(LaunchError, match="launcher"):
        stuck.run(b"", Capture(9), Capture(9))
    assert run(launcher, "print(1)")[1] == "1\n"
    assert children(os.getpid()) != {own}
    wait_until(lambda: all(gone(pid) for pid in {own, *ready}))


def test_stopped_launcher_is_replaced(launcher):
    idle(launcher, PID, 1)
    (own,) = children(os.getpid())
    os.kill(own, signal.SIGSTOP)
    with pytest.raises(LaunchError, match="does not answer"):
        run(launcher, PID, timeout_s=0.1)
    assert run(launcher, "print(1)")[1] == "1\n"
    gc.collect()
    assert sum(type(thing) is LauncherProcess for thing in gc.get_objects()) == 1


def test_slow_start_affects_only_its_own_request(launcher):
    idle(launcher, PID, 1)
    (own,) = children(os.getpid())
    slow = command("", before="import time; time.sleep(1000)")
    with pytest.raises(LaunchError, match="no process was ready in time"):
        process(launcher, slow, timeout_s=0.1).run(b"", Capture(9), Capture(9))
    assert run(launcher, "print(1)")[1] == "1\n"
    assert children(os.getpid()) == {own}


def test_launcher_without_descriptors_rejects_and_goes_on(launcher):
    idle(launcher, PID, 1)
    (own,) = children(os.getpid())
    held = max(map(int, os.listdir(f"/proc/{own}/fd")))
    resource.prlimit(own, resource.RLIMIT_NOFILE, (held + 5, held + 5))
    came: list[str] = []

    def attempt(number: int) -> None:
        try:
            came.append(run(launcher, f"import time; time.sleep(0.3); print({number})")[1])
        except LaunchError as error:
            came.append(str(error))

    threads = [threading.Thread(target=attempt, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused = [word for word in came if not word.strip().isdigit()]
    assert len(came) == 8
    assert refused
    assert {word.partition(":")[0] for word in refused} <= {
        "its launcher has no room for it",
        "no process can be started",
        "no process can be watched",
    }
    assert children(os.getpid()) == {own}
    assert int(run(launcher, PID)[1])


def test_channel_over_the_descriptor_limit_is_rejected_alone(launcher):
    stuck = process(launcher, command("print(sys.stdin.read())"))
    stdout = Capture(100)
    thread = threading.Thread(target=stuck.run, args=[b"x", stdout, Capture(9)])
    idle(launcher, PID, 1)
    (own,) = children(os.getpid())
    assert launcher.warm_count() == 1  # it has handled all that came before
    wait_until(lambda: state(own) == "S")  # and has closed what it answered to
    lowest_free = next(n for n in range(100) if not Path(f"/proc/{own}/fd/{n}").is_symlink())
    resource.prlimit(own, resource.RLIMIT_NOFILE, (lowest_free, 100))
    with pytest.raises(LaunchError, match="no room"):
        run(launcher, PID, timeout_s=1)
    resource.prlimit(own, resource.RLIMIT_NOFILE, (100, 100))
    thread.start()
    thread.join()
    assert stdout.text() == "x\n"
    assert children(os.getpid()) == {own}


def test_forked_child_keeps_no_stream_of_running_processes(launcher):
    """Otherwise a program that reads to the end of its input would wait for the child's end."""
    code = "import time; time.sleep(0.3); print(len(sys.stdin.read()))"
    stdout = Capture(100)
    slow = process(launcher, command(code), timeout_s=30)
    thread = threading.Thread(target=slow.run, args=[b"x" * 300_000, stdout, Capture(9)])
    thread.start()
    wait_until(lambda: launched() and all(map(is_ready, launched())))
    time.sleep(0.1)
    child = os.fork()
    if child == 0:
        time.sleep(1000)
        os._exit(0)
    try:
        thread.join()
        assert stdout.text() == "300000\n"
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_forked_child_starts_its_own_launcher(launcher):
    ready = idle(launcher, PID, 1)
    child = os.fork()
    if child == 0:
        with suppress(BaseException):
            _, stdout, _ = run(launcher, PID, warm=1)
            used = int(stdout) in ready
            launcher.close()
            os._exit(10 + used)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 10
    assert int(run(launcher, PID, warm=1)[1]) in ready


SERVER = """
import os, sys, threading, time
from tests.sandbox.programs import launcher, run
from tests.support.processes import children
mine = launcher()
run(mine, "sys.stdin.read()", warm=1)
threading.Thread(
    target=run, args=[mine, "import time; time.sleep(1000)"], kwargs={"warm": 1}, daemon=True
).start()
while True:
    (own,) = children(os.getpid())
    if len(children(own)) >= 2:
        break
    time.sleep(0.01)
print(own, *children(own), flush=True)
END
"""


@pytest.mark.parametrize("configured", [True, False])
def test_server_that_closes_without_reading_causes_no_error(launcher, configured: bool):
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", PROGRAM, str(SOURCES)],
        stdin=theirs.fileno(),
        stderr=subprocess.PIPE,
    ) as process:
        theirs.close()
        if configured:
            control.send(json.dumps(launcher._configuration).encode())
            select.select(
                [control], [], [], PATIENCE_S
            )  # it has answered, but the answer is not read
        control.close()
        assert process.wait(PATIENCE_S) == 0
        assert process.stderr.read() == b""


@pytest.mark.parametrize(
    "end", ["time.sleep(1000)", "os._exit(0)", "sys.exit(0)", "raise RuntimeError"]
)
def test_processes_are_killed_with_their_server(end: str):
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER.replace("END", end)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    pids = [int(pid) for pid in server.stdout.readline().split()]
    assert len(pids) >= 3
    if "sleep" in end:
        assert not gone(pids[0])  # the launcher; a warm process may have been replaced by now
        server.kill()
    server.wait()
    server.stdout.close()
    wait_until(lambda: all(gone(pid) for pid in pids))


def test_descriptors_and_memory_do_not_grow(launcher):
    run(launcher, PID, warm=1)
    (own,) = children(os.getpid())

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{own}/fd"))

    def pages() -> int:
        return int(Path(f"/proc/{own}/statm").read_text().split()[1])

    for _ in range(10):
        run(launcher, PID, warm=1)
    wait_until(lambda: len(launched()) == 1)
    time.sleep(0.1)  # until it has closed the last channel
    held, size = descriptors(), pages()
    for _ in range(30):
        run(launcher, PID, warm=1)
    wait_until(lambda: descriptors() == held)
    assert pages() < size + 100
