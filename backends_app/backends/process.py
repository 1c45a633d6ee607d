"""One child process under the host's bounds: time, memory, output; what happened comes from the
kernel, never from the child.
"""

import errno
import functools
import os
import re
import resource
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from ..workloads import ExitReason

READ_BYTES = 64 * 1024
SAMPLE_S = 0.005  # how often the peak of the memory is looked at
MOST_FILE_BYTES = 4096  # with less Deno does not start
DRAIN_S = 0.5  # how long the pipes may stay open after the process has ended

_PEAK = re.compile(rb"^VmHWM:\s+(\d+) kB", re.MULTILINE)


class Sink(Protocol):
    """Where a stream's bytes go while they are read; must keep its own size bounded."""

    def write(self, data: bytes) -> None: ...


class Capture:
    """A stream of any length in a bounded space: its head and its tail are kept."""

    def __init__(self, limit: int) -> None:
        self._half = max(1, limit // 2)
        self._head = bytearray()
        self._tail = bytearray()
        self._total = 0

    def write(self, data: bytes) -> None:
        self._total += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        self._tail += data
        if len(self._tail) > 2 * self._half:
            del self._tail[: -self._half]

    @property
    def truncated(self) -> bool:
        return self._total > 2 * self._half

    def text(self) -> str:
        """What was kept, with a line in the place of what was cut."""
        head, tail = bytes(self._head), bytes(self._tail[-self._half :])
        if not self.truncated:
            return (head + tail).decode(errors="replace")
        cut = self._total - len(head) - len(tail)
        return (
            f"{head.decode(errors='replace')}\n… {cut:,} bytes cut …\n"
            f"{tail.decode(errors='replace')}"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How the process ended, by the kernel's account.

    `ended_for` is set when the host ended it. Exactly one of `exit_code` and `signal` is set.
    """

    ended_for: ExitReason | None
    exit_code: int | None
    signal: str | None
    duration_ms: int
    cpu_time_ms: int
    memory_bytes: int | None


class BoundedProcess:
    """Starts a process in a session of its own and stays with it until nothing of it is left.

    `run` blocks; `kill` may come from any other thread, also before and after. Raises `OSError`
    when the process cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        stdin: bytes,
        stdout: Sink,
        stderr: Sink,
        cwd: Path,
        env: Mapping[str, str],
        timeout_s: float,
        mem_mb: int,
        most_output_bytes: int,
    ) -> None:
        self._command = command
        self._stdin = memoryview(stdin)
        self._sinks = (stdout, stderr)
        self._cwd = cwd
        self._env = env
        self._timeout_s = timeout_s
        self._memory_bytes = mem_mb * 1024 * 1024
        self._output_left = most_output_bytes
        self._lock = threading.Lock()
        self._ended_for: ExitReason | None = None
        self._pidfd: int | None = None  # set and signalled under the lock
        self._peak_bytes = 0

    def kill(self) -> None:
        """End the process because somebody asked for it."""
        self._end(ExitReason.KILLED)

    def run(self) -> Exit:
        if not os.access(self._command[0], os.X_OK):  # what the leash would turn into an exit code
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self._command[0])
        started = time.monotonic()
        with subprocess.Popen(  # noqa: S603 - the command is the backend's own
            [*_leash(), *self._command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=self._cwd,
            env=self._env,
            start_new_session=True,
            bufsize=0,
        ) as process:
            # It waits for its stdin, so none of what it will be told to do has begun.
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))
            resource.prlimit(process.pid, resource.RLIMIT_CORE, (0, 0))
            pidfd = os.pidfd_open(process.pid)
            with self._lock:
                self._pidfd = pidfd
                if self._ended_for is not None:  # killed before it was born
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            try:
                with selectors.DefaultSelector() as selector:
                    self._attend(process, pidfd, selector, started + self._timeout_s)
                    selector.unregister(pidfd)
                    return self._bury(process, selector, started)
            finally:
                _kill_session(process)
                with self._lock:
                    self._pidfd = None
                    os.close(pidfd)

    def _attend(
        self,
        process: subprocess.Popen[bytes],
        pidfd: int,
        selector: selectors.BaseSelector,
        deadline: float,
    ) -> None:
        """Feed and read the process until it has ended, by itself or by a bound."""
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for stream, sink in zip((process.stdout, process.stderr), self._sinks, strict=True):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ, sink)
        os.set_blocking(process.stdin.fileno(), False)
        selector.register(process.stdin, selectors.EVENT_WRITE)
        selector.register(pidfd, selectors.EVENT_READ)
        status = Path(f"/proc/{process.pid}/status")
        while True:
            now = time.monotonic()
            if now >= deadline:
                self._end(ExitReason.TIMEOUT)
            self._peak_bytes = max(self._peak_bytes, _peak_bytes(status))
            if self._peak_bytes > self._memory_bytes:
                self._end(ExitReason.MEMORY_LIMIT)
            wait_s = SAMPLE_S if now >= deadline else min(SAMPLE_S, deadline - now)
            for key, _ in selector.select(wait_s):
                if key.fd == pidfd:
                    return
                if key.fileobj is process.stdin:
                    self._feed(process.stdin, selector)
                else:
                    self._read(key, selector)

    def _bury(
        self, process: subprocess.Popen[bytes], selector: selectors.BaseSelector, started: float
    ) -> Exit:
        """End what the process left running, read what it left unread, and collect its account."""
        ended = time.monotonic()
        assert process.stdin
        _kill_session(process)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if not process.stdin.closed:
            selector.unregister(process.stdin)
        while selector.get_map() and time.monotonic() < ended + DRAIN_S:
            for key, _ in selector.select(DRAIN_S):
                self._read(key, selector)
        code = process.returncode
        return Exit(
            # A kill that came too late ended nothing: the process had ended by itself.
            ended_for=self._ended_for if code == -signal.SIGKILL else None,
            exit_code=code if code >= 0 else None,
            signal=_signal_name(-code) if code < 0 else None,
            duration_ms=round((ended - started) * 1000),
            cpu_time_ms=round((usage.ru_utime + usage.ru_stime) * 1000),
            memory_bytes=self._peak_bytes or None,
        )

    def _feed(self, stdin: IO[bytes], selector: selectors.BaseSelector) -> None:
        try:
            written = os.write(stdin.fileno(), self._stdin[:READ_BYTES])
            self._stdin = self._stdin[written:]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it may end, or close its stdin, without having read all
            self._stdin = self._stdin[:0]
        if not self._stdin:
            selector.unregister(stdin)
            stdin.close()

    def _read(self, key: selectors.SelectorKey, selector: selectors.BaseSelector) -> None:
        try:
            data = os.read(key.fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            selector.unregister(key.fileobj)
            return
        self._output_left -= len(data)
        if self._output_left < 0:
            self._end(ExitReason.OUTPUT_LIMIT)
            return
        key.data.write(data)

    def _end(self, reason: ExitReason) -> None:
        """The first reason stands; the signal goes to this very process, never to a successor."""
        with self._lock:
            self._ended_for = self._ended_for or reason
            if self._pidfd is not None:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


@functools.cache
def _leash() -> tuple[str, ...]:
    """util-linux' setpriv: the process dies with the thread that waits for it, also by SIGKILL.

    prctl(2) has to be called in the child; a `preexec_fn` may deadlock in a server with threads.
    """
    setpriv = shutil.which("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--no-new-privs", "--") if setpriv else ()


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    """The session's processes, by its leader's id: unreaped, so the id is still this process's."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _peak_bytes(status: Path) -> int:
    """VmHWM of proc(5), or 0 when the process has given its memory back.

    Not ru_maxrss: what it counts begins before exec, with the memory of the server that forked.
    """
    try:
        found = _PEAK.search(status.read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(found.group(1)) * 1024 if found else 0


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
