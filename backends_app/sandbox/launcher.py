"""The launcher: start sandboxed processes, keep some warm, and enforce their limits.

A small single-threaded program, one for each server process. `client.Launcher` starts it, and it
runs as long as its standard input, a socket to the server, is open. It shares nothing else with the
server: neither the interpreter that parses requests, nor the memory whose size would be counted as
a workload's.

The server sends one message for each process that it needs, with a new socket attached, the
process's *channel*. The launcher sends on it, in this order: a notice that the request is queued,
if no process is ready; the process id with the three standard streams, once the process has
reported with one byte on stdout that it is ready; and an exit report after its end. A process never
outlives its channel: the server kills it by closing that. A message without a command queries the
number of warm processes.

Messages are JSON, one per packet.
"""

import array
import json
import math
import os
import re
import resource
import select
import selectors
import signal
import socket
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeAlias

from .descriptors import receive
from .libc import PR_SET_NAME, libc
from .walls import Sandbox

START_S = 10.0  # how long a process may take until it is ready, unless its command sets it
REFILL_DELAY_S = 0.01  # between the start of a workload and that of its warm replacement
SAMPLE_S = 0.005  # interval at which memory and threads of running processes are sampled
MAX_MESSAGE_BYTES = 1 << 18
MAX_STDERR_BYTES = 2000  # for the error about a process that never became ready
STATUS = re.compile(
    rb"^State:\t(?P<state>.).*^VmHWM:\s+(?P<peak>\d+) kB.*^VmData:\s+(?P<data>\d+) kB"
    rb".*^Threads:\t(?P<threads>\d+)",
    re.MULTILINE | re.DOTALL,
)
PAUSED = frozenset("TtZX")  # states of proc(5) in which a process runs nothing

Message: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample of a process's status; all zeros after its end."""

    state: str = "Z"
    peak_bytes: int = 0
    data_bytes: int = 0
    threads: int = 0


class Process:
    """One process: starting, then warm, then running on a channel, until it has ended."""

    def __init__(
        self,
        command: str,
        pid: int,
        pidfd: int,
        status: int,
        streams: tuple[int, int, int],
        start_s: float,
    ) -> None:
        self.command = command
        self.pid = pid
        self.pidfd = pidfd
        self.status = status  # /proc/PID/status of proc(5)
        self.streams = streams  # our ends of stdin, stdout and stderr, until the hand-over
        self.ready = False
        self.channel: socket.socket | None = None
        self.start_s = start_s
        self.deadline = time.monotonic() + start_s
        self.limits: Message = {}
        self.kill_reason: str | None = None
        self.cpu_before_s = 0.0
        self.started = 0.0  # time of the hand-over, or of the end of the preparation
        self.prepare_ms: int | None = None  # duration of the preparation
        self.data_bytes = 0  # the largest sample
        self.peak_bytes = 0  # the last sample; the kernel's counters are exact to some pages only
        self.max_data_bytes = 0

    def kill(self, reason: str | None = None) -> None:
        self.kill_reason = self.kill_reason or reason
        self.deadline = float("inf")
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close_streams(self) -> None:
        for descriptor in self.streams:
            if descriptor >= 0:
                os.close(descriptor)
        self.streams = (-1, -1, -1)

    def sample(self) -> Sample:
        try:
            found = STATUS.search(os.pread(self.status, 8192, 0))
        except ProcessLookupError:
            found = None
        if found is None:
            return Sample()
        peak, data = (int(found[name]) * 1024 for name in ("peak", "data"))
        return Sample(found["state"].decode(), peak, data, int(found["threads"]))

    def stderr_tail(self) -> str:
        os.set_blocking(self.streams[2], False)
        try:
            return os.read(self.streams[2], MAX_STDERR_BYTES).decode(errors="replace")
        except BlockingIOError:
            return ""


class Launcher:
    """All processes and the event loop that serves them."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._events = selectors.EpollSelector()
        self._processes: set[Process] = set()
        self._waiting: dict[str, deque[tuple[socket.socket, Message]]] = {}
        self._recent: deque[str] = deque(maxlen=0)  # the most recently requested commands
        self._balance_at = float("inf")
        self._next_sample = 0.0
        self._open = True

    def run(self) -> None:
        """Serve until the server has closed the socket."""
        configuration = self._control.recv(MAX_MESSAGE_BYTES)
        if not configuration:
            return
        try:
            self._sandbox = Sandbox(**json.loads(configuration))
        except (OSError, ValueError) as error:
            _send(self._control, {"error": getattr(error, "strerror", None) or str(error)})
            return
        _send(self._control, {"active": self._sandbox.active, "missing": self._sandbox.missing})
        self._events.register(self._control, selectors.EVENT_READ, self._on_request)
        while self._open or self._processes:
            for key, _ in self._events.select(self._timeout_s()):
                key.data()
            self._enforce_limits()

    def _on_request(self) -> None:
        """Read a request: hand over a warm process, or queue the request and start one."""
        try:
            data, descriptors = receive(self._control, MAX_MESSAGE_BYTES, 1)
        except ConnectionResetError:  # the server closed without reading everything
            data, descriptors = b"", []
        if not data:
            self._shut_down()
            return
        if not descriptors:  # the kernel drops those over the limit; the server sees a close
            return
        request = json.loads(data)
        channel = socket.socket(fileno=descriptors[0])
        command = request.get("command")
        if command is None:  # a query for the number of warm processes
            ready = sum(
                one.ready and one.channel is None and not one.kill_reason for one in self._processes
            )
            _send(channel, {"ready": ready})
            channel.close()
            return
        if self._recent.maxlen != request["warm"]:
            self._recent = deque(self._recent, maxlen=request["warm"])
        # The first command gets all warm slots; later commands replace the oldest entries.
        self._recent.extend([command] * max(1, request["warm"] - len(self._recent)))
        for process in filter(attrgetter("ready"), self._available(command)):
            if process.sample().state not in PAUSED:
                self._hand_over(process, channel, request)
                break
            process.kill("it was stopped by a signal")
        else:
            _send(channel, {"queued": True})
            self._waiting.setdefault(command, deque()).append((channel, request))
            if len(self._waiting[command]) > len(self._available(command)):
                self._start(command)
        # Starting a replacement now would slow down the workload that has just begun.
        self._balance_at = min(self._balance_at, time.monotonic() + REFILL_DELAY_S)

    def _shut_down(self) -> None:
        """Kill everything, because the server has closed its side or died."""
        self._open = False
        self._events.unregister(self._control)
        self._recent.clear()
        self._balance_at = float("inf")
        for requests in self._waiting.values():
            for channel, _ in requests:
                channel.close()
        self._waiting.clear()
        for process in self._processes:
            process.kill()

    def _balance(self) -> None:
        """Start warm processes for recent commands; kill those that are no longer needed."""
        self._balance_at = float("inf")
        warm = Counter(self._recent)
        for command in {*warm, *(process.command for process in self._processes)}:
            available = self._available(command)
            needed = len(self._waiting.get(command, ())) + warm[command]
            for _ in range(needed - len(available)):
                self._start(command)
            ready = [process for process in available if process.ready]
            for process in ready[: max(0, len(available) - needed)]:
                process.kill("not needed")

    def _start(self, command: str) -> None:
        options = json.loads(command)
        pipes: list[tuple[int, int]] = []
        try:
            for _ in range(3):
                pipes.append(os.pipe())
            pid = os.fork()
        except OSError as error:
            for descriptor in (end for pipe in pipes for end in pipe):
                os.close(descriptor)
            self._fail(command, {"error": f"no process can be started: {error.strerror}"})
            return
        theirs = (pipes[0][0], pipes[1][1], pipes[2][1])
        ours = (pipes[0][1], pipes[1][0], pipes[2][0])
        if pid == 0:
            try:
                self._sandbox.enter(
                    options["arguments"], options["environment"], theirs, options["files"]
                )
            except BaseException as error:  # noqa: BLE001 - no copy of the launcher may survive
                os.write(2, f"not started: {error}".encode())
            finally:
                os._exit(127)
        for descriptor in theirs:
            os.close(descriptor)
        try:
            pidfd, status = self._open_watch(pid)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            for descriptor in ours:
                os.close(descriptor)
            self._fail(command, {"error": f"no process can be watched: {error.strerror}"})
            return
        process = Process(command, pid, pidfd, status, ours, options["start_s"] or START_S)
        self._processes.add(process)
        self._events.register(process.pidfd, selectors.EVENT_READ, lambda: self._reap(process))
        self._events.register(ours[1], selectors.EVENT_READ, lambda: self._on_ready(process))

    def _on_ready(self, process: Process) -> None:
        """Read the ready byte of a process, unless it closed its stdout because it is ending."""
        if process not in self._processes or process.ready or process.kill_reason:
            return
        self._unregister(process.streams[1])
        if not os.read(process.streams[1], 1):
            return
        room = json.loads(process.command)["memory_bytes"]
        process.max_data_bytes = process.sample().data_bytes + room
        try:
            # Set earlier, the limit would count addresses that are only reserved.
            self._sandbox.limit(process.pid, resource.RLIMIT_DATA, process.max_data_bytes)
        except OSError as error:
            process.kill(f"its memory cannot be limited: {error.strerror}")
            return
        process.ready = True
        process.deadline = float("inf")
        waiting = self._waiting.pop(process.command, deque())
        while waiting:
            channel, request = waiting.popleft()
            if not _is_closed(channel):
                self._hand_over(process, channel, request)
                break
            channel.close()
        else:
            self._balance_at = 0.0  # perhaps it is no longer needed
        if waiting:
            self._waiting[process.command] = waiting

    def _hand_over(self, process: Process, channel: socket.socket, request: Message) -> None:
        process.channel = channel
        process.limits = request["limits"]
        process.cpu_before_s = _cpu_s(process.pid)
        prepare_s = process.limits["prepare_s"]
        if (cpu_s := process.limits["cpu_s"]) is not None:
            with suppress(OSError):  # its time is limited in any case
                most = math.ceil(process.cpu_before_s + cpu_s)
                self._sandbox.limit(process.pid, resource.RLIMIT_CPU, most)
        process.started = time.monotonic()
        process.deadline = process.started + (prepare_s or process.limits["timeout_s"])
        self._events.register(channel, selectors.EVENT_READ, lambda: self._on_message(process))
        _send(channel, {"pid": process.pid}, process.streams)
        process.close_streams()

    def _on_message(self, process: Process) -> None:
        """Restart the process's time, or kill it if the server has closed the channel."""
        if process not in self._processes or process.channel is None:
            return
        try:
            message = process.channel.recv(MAX_MESSAGE_BYTES)
        except OSError:
            message = b""
        if not message:
            self._unregister(process.channel.fileno())
            process.kill()
        elif process.prepare_ms is None and process.limits["prepare_s"] and not process.kill_reason:
            now = time.monotonic()
            process.prepare_ms = round((now - process.started) * 1000)
            process.started, process.deadline = now, now + process.limits["timeout_s"]
            process.cpu_before_s = _cpu_s(process.pid)

    def _reap(self, process: Process) -> None:
        """Reap an ended process and send its exit report."""
        self._unregister(process.pidfd)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # not reaped yet, so the id cannot be reused
        _, status, usage = os.wait4(process.pid, 0)
        os.close(process.pidfd)
        os.close(process.status)
        self._processes.discard(process)
        code = os.waitstatus_to_exitcode(status)
        if process.channel is not None:
            self._unregister(process.channel.fileno())
            cpu_s = usage.ru_utime + usage.ru_stime - process.cpu_before_s
            report = {
                "code": code,
                "kill_reason": process.kill_reason if code == -signal.SIGKILL else None,
                "duration_ms": round((time.monotonic() - process.started) * 1000),
                "prepare_ms": process.prepare_ms,
                "cpu_time_ms": max(0, round(cpu_s * 1000)),
                "memory_bytes": max(usage.ru_maxrss * 1024, process.peak_bytes),
                "data_bytes": process.data_bytes,
                "max_data_bytes": process.max_data_bytes,
            }
            _send(process.channel, report)
            process.channel.close()
            return
        self._unregister(process.streams[1])
        if not process.ready:
            error = process.kill_reason or "it ended at once"
            stderr = process.stderr_tail()
            self._fail(process.command, {"error": error, "code": code, "stderr": stderr})
        process.close_streams()

    def _fail(self, command: str, error: Message) -> None:
        """Send the error to waiting requests; start none of it again before the next request."""
        others = [other for other in self._recent if other != command]
        self._recent = deque(others, self._recent.maxlen)
        waiting = self._waiting.get(command, deque())
        while len(waiting) > len(self._available(command)):
            channel, _ = waiting.popleft()
            _send(channel, error)
            channel.close()
        if not waiting:
            self._waiting.pop(command, None)

    def _enforce_limits(self) -> None:
        """Enforce all time limits, and the memory and thread limits of running processes."""
        now = time.monotonic()
        if now >= self._balance_at:
            self._balance()
        for process in self._processes:
            if now >= process.deadline:
                late = f"it was not ready in {process.start_s:g} s"
                process.kill("timeout" if process.channel else late)
        if now < self._next_sample:
            return
        self._next_sample = now + SAMPLE_S
        for process in self._processes:
            if process.channel is not None:
                sample = process.sample()
                process.data_bytes = max(process.data_bytes, sample.data_bytes)
                process.peak_bytes = sample.peak_bytes
                if sample.peak_bytes > process.limits["memory_bytes"]:
                    process.kill("memory_limit")
                elif sample.threads > process.limits["threads"]:
                    process.kill("process_limit")

    def _timeout_s(self) -> float | None:
        """Return the seconds until the next check, or None if only events can require one."""
        if any(process.channel is not None for process in self._processes):
            return SAMPLE_S
        wake = min([self._balance_at, *(process.deadline for process in self._processes)])
        return None if wake == float("inf") else max(0.0, wake - time.monotonic())

    def _available(self, command: str) -> list[Process]:
        """Return processes of the command, ready or starting, that are not handed over yet."""
        return [
            process
            for process in self._processes
            if process.command == command and process.channel is None and not process.kill_reason
        ]

    def _open_watch(self, pid: int) -> tuple[int, int]:
        """Return descriptors of its end and its status, opened now so that no later read fails."""
        own = {"dir_fd": self._proc}
        status = os.open(f"{pid}/status", os.O_RDONLY | os.O_CLOEXEC, **own)
        try:
            # On a host out of memory the kernel should kill the workload, not the server.
            score = os.open(f"{pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC, **own)
            with suppress(OSError):
                os.write(score, b"1000")
            os.close(score)
            return os.pidfd_open(pid), status
        except OSError:
            os.close(status)
            raise

    def _unregister(self, descriptor: int) -> None:
        if descriptor >= 0 and descriptor in self._events.get_map():
            self._events.unregister(descriptor)


def _cpu_s(pid: int) -> float:
    """Return the process's CPU time in seconds, by its clock (clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime(~pid << 3 | 2)
    except OSError:
        return 0.0


def _send(channel: socket.socket, message: Message, descriptors: tuple[int, ...] = ()) -> None:
    """Send a message; ignore a receiver that has gone."""
    attached = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    with suppress(OSError):
        channel.sendmsg([json.dumps(message).encode()], attached if descriptors else [])


def _is_closed(channel: socket.socket) -> bool:
    """Return whether the server has closed the channel.

    A kill shuts down one direction only, because the server still waits for the report.
    """
    poll = select.poll()
    poll.register(channel, 0)  # the end of both directions is always reported
    return bool(poll.poll(0))


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher ends with the server, not before
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each process takes six
    libc.prctl(PR_SET_NAME, b"vulcan-launcher")
    Launcher(socket.socket(fileno=os.dup(0))).run()
