"""The host's side of the protocol with the agent in the machine; see `guest/agent.py`."""

import json
import secrets
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...sandbox.streams import Sink

SEED_BYTES = 64
HEAD = struct.Struct(">cI")
# Limits on compiling a program and on starting the harness of its runtime, in seconds.
COMPILE_S, START_S = 120.0, 60.0
MAX_FRAME_BYTES = 64 * 1024  # the agent's read size
MAX_REPORT_BYTES = 4096
MAX_SIGNAL = 64


@dataclass(frozen=True, kw_only=True)
class Program:
    """A program for the agent. `source` is written to `file`, or is an archive if that is None.

    `compile`, if not empty, is run before it. With `signals_start`, its harness writes a byte to
    descriptor 3 just before it loads the program.
    """

    source: bytes
    file: str | None
    compile: Sequence[str] = ()
    argv: Sequence[str]
    environment: Mapping[str, str]
    signals_start: bool = False

    @property
    def prepares(self) -> bool:
        """Return whether the agent reports when the program's time begins."""
        return self.prepare_s > 0

    @property
    def prepare_s(self) -> float:
        """Return how long the preparation may take, in seconds; 0 if there is none."""
        return COMPILE_S if self.compile else START_S if self.signals_start else 0.0


@dataclass(frozen=True, kw_only=True)
class GuestLimits:
    """Limits on a program inside the machine."""

    cpus: float
    memory_bytes: int
    disk_bytes: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """The end of a program as the guest's kernel saw it.

    `code` is the exit code, or minus the number of a signal. `oom_killed`: the kernel killed a
    process for lack of memory. `memory_denied`: it denied an allocation. `pids_denied`: it denied
    a process or thread. `disk_full`: no room was left for files.
    """

    code: int
    cpu_us: int
    memory_bytes: int
    oom_killed: bool
    memory_denied: bool
    pids_denied: bool
    disk_full: bool


def request(program: Program, guest_limits: GuestLimits, program_input: bytes) -> bytes:
    """Return the request in the agent's format, with the time and new entropy and machine id."""
    head = {
        "now_ns": time.time_ns(),
        "seed": secrets.token_hex(SEED_BYTES),
        "machine_id": secrets.token_hex(16),
        "cpus": guest_limits.cpus,
        "memory_bytes": guest_limits.memory_bytes,
        "disk_bytes": guest_limits.disk_bytes,
        "processes": guest_limits.processes,
        "file": program.file,
        "compile": list(program.compile),
        "argv": list(program.argv),
        "marks": program.signals_start,
        "environment": dict(program.environment),
        "source_bytes": len(program.source),
        "input_bytes": len(program_input),
    }
    text = json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + program.source + program_input


@dataclass
class AgentProtocol:
    """Sink that parses the agent's frames.

    Calls `on_start` once the program is prepared and its time begins, and `on_exit` after the last
    frame; nothing after that is read. Data that no agent sends sets `broken`, which is as final:
    `report` stays None. A workload cannot open the port; if it has taken over its guest's kernel,
    it can forge its own report here, and nothing else.
    """

    streams: Mapping[bytes, Sink]
    on_exit: Callable[[], None]
    on_start: Callable[[], None] | None = None
    report: ExitReport | None = None
    broken: bool = False
    _data: bytearray = field(default_factory=bytearray)

    def write(self, data: bytes) -> None:
        self._data += data
        while not (self.report or self.broken) and len(self._data) >= HEAD.size:
            kind, length = HEAD.unpack_from(self._data)
            if length > MAX_FRAME_BYTES:
                self._finish(None)
            elif len(self._data) < HEAD.size + length:
                return
            else:
                body = bytes(self._data[HEAD.size : HEAD.size + length])
                del self._data[: HEAD.size + length]
                self._frame(kind, body)

    def _frame(self, kind: bytes, body: bytes) -> None:
        if kind in self.streams:
            self.streams[kind].write(body)
        elif kind == b"b" and not body and self.on_start is not None:
            on_start, self.on_start = self.on_start, None
            on_start()
        else:
            self._finish(_parse_report(body) if kind == b"x" else None)

    def _finish(self, report: ExitReport | None) -> None:
        self.report, self.broken = report, report is None
        self._data.clear()
        self.on_exit()


def _parse_report(body: bytes) -> ExitReport | None:
    """Return the report, or None for data that no agent sends."""
    try:
        found: Any = json.loads(body) if len(body) <= MAX_REPORT_BYTES else None
    except (ValueError, RecursionError):
        return None
    match found:
        case {
            "code": int(code),
            "cpu_us": int(cpu_us),
            "memory_bytes": int(memory_bytes),
            "starved": bool(oom_killed),
            "denied": bool(memory_denied),
            "refused": bool(pids_denied),
            "full": bool(disk_full),
        } if -MAX_SIGNAL <= code <= 255 and 0 <= cpu_us < 2**53 and 0 <= memory_bytes < 2**53:
            return ExitReport(
                code=int(code),
                cpu_us=int(cpu_us),
                memory_bytes=int(memory_bytes),
                oom_killed=oom_killed,
                memory_denied=memory_denied,
                pids_denied=pids_denied,
                disk_full=disk_full,
            )
    return None
