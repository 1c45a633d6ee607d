"""The server's side of the launcher: one confined process for each call, and what became of it."""

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

from ..workloads import ExitReason
from .descriptors import receive
from .streams import Sink

READ_BYTES = 64 * 1024
MAX_MESSAGE_BYTES = 16 * 1024
SMALL_BYTES, MAX_SMALL_READS, SMALL_READ_DELAY_S = 4096, 1000, 0.001
DRAIN_S = 0.5  # how long the pipes may stay open after the process has ended
ANSWER_TIMEOUT_S = 15.0  # more than the launcher gives a process to start
GRACE_S = 1.5  # how much later than its time limit a process may be reported as ended
SOURCES = Path(__file__).parent.parent.parent  # where this package can be imported from
PROGRAM = """
import sys
sys.path.append(sys.argv[1])
from backends_app.confinement.launcher import main
main()
"""


class LaunchError(Exception):
    """No process can be had; the message says why, without a path of this host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """How the program is started. Spares are kept for equal commands.

    `memory_bytes` is what it may map beyond what it has mapped when it is ready. `files` are open
    for reading from descriptor 3 on. `start_s` is how long it may take until it is ready; where
    that is not said, no longer than its launcher allows, nor than its time limit.
    """

    arguments: Sequence[str]
    environment: Mapping[str, str]
    memory_bytes: int
    files: Sequence[str] = ()
    start_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessLimits:
    """What one process may use, counted from when it was handed over; `memory_bytes` resident.

    `cpu_s` is for all of its threads together, by the kernel's limit, from the hand-over on.
    `prepare_s` is how long it may take until `ConfinedProcess.start_timer` is called; only then
    `timeout_s` begins. 0 is for what has nothing to prepare.
    """

    timeout_s: float
    prepare_s: float = 0.0
    memory_bytes: int
    threads: int
    output_bytes: int
    cpu_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """How the process ended, by the kernel's account.

    `ended_for` is set when the host ended it. Exactly one of `exit_code` and `signal` is set.
    `duration_ms` and `cpu_time_ms` count from when it was handed over, or from when it was
    prepared, which took `prepare_ms`; that is None where it never was. `memory_bytes` is its
    largest resident set, `data_bytes` the most that it was seen to have mapped for data, of
    `max_data_bytes` that it could.
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
    """Starts processes of `program` behind walls; makes its own process when it is first needed.

    One instance serves many threads, and each process that forks off makes a launcher of its own.
    `name` is what the program is called inside; what else there is for it, see `Walls`.
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
        _launchers.add(self)

    @property
    def layers(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """What stands around each process, by wall, and what does not, with the reason."""
        server = self.server()
        return server.active, server.missing

    def process(self, command: Command, limits: ProcessLimits, warm: int = 0) -> "ConfinedProcess":
        """A process to be run. With it, `spares` are made ready for the next ones."""
        text = json.dumps(
            {
                "arguments": list(command.arguments),
                "environment": dict(command.environment),
                "memory_bytes": command.memory_bytes,
                "files": list(command.files),
                "start_s": command.start_s,
            }
        )
        wanted = {
            "timeout_s": limits.timeout_s,
            "prepare_s": limits.prepare_s,
            "memory_bytes": limits.memory_bytes,
            "threads": limits.threads,
            "cpu_s": limits.cpu_s,
        }
        request = {"command": text, "limits": wanted, "warm": warm}
        return ConfinedProcess(self, request, limits, command.start_s or 0.0)

    def warm_count(self) -> int:
        """How many processes wait ready; nothing is started by this."""
        with self._lock:
            server = self._server
        if server is None or not server.is_alive():
            return 0
        with server.open_channel({}) as channel:
            answer, _ = _receive(channel)
        return int(answer["ready"])

    def close(self) -> None:
        """End the launcher's process, and with it all that it has started; for good."""
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
        if server is not None:
            server.finalize()

    def discard(self, server: "LauncherProcess") -> None:
        """It does not answer: end its process, and with it, by their leash, all it has started."""
        with self._lock:
            if self._server is server:
                self._server = None
        server.kill()
        server.finalize()

    def server(self) -> "LauncherProcess":
        """The launcher's process, a new one when there is none that lives."""
        with self._lock:
            if self._closed:
                raise LaunchError("its launcher has been closed")
            if self._server is not None and not self._server.is_alive():
                self._server.finalize()
                self._server = None
            if self._server is None:
                self._server = LauncherProcess(self._configuration)
                # Also when the interpreter ends.
                self._server.finalize = weakref.finalize(self, self._server.close)
            return self._server

    def _reset_after_fork(self) -> None:
        """In a child: the launcher is its parent's."""
        self._lock = threading.Lock()
        if self._server is not None:
            self._server.detach()
            self._server = None


_launchers: "weakref.WeakSet[Launcher]" = weakref.WeakSet()
_running: "weakref.WeakSet[ConfinedProcess]" = weakref.WeakSet()


def _after_fork() -> None:
    forget: list[Launcher | ConfinedProcess] = [*_launchers, *_running]
    for one in forget:
        with suppress(OSError):  # a thread was just closing it
            one._reset_after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _LauncherGone(LaunchError):
    """The launcher's process ended before it could answer."""

    def __init__(self) -> None:
        super().__init__("its launcher has ended")


class _ProcessLost(LaunchError):
    """The process was killed before it was ready, and not by the launcher."""


class _LauncherSilent(LaunchError):
    """The launcher's process lives, and does not do its work."""

    def __init__(self) -> None:
        super().__init__("its launcher does not answer")


class LauncherProcess:
    """A launcher's process and the socket to it; `finalize` closes it and is done with it."""

    finalize: "weakref.finalize[[], Launcher]"

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._control, theirs = _socketpair()
        self._control.settimeout(ANSWER_TIMEOUT_S)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this very package
                    [sys.executable, "-I", "-S", "-c", PROGRAM, str(SOURCES)],
                    stdin=theirs.fileno(),
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env={},
                    start_new_session=True,  # a terminal's Ctrl-C is the server's business
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
        """Has it ended, or is it about to? Its sockets are closed in the order it opened them."""
        if self._control.fileno() < 0:
            return True
        poll = select.poll()  # a `recv` would wait for its timeout, and select(2) has few numbers
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(0))

    def open_channel(self, request: Mapping[str, Any]) -> socket.socket:
        """The line of a process that is being started."""
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
        self._process.returncode = 0  # it is no child of this process

    def kill(self) -> None:
        self._process.kill()


class ConfinedProcess:
    """A process that is told its input when it is ready; `run` it once, and it is over.

    `kill` may come from any other thread, also before and after.
    """

    def __init__(
        self, launcher: Launcher, request: Mapping[str, Any], limits: ProcessLimits, start_s: float
    ) -> None:
        self._launcher = launcher
        self._request = request
        self._limits = limits
        self._start_s = start_s
        self._hold_stdin = False
        self._lock = threading.Lock()  # a line that is closed is not to be shut down
        self._channel: socket.socket | None = None
        self._kill_reason: ExitReason | None = None
        self._stdin = self._stdout = self._stderr = -1
        self._unsent = memoryview(b"")
        self._deadline = 0.0
        self._received = 0
        self._small_reads = 0
        _running.add(self)

    def kill(self) -> None:
        """End the process because somebody asked for it."""
        self._request_kill(ExitReason.KILLED)

    def stop(self) -> None:
        """End the process because nothing more is wanted of it; that is nobody's reason."""
        self._hang_up()

    def start_timer(self) -> None:
        """Begin the time of a process whose bounds have `prepare_s`; a sink of `run` calls it."""
        self._deadline = time.monotonic() + self._limits.timeout_s + GRACE_S
        with self._lock:
            if self._channel is not None:
                with suppress(OSError):  # the launcher has gone
                    self._channel.send(b"prepared")

    def run(self, stdin: bytes, stdout: Sink, stderr: Sink, *, hold_stdin: bool = False) -> Exit:
        """Feed and read the process until it has ended, by itself or by a bound.

        Its stdin ends after what is given, or is held open until it has ended itself.

        Raises `LaunchError` when there can be no process, or nobody can say what became of it.
        """
        try:
            server, channel = self._start()
        except (_LauncherGone, _ProcessLost):  # somebody killed something; nothing has begun yet
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
        # A kill that came too late ended nothing: the process had ended by itself.
        by_server = self._kill_reason if code == -signal.SIGKILL else None
        return Exit(
            kill_reason=ExitReason(by_launcher) if by_launcher else by_server,
            exit_code=code if code >= 0 else None,
            signal=_signal_name(-code) if code < 0 else None,
            duration_ms=report["duration_ms"],
            prepare_ms=report["prepare_ms"],
            cpu_time_ms=report["cpu_time_ms"],
            memory_bytes=report["memory_bytes"],
            data_bytes=report["data_bytes"],
            max_data_bytes=report["max_data_bytes"],
        )

    def _start(self) -> "tuple[LauncherProcess, socket.socket]":
        """Ask for the process and wait until it is ready; gives its line, too."""
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
        if len(streams) != 3:  # the kernel drops what finds no room
            for stream in streams:
                os.close(stream)
            self._close()
            raise LaunchError("the server has too many files open")
        self._stdin, self._stdout, self._stderr = streams
        return server, channel

    @staticmethod
    def _receive_late(channel: socket.socket) -> tuple[dict[str, Any], Sequence[int]]:
        """The launcher works, so it is the process that is slow."""
        try:
            return _receive(channel)
        except _LauncherSilent as error:
            raise LaunchError("no process was ready in time") from error

    def _reset_after_fork(self) -> None:
        """In a child: what is open here would stay open when the parent has closed it."""
        self._lock = threading.Lock()
        self._close()

    def _pump(self, events: selectors.BaseSelector, channel: socket.socket) -> None:
        """Until there is something to hear on the line."""
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
        """What the process left unread."""
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
        except BrokenPipeError:  # it may end, or close its stdin, without having read all
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
            if self._small_reads > MAX_SMALL_READS:  # or a byte at a time would keep a core busy
                time.sleep(SMALL_READ_DELAY_S)
        self._received += len(data)
        if self._received > self._limits.output_bytes:
            self._request_kill(ExitReason.OUTPUT_LIMIT)
        else:
            key.data.write(data)

    def _request_kill(self, reason: ExitReason) -> None:
        """The first reason stands."""
        with self._lock:
            self._kill_reason = self._kill_reason or reason
        self._hang_up()

    def _hang_up(self) -> None:
        """The launcher ends what has no line."""
        with self._lock:
            if self._channel is not None:
                with suppress(OSError):  # the launcher has gone
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
        raise LaunchError(f"no socket is to be had: {error.strerror}") from error


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
    """A message and the three streams that may come with it."""
    try:
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
    """Why a process was never ready, with the first line of what it said."""
    reason = str(answer["error"])
    if "code" in answer:
        reason += f", with {_describe_exit(answer['code'])}"
    lines = answer.get("stderr", "").splitlines()
    first = next((line for line in lines if line.strip()), "")
    return f"{reason}: {first}" if first else reason


def _describe_exit(code: int) -> str:
    return f"exit code {code}" if code >= 0 else _signal_name(-code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
