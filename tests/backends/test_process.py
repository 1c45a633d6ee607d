"""A bounded child process: what is kept of its output, and that its session ends with it."""

import os
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends_app.backends.isolate.frame import FramedStdout
from backends_app.backends.process import BoundedProcess, Capture, Exit
from backends_app.workloads import ExitReason
from tests.programs import ROOT


@given(st.lists(st.binary(max_size=50)), st.integers(2, 60))
def test_capture_keeps_head_and_tail_in_bounded_space(chunks, limit):
    capture = Capture(limit)
    for chunk in chunks:
        capture.write(chunk)
    whole, half = b"".join(chunks), limit // 2
    assert capture.truncated is (len(whole) > 2 * half)
    if not capture.truncated:
        assert capture.text() == whole.decode(errors="replace")
    else:
        head, cut, tail = capture.text().partition(f"\n… {len(whole) - 2 * half:,} bytes cut …\n")
        assert cut
        assert head == whole[:half].decode(errors="replace")
        assert tail == whole[-half:].decode(errors="replace")


@given(st.binary(max_size=40), st.binary(max_size=40), st.lists(st.integers(0, 100)))
def test_the_frame_is_found_however_the_stream_is_cut(before, frame, cuts):
    marker = b"<marker>"
    stream = before.replace(b"<", b"") + marker + frame
    sink = FramedStdout(marker, 1000)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    for start, end in pairwise(edges):
        sink.write(stream[start:end])
    sink.close()
    assert sink.printed.text() == before.replace(b"<", b"").decode(errors="replace")
    assert sink.frame == frame


@given(st.binary(max_size=100), st.integers(1, 20))
def test_without_a_marker_everything_was_printed(stream, size):
    sink = FramedStdout(b"never in there", 1000)
    for start in range(0, len(stream), size):
        sink.write(stream[start : start + size])
    sink.close()
    assert sink.printed.text() == stream.decode(errors="replace")
    assert sink.frame is None


def gone(pid: int) -> bool:
    """A killed process needs a moment to be buried."""
    for _ in range(1000):
        if gone_now(pid):
            return True
        time.sleep(0.01)
    return False


def gone_now(pid: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def run(code: str, tmp_path: Path, **given) -> tuple[Exit, str, str]:
    stdout, stderr = Capture(1000), Capture(1000)
    process = BoundedProcess(
        [sys.executable, "-I", "-c", code],
        stdout=stdout,
        stderr=stderr,
        cwd=tmp_path,
        env={},
        **{
            "stdin": b"",
            "timeout_s": 60,
            "mem_mb": 500,
            "most_output_bytes": 1_000_000,
            **given,
        },
    )
    exit = process.run()
    return exit, stdout.text(), stderr.text()


def test_what_went_in_and_out(tmp_path):
    code = "import sys; print(len(sys.stdin.read())); print('err', file=sys.stderr); sys.exit(3)"
    exit, stdout, stderr = run(code, tmp_path, stdin=b"x" * 300_000)
    assert (exit.exit_code, exit.signal, exit.ended_for) == (3, None, None)
    assert (stdout, stderr) == ("300000\n", "err\n")


def test_stdin_that_nobody_reads_is_no_error(tmp_path):
    exit, _, _ = run("import os; os.close(0); print(1)", tmp_path, stdin=b"x" * 10_000_000)
    assert exit.exit_code == 0


def test_what_it_leaves_in_its_session_dies_with_it_and_holds_nobody_up(tmp_path):
    code = """
import os, time
if os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(1000)
time.sleep(0.2)
"""
    exit, stdout, _ = run(code, tmp_path)
    assert exit.exit_code == 0
    assert exit.duration_ms < 100_000
    assert gone(int(stdout))


SERVER = """
import sys
from pathlib import Path
from backends_app.backends.process import BoundedProcess, Capture
class Loud(Capture):
    def write(self, data):
        print(data.decode(), end="", flush=True)
code = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
BoundedProcess(
    [sys.executable, "-I", "-c", code], stdin=b"", stdout=Loud(10), stderr=Capture(10),
    cwd=Path("/"), env={}, timeout_s=1000, mem_mb=500, most_output_bytes=1000,
).run()
"""


def test_it_does_not_outlive_a_server_that_is_killed():
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    pid = int(server.stdout.readline())
    assert not gone_now(pid)
    server.kill()
    server.wait()
    server.stdout.close()
    assert gone(pid)


def test_memory_figures_are_its_own_not_the_servers(tmp_path):
    ballast = bytearray(300 * 1024 * 1024)
    ballast[::4096] = b"x" * len(ballast[::4096])
    exit, _, _ = run("import time; time.sleep(0.1)", tmp_path)
    assert exit.memory_bytes < 100 * 1024 * 1024
    assert len(ballast)


def test_a_signal_is_named(tmp_path):
    exit, _, _ = run("import os; os.kill(os.getpid(), 11)", tmp_path)
    assert (exit.exit_code, exit.signal) == (None, "SIGSEGV")


def test_a_kill_before_the_start_counts(tmp_path):
    stdout, stderr = Capture(10), Capture(10)
    process = BoundedProcess(
        ["/bin/sleep", "1000"],
        stdin=b"",
        stdout=stdout,
        stderr=stderr,
        cwd=tmp_path,
        env={},
        timeout_s=1000,
        mem_mb=100,
        most_output_bytes=10,
    )
    process.kill()
    assert process.run().ended_for is ExitReason.KILLED
    process.kill()  # and after its end it harms nobody


def test_a_program_that_is_not_there_leaves_no_descriptor(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    process = BoundedProcess(
        ["/nowhere"],
        stdin=b"",
        stdout=Capture(10),
        stderr=Capture(10),
        cwd=tmp_path,
        env={},
        timeout_s=1,
        mem_mb=100,
        most_output_bytes=10,
    )
    with pytest.raises(FileNotFoundError):
        process.run()
    assert len(os.listdir("/proc/self/fd")) == before


def test_no_descriptor_is_inherited(tmp_path):
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    try:
        _, stdout, _ = run("import os; print(sorted(os.listdir('/proc/self/fd')))", tmp_path)
    finally:
        os.close(read_end)
        os.close(write_end)
    assert stdout == "['0', '1', '2', '3']\n"  # 3 is the listing's own


def test_threads_may_run_processes_at_the_same_time(tmp_path):
    outputs: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: outputs.append(run(f"print({n})", tmp_path)[1]))
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outputs) == [f"{n}\n" for n in range(8)]
