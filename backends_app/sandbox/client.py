"""Client of the launcher: run one confined process per call and return how it ended."""

import json
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..utils.forks import reset_after_fork
from ..workloads import ExitReason, signal_name
from .descriptors import receive
from .streams import Sink

READ_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 16 * 1024
SMALL_BYTES, MAX_SMALL_READS, SMALL_READ_DELAY_S = 4096, 1000, 0.001
DRAIN_S = 0.5  # how long the pipes may stay open after the process has ended
ANSWER_TIMEOUT_S = 15.0  # longer than the launcher's limit for a process to start
GRACE_S = 1.5  # how long after its time limit the end of a process may be reported
SOURCES = Path(__file__).parent.parent.parent  # the folder that this package is imported from
PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from backends_app.sandbox.launcher import main
main()
"""


class LaunchError(Exception):
    """No process could be started. The message gives the reason, without a path of this host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """How the program is started. Warm instances serve equal commands.

    `memory_bytes` is how much it may map beyond what it has mapped when it is ready. `files` are
    open for reading from descriptor 3 on. `start_s` limits the time until it is ready; by default
    the launcher's limit applies, and the process's time limit.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    memory_bytes: int
    files: Sequence[str] = ()
    start_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessLimits:
    """Limits on one process, counted from the hand-over; `memory_bytes` is resident memory.

    `cpu_s` is the kernel's limit on all of its threads together. `prepare_s` limits the time until
    `ConfinedProcess.start_timer` is called, when `timeout_s` begins; 0 if there is nothing to
    prepare.
    """

    timeout_s: float
    prepare_s: float = 0.0
    memory_bytes: int
    threads: int
    output_bytes: int
    cpu_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How the process ended, as reported by the kernel.

    `kill_reason` is set if the host killed it. Exactly one of `exit_code` and `signal` is set.
    `duration_ms` and `cpu_time_ms` count from the hand-over, or from the end of the preparation,
    which took `prepare_ms` (None if it never ended). `memory_bytes` is the peak resident set,
    `data_bytes` the largest sampled size of its data mappings, of at most `max_data_bytes`.
    """

    kill_reason: ExitReason | None
    exit_code: int | None
    signal: str | None
    duration_ms: int
    prepare_ms: int | None
    cpu_time_ms: int
    memory_bytes: int
    data_bytes: int
    max_data_bytes: int


class Launcher:
    """Starts sandboxed processes of `program`; its own process is started on first use.

    One instance serves many threads; each forked child starts a launcher process of its own.
    `name` is the program's name inside the sandbox. For the other arguments see `Sandbox`.
    """

    def __init__(
        self,
        program: str,
        *,
        name: str,
        readable_files: Sequence[str] = (),
        mapped_files: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> None:
        self._configuration = {
            "program": os.path.realpath(program),
            "name": name,
            "readable_files": list(readable_files),
            "mapped_files": list(mapped_files),
            "devices": list(devices),
        }
        self._lock = threading.Lock()
        self._server: LauncherProcess | None = None
        self._closed = False
        reset_after_fork(self)

    @property
    def layers(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Return the active sandbox layers with their basis, and the missing ones with why."""
        server = self.server()
        return server.active, server.missing

    def process(self, command: Command, limits: ProcessLimits, warm: int = 0) -> "ConfinedProcess":
        """Return a process to run, and keep `warm` instances ready for the next ones."""
        text = json.dumps(
            {
                "arguments": list(command.arguments),
                "environment": dict(command.environment),
                "memory_bytes": command.memory_bytes,
                "files": list(command.files),
                "start_s": command.start_s,
            }
        )
        limit_values = {
            "timeout_s": limits.timeout_s,
            "prepare_s": limits.prepare_s,
            "memory_bytes": limits.memory_bytes,
            "threads": limits.threads,
            "cpu_s": limits.cpu_s,
        }
        request = {"command": text, "limits": limit_values, "warm": warm}
        return ConfinedProcess(self, request, limits, command.start_s or 0.0)

    def warm_count(self) -> int:
        """Return how many warm processes are ready, without starting anything."""
        with self._lock:
            server = self._server
        if server is None or not server.is_alive():
            return 0
        with server.open_channel({}) as channel:
            answer, _ = _receive(channel)
        return int(answer["ready"])

    def close(self) -> None:
        """Kill the launcher's process and all that it has started, for good."""
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
        if server is not None:
            server.finalize()

    def discard(self, server: "LauncherProcess") -> None:
        """Kill a launcher process that does not answer; its processes die with their parent."""
        with self._lock:
            if self._server is server:
                self._server = None
        server.kill()
        server.finalize()

    def server(self) -> "LauncherProcess":
        """Return the launcher's process, starting a new one if none is alive."""
        with self._lock:
            if self._closed:
                raise LaunchError("its launcher has been closed")
            if self._server is not None and not self._server.is_alive():
                self._server.finalize()
                self._server = None
            if self._server is None:
                self._server = LauncherProcess(self._configuration)
                # Runs at interpreter exit, too.
                self._server.finalize = weakref.finalize(self, self._server.close)
            return self._server

    def _reset_after_fork(self) -> None:
        """Detach a forked child from the launcher process, which belongs to its parent."""
        self._lock = threading.Lock()
        server, self._server = self._server, None
        if server is not None:
            with suppress(OSError):  # a thread was closing it during the fork
                server.detach()


class _LauncherGone(LaunchError):
    """The launcher's process ended before it answered."""

    def __init__(self) -> None:
        super().__init__("its launcher has ended")


class _ProcessLost(LaunchError):
    """The process was killed before it was ready, but not by the launcher."""


class _LauncherSilent(LaunchError):
    """The launcher's process is alive but does not answer."""

    def __init__(self) -> None:
        super().__init__("its launcher does not answer")


class LauncherProcess:
    """A launcher's process and the control socket to it; `finalize` closes both."""

    finalize: "weakref.finalize[[], Launcher]"

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._control, theirs = _socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this package's own code
                    [sys.executable, "-I", "-S", "-c", PROGRAM, str(SOURCES)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env={},
                    start_new_session=True,  # the server alone handles a terminal's Ctrl-C
                )
        except OSError as error:
            self._control.close()
            raise LaunchError(f"its launcher cannot be started: {error.strerror}") from error
        try:
            _send(self._control, configuration)
            answer, _ = _receive(self._control)
            if "error" in answer:
                raise LaunchError(answer["error"])
        except BaseException:
            self.close()
            raise
        self.active: Mapping[str, str] = answer["active"]
        self.missing: Mapping[str, str] = answer["missing"]

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def is_gone(self) -> bool:
        """Return whether it has ended or is ending: it closes its sockets in order of opening."""
        if self._control.fileno() < 0:
            return True
        poll = select.poll()  # `recv` would block until its timeout; select(2) has an fd limit
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(0))

    def open_channel(self, request: Mapping[str, Any]) -> socket.socket:
        """Send a request and return the new channel on which it is answered."""
        channel, theirs = _socketpair()
        channel.settimeout(GRACE_S)
        try:
            with theirs:
                _send(self._control, request, theirs)
        except BaseException:
            channel.close()
            raise
        return channel

    def close(self) -> None:
        self._control.close()
        if self._process.returncode is not None:
            return
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def detach(self) -> None:
        self._control.close()
        self._process.returncode = 0  # it is not a child of this process

    def kill(self) -> None:
        self._process.kill()


class ConfinedProcess:
    """A process that receives its input once it is ready. `run` may be called once.

    `kill` may be called from any thread, also before and after `run`.
    """

    def __init__(
        self, launcher: Launcher, request: Mapping[str, Any], limits: ProcessLimits, start_s: float
    ) -> None:
        self._launcher = launcher
        self._request = request
        self._limits = limits
        self._start_s = start_s
        self._hold_stdin = False
        self._lock = threading.Lock()  # so that a closed channel is never shut down
        self._channel: socket.socket | None = None
        self._kill_reason: ExitReason | None = None
        self._stdin = self._stdout = self._stderr = -1
        self._unsent = memoryview(b"")
        self._deadline = 0.0
        self._received = 0
        self._small_reads = 0
        reset_after_fork(self)

    def kill(self) -> None:
        """Kill the process on request, with the reason `killed`."""
        self._request_kill(ExitReason.KILLED)

    def stop(self) -> None:
        """End the process because it is no longer needed, without a kill reason."""
        self._hang_up()

    def start_timer(self) -> None:
        """Begin the time limit of a process with `prepare_s`; called by a sink of `run`."""
        self._deadline = time.monotonic() + self._limits.timeout_s + GRACE_S
        with self._lock:
            if self._channel is not None:
                with suppress(OSError):  # the launcher has ended
                    self._channel.send(b"prepared")

    def run(self, stdin: bytes, stdout: Sink, stderr: Sink, *, hold_stdin: bool = False) -> Exit:
        """Feed and read the process until it exits or is killed by a limit.

        Its stdin is closed after the given bytes, or, with `hold_stdin`, after the process has
        ended.

        Raise `LaunchError` if no process can be started or its end is unknown.
        """
        try:
            server, channel = self._start()
        except (_LauncherGone, _ProcessLost):  # killed from outside, before the program began
            server, channel = self._start()
        self._deadline = (
            time.monotonic() + (self._limits.prepare_s or self._limits.timeout_s) + GRACE_S
        )
        self._unsent = memoryview(stdin)
        self._hold_stdin = hold_stdin
        try:
            with selectors.EpollSelector() as events:
                for stream, wanted, sink in (
                    (self._stdin, selectors.EVENT_WRITE, None),
                    (self._stdout, selectors.EVENT_READ, stdout),
                    (self._stderr, selectors.EVENT_READ, stderr),
                ):
                    os.set_blocking(stream, False)
                    events.register(stream, wanted, sink)
                events.register(channel, selectors.EVENT_READ)
                self._pump(events, channel)
                report, _ = _receive(channel)
                events.unregister(channel)
                self._drain(events, time.monotonic() + DRAIN_S)
        except (_LauncherGone, _LauncherSilent):
            self._launcher.discard(server)
            raise
        finally:
            self._close()
        code, by_launcher = report["code"], report["kill_reason"]
        # A kill that came too late had no effect: the process had exited by itself.
        by_server = self._kill_reason if code == -signal.SIGKILL else None
        return Exit(
            kill_reason=ExitReason(by_launcher) if by_launcher else by_server,
            exit_code=code if code >= 0 else None,
            signal=signal_name(-code) if code < 0 else None,
            duration_ms=report["duration_ms"],
            prepare_ms=report["prepare_ms"],
            cpu_time_ms=report["cpu_time_ms"],
            memory_bytes=report["memory_bytes"],
            data_bytes=report["data_bytes"],
            max_data_bytes=report["max_data_bytes"],
        )

    def _start(self) -> "tuple[LauncherProcess, socket.socket]":
        """Request the process, wait until it is ready, and return its launcher and channel."""
        server = self._launcher.server()
        try:
            with self._lock:
                channel = self._channel = server.open_channel(self._request)
            if self._kill_reason is not None:
                self._request_kill(self._kill_reason)
            answer, streams = _receive(channel)
            if "queued" in answer:
                channel.settimeout(max(self._limits.timeout_s, self._start_s) + GRACE_S)
                answer, streams = self._receive_late(channel)
            if "error" in answer:
                raise (_ProcessLost if answer.get("code") == -signal.SIGKILL else LaunchError)(
                    _describe_failure(answer)
                )
        except BaseException as error:
            self._close()
            if isinstance(error, _LauncherGone) and not server.is_gone():
                raise LaunchError("its launcher has no room for it") from error
            if isinstance(error, _LauncherGone | _LauncherSilent):
                self._launcher.discard(server)
            raise
        if len(streams) != 3:  # the kernel drops descriptors over the limit
            for stream in streams:
                os.close(stream)
            self._close()
            raise LaunchError("the server has too many files open")
        self._stdin, self._stdout, self._stderr = streams
        return server, channel

    @staticmethod
    def _receive_late(channel: socket.socket) -> tuple[dict[str, Any], Sequence[int]]:
        """Receive from a launcher known to work: a timeout means that the process is slow."""
        try:
            return _receive(channel)
        except _LauncherSilent as error:
            raise LaunchError("no process was ready in time") from error

    def _reset_after_fork(self) -> None:
        """Close the streams in a forked child; else they would outlast the parent's close."""
        self._lock = threading.Lock()
        with suppress(OSError):  # a thread was closing them during the fork
            self._close()

    def _pump(self, events: selectors.BaseSelector, channel: socket.socket) -> None:
        """Feed and read the process until a message arrives on the channel."""
        while True:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise _LauncherSilent
            for key, _ in events.select(left):
                if key.fileobj is channel:
                    return
                if key.data is None:
                    self._feed(events)
                else:
                    self._read(key, events)

    def _drain(self, events: selectors.BaseSelector, deadline: float) -> None:
        """Read the output that is left after the process has ended."""
        if self._stdin >= 0 and self._stdin in events.get_map():
            events.unregister(self._stdin)
        while events.get_map() and time.monotonic() < deadline:
            for key, _ in events.select(DRAIN_S):
                self._read(key, events)

    def _feed(self, events: selectors.BaseSelector) -> None:
        try:
            self._unsent = self._unsent[os.write(self._stdin, self._unsent[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it may end, or close its stdin, before it has read everything
            self._unsent = self._unsent[:0]
        if not self._unsent:
            events.unregister(self._stdin)
            if not self._hold_stdin:
                os.close(self._stdin)
                self._stdin = -1

    def _read(self, key: selectors.SelectorKey, events: selectors.BaseSelector) -> None:
        try:
            data = os.read(key.fd, READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            events.unregister(key.fd)
            return
        if len(data) < SMALL_BYTES:
            self._small_reads += 1
            if self._small_reads > MAX_SMALL_READS:  # or single bytes would keep a core busy
                time.sleep(SMALL_READ_DELAY_S)
        self._received += len(data)
        if self._received > self._limits.output_bytes:
            self._request_kill(ExitReason.OUTPUT_LIMIT)
        else:
            key.data.write(data)

    def _request_kill(self, reason: ExitReason) -> None:
        """Kill the process; the first reason is kept."""
        with self._lock:
            self._kill_reason = self._kill_reason or reason
        self._hang_up()

    def _hang_up(self) -> None:
        """Shut down the channel for writing; the launcher then kills the process."""
        with self._lock:
            if self._channel is not None:
                with suppress(OSError):  # the launcher has ended
                    self._channel.shutdown(socket.SHUT_WR)

    def _close(self) -> None:
        with self._lock:
            if self._channel is not None:
                self._channel.close()
            self._channel = None
        for stream in (self._stdin, self._stdout, self._stderr):
            if stream >= 0:
                os.close(stream)
        self._stdin = self._stdout = self._stderr = -1


def _socketpair() -> tuple[socket.socket, socket.socket]:
    try:
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    except OSError as error:
        raise LaunchError(f"no socket can be created: {error.strerror}") from error


def _send(
    to: socket.socket, message: Mapping[str, Any], attached: socket.socket | None = None
) -> None:
    try:
        socket.send_fds(
            to, [json.dumps(message).encode()], [] if attached is None else [attached.fileno()]
        )
    except TimeoutError as error:
        raise _LauncherSilent from error
    except OSError as error:
        raise _LauncherGone from error


def _receive(channel: socket.socket) -> tuple[dict[str, Any], Sequence[int]]:
    """Receive a message and the three streams that may be attached to it."""
    try:
        try:
            data, descriptors = receive(channel, MAX_MESSAGE_BYTES, 3)
        except ConnectionResetError:
            # The launcher closed without reading our last message. The kernel reports that once,
            # before what the launcher has sent: the process may have ended at the same moment.
            data, descriptors = receive(channel, MAX_MESSAGE_BYTES, 3)
    except TimeoutError as error:
        raise _LauncherSilent from error
    except OSError as error:
        raise _LauncherGone from error
    if not data:
        raise _LauncherGone
    message: dict[str, Any] = json.loads(data)
    return message, descriptors


def _describe_failure(answer: Mapping[str, Any]) -> str:
    """Return why a process was never ready, with the first line of its stderr."""
    reason = str(answer["error"])
    if "code" in answer:
        reason += f", with {_describe_exit(answer['code'])}"
    lines = answer.get("stderr", "").splitlines()
    first = next((line for line in lines if line.strip()), "")
    return f"{reason}: {first}" if first else reason


def _describe_exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else signal_name(-code)
