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
SMALL_BYTES, MAX_SMALL_READS, SMALL_READ_REST_S = 4096, 1000, 0.001
DRAIN_S = 0.5  # how long the pipes may stay open after the process has ended
PATIENCE_S = 15.0  # more than the launcher gives a process to start
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
class Bounds:
    """What one process may use, counted from when it was handed over; `memory_bytes` resident.

    `cpu_s` is for all of its threads together, by the kernel's limit, from the hand-over on.
    `prepare_s` is how long it may take until `ConfinedProcess.prepared` is called; only then
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
    `most_data_bytes` that it could.
    """

    ended_for: ExitReason | None
    exit_code: int | None
    signal: str | None
    duration_ms: int
    prepare_ms: int | None
    cpu_time_ms: int
    memory_bytes: int
    data_bytes: int
    most_data_bytes: int


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
        exposed: Sequence[str] = (),
        mapped: Sequence[str] = (),
        devices: Sequence[str] = (),
    ) -> None:
        self._configuration = {
            "program": os.path.realpath(program),
            "name": name,
            "exposed": list(exposed),
            "mapped": list(mapped),
            "devices": list(devices),
        }
        self._lock = threading.Lock()
        self._server: Server | None = None
        self._closed = False
        _launchers.add(self)

    @property
    def walls(self) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """What stands around each process, by wall, and what does not, with the reason."""
        server = self.server()
        return server.in_force, server.missing

    def process(self, command: Command, bounds: Bounds, spares: int = 0) -> "ConfinedProcess":
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
            "timeout_s": bounds.timeout_s,
            "prepare_s": bounds.prepare_s,
            "memory_bytes": bounds.memory_bytes,
            "threads": bounds.threads,
            "cpu_s": bounds.cpu_s,
        }
        request = {"command": text, "bounds": wanted, "spares": spares}
        return ConfinedProcess(self, request, bounds, command.start_s or 0.0)

    def warm_count(self) -> int:
        """How many processes wait ready; nothing is started by this."""
        with self._lock:
            server = self._server
        if server is None or not server.alive():
            return 0
        with server.ask({}) as line:
            answer, _ = _receive(line)
        return int(answer["ready"])

    def close(self) -> None:
        """End the launcher's process, and with it all that it has started; for good."""
        with self._lock:
            self._closed = True
            server, self._server = self._server, None
        if server is not None:
            server.finalize()

    def give_up(self, server: "Server") -> None:
        """It does not answer: end its process, and with it, by their leash, all it has started."""
        with self._lock:
            if self._server is server:
                self._server = None
        server.kill()
        server.finalize()

    def server(self) -> "Server":
        """The launcher's process, a new one when there is none that lives."""
        with self._lock:
            if self._closed:
                raise LaunchError("its launcher has been closed")
            if self._server is not None and not self._server.alive():
                self._server.finalize()
                self._server = None
            if self._server is None:
                self._server = Server(self._configuration)
                # Also when the interpreter ends.
                self._server.finalize = weakref.finalize(self, self._server.close)
            return self._server

    def _forget_after_fork(self) -> None:
        """In a child: the launcher is its parent's."""
        self._lock = threading.Lock()
        if self._server is not None:
            self._server.disown()
            self._server = None


_launchers: "weakref.WeakSet[Launcher]" = weakref.WeakSet()
_running: "weakref.WeakSet[ConfinedProcess]" = weakref.WeakSet()


def _after_fork() -> None:
    forget: list[Launcher | ConfinedProcess] = [*_launchers, *_running]
    for one in forget:
        with suppress(OSError):  # a thread was just closing it
            one._forget_after_fork()


os.register_at_fork(after_in_child=_after_fork)


class _Gone(LaunchError):
    """The launcher's process ended before it could answer."""

    def __init__(self) -> None:
        super().__init__("its launcher has ended")


class _Lost(LaunchError):
    """The process was killed before it was ready, and not by the launcher."""


class _Silent(LaunchError):
    """The launcher's process lives, and does not do its work."""

    def __init__(self) -> None:
        super().__init__("its launcher does not answer")


class Server:
    """A launcher's process and the socket to it; `finalize` closes it and is done with it."""

    finalize: "weakref.finalize[[], Launcher]"

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._control, theirs = _socketpair()
        self._control.settimeout(PATIENCE_S)
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
        self.in_force: Mapping[str, str] = answer["in_force"]
        self.missing: Mapping[str, str] = answer["missing"]

    def alive(self) -> bool:
        return self._process.poll() is None

    def gone(self) -> bool:
        """Has it ended, or is it about to? Its sockets are closed in the order it opened them."""
        if self._control.fileno() < 0:
            return True
        poll = select.poll()  # a `recv` would wait for its timeout, and select(2) has few numbers
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(0))

    def ask(self, request: Mapping[str, Any]) -> socket.socket:
        """The line of a process that is being started."""
        line, theirs = _socketpair()
        line.settimeout(GRACE_S)
        try:
            with theirs:
                _send(self._control, request, theirs)
        except BaseException:
            line.close()
            raise
        return line

    def close(self) -> None:
        self._control.close()
        if self._process.returncode is not None:
            return
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait()

    def disown(self) -> None:
        self._control.close()
        self._process.returncode = 0  # it is no child of this process

    def kill(self) -> None:
        self._process.kill()


class ConfinedProcess:
    """A process that is told its input when it is ready; `run` it once, and it is over.

    `kill` may come from any other thread, also before and after.
    """

    def __init__(
        self, launcher: Launcher, request: Mapping[str, Any], bounds: Bounds, start_s: float
    ) -> None:
        self._launcher = launcher
        self._request = request
        self._bounds = bounds
        self._start_s = start_s
        self._hold_stdin = False
        self._lock = threading.Lock()  # a line that is closed is not to be shut down
        self._line: socket.socket | None = None
        self._ended_for: ExitReason | None = None
        self._stdin = self._stdout = self._stderr = -1
        self._unsent = memoryview(b"")
        self._at_the_latest = 0.0
        self._received = 0
        self._small_reads = 0
        _running.add(self)

    def kill(self) -> None:
        """End the process because somebody asked for it."""
        self._end(ExitReason.KILLED)

    def end(self) -> None:
        """End the process because nothing more is wanted of it; that is nobody's reason."""
        self._hang_up()

    def prepared(self) -> None:
        """Begin the time of a process whose bounds have `prepare_s`; a sink of `run` calls it."""
        self._at_the_latest = time.monotonic() + self._bounds.timeout_s + GRACE_S
        with self._lock:
            if self._line is not None:
                with suppress(OSError):  # the launcher has gone
                    self._line.send(b"prepared")

    def run(self, stdin: bytes, stdout: Sink, stderr: Sink, *, hold_stdin: bool = False) -> Exit:
        """Feed and read the process until it has ended, by itself or by a bound.

        Its stdin ends after what is given, or is held open until it has ended itself.

        Raises `LaunchError` when there can be no process, or nobody can say what became of it.
        """
        try:
            server, line = self._start()
        except (_Gone, _Lost):  # somebody killed something; nothing has begun yet
            server, line = self._start()
        self._at_the_latest = (
            time.monotonic() + (self._bounds.prepare_s or self._bounds.timeout_s) + GRACE_S
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
                events.register(line, selectors.EVENT_READ)
                self._attend(events, line)
                account, _ = _receive(line)
                events.unregister(line)
                self._drain(events, time.monotonic() + DRAIN_S)
        except (_Gone, _Silent):
            self._launcher.give_up(server)
            raise
        finally:
            self._close()
        code, by_launcher = account["code"], account["ended_for"]
        # A kill that came too late ended nothing: the process had ended by itself.
        by_server = self._ended_for if code == -signal.SIGKILL else None
        return Exit(
            ended_for=ExitReason(by_launcher) if by_launcher else by_server,
            exit_code=code if code >= 0 else None,
            signal=_signal_name(-code) if code < 0 else None,
            duration_ms=account["duration_ms"],
            prepare_ms=account["prepare_ms"],
            cpu_time_ms=account["cpu_time_ms"],
            memory_bytes=account["memory_bytes"],
            data_bytes=account["data_bytes"],
            most_data_bytes=account["most_data_bytes"],
        )

    def _start(self) -> "tuple[Server, socket.socket]":
        """Ask for the process and wait until it is ready; gives its line, too."""
        server = self._launcher.server()
        try:
            with self._lock:
                line = self._line = server.ask(self._request)
            if self._ended_for is not None:
                self._end(self._ended_for)
            answer, streams = _receive(line)
            if "queued" in answer:
                line.settimeout(max(self._bounds.timeout_s, self._start_s) + GRACE_S)
                answer, streams = self._receive_late(line)
            if "error" in answer:
                raise (_Lost if answer.get("code") == -signal.SIGKILL else LaunchError)(
                    _why(answer)
                )
        except BaseException as error:
            self._close()
            if isinstance(error, _Gone) and not server.gone():
                raise LaunchError("its launcher has no room for it") from error
            if isinstance(error, _Gone | _Silent):
                self._launcher.give_up(server)
            raise
        if len(streams) != 3:  # the kernel drops what finds no room
            for stream in streams:
                os.close(stream)
            self._close()
            raise LaunchError("the server has too many files open")
        self._stdin, self._stdout, self._stderr = streams
        return server, line

    @staticmethod
    def _receive_late(line: socket.socket) -> tuple[dict[str, Any], Sequence[int]]:
        """The launcher works, so it is the process that is slow."""
        try:
            return _receive(line)
        except _Silent as error:
            raise LaunchError("no process was ready in time") from error

    def _forget_after_fork(self) -> None:
        """In a child: what is open here would stay open when the parent has closed it."""
        self._lock = threading.Lock()
        self._close()

    def _attend(self, events: selectors.BaseSelector, line: socket.socket) -> None:
        """Until there is something to hear on the line."""
        while True:
            left = self._at_the_latest - time.monotonic()
            if left <= 0:
                raise _Silent
            for key, _ in events.select(left):
                if key.fileobj is line:
                    return
                if key.data is None:
                    self._feed(events)
                else:
                    self._read(key, events)

    def _drain(self, events: selectors.BaseSelector, at_the_latest: float) -> None:
        """What the process left unread."""
        if self._stdin >= 0 and self._stdin in events.get_map():
            events.unregister(self._stdin)
        while events.get_map() and time.monotonic() < at_the_latest:
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
                time.sleep(SMALL_READ_REST_S)
        self._received += len(data)
        if self._received > self._bounds.output_bytes:
            self._end(ExitReason.OUTPUT_LIMIT)
        else:
            key.data.write(data)

    def _end(self, reason: ExitReason) -> None:
        """The first reason stands."""
        with self._lock:
            self._ended_for = self._ended_for or reason
        self._hang_up()

    def _hang_up(self) -> None:
        """The launcher ends what has no line."""
        with self._lock:
            if self._line is not None:
                with suppress(OSError):  # the launcher has gone
                    self._line.shutdown(socket.SHUT_WR)

    def _close(self) -> None:
        with self._lock:
            if self._line is not None:
                self._line.close()
            self._line = None
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
        raise _Silent from error
    except OSError as error:
        raise _Gone from error


def _receive(line: socket.socket) -> tuple[dict[str, Any], Sequence[int]]:
    """A message and the three streams that may come with it."""
    try:
        data, descriptors = receive(line, MAX_MESSAGE_BYTES, 3)
    except TimeoutError as error:
        raise _Silent from error
    except OSError as error:
        raise _Gone from error
    if not data:
        raise _Gone
    message: dict[str, Any] = json.loads(data)
    return message, descriptors


def _why(answer: Mapping[str, Any]) -> str:
    """Why a process was never ready, with the first line of what it said."""
    reason = str(answer["error"])
    if "code" in answer:
        reason += f", with {_ending(answer['code'])}"
    said = next((line for line in answer.get("said", "").splitlines() if line.strip()), "")
    return f"{reason}: {said}" if said else reason


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else _signal_name(-code)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
