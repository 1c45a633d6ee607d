"""What the host and the agent in the machine say to each other; `guest/agent.py` says how."""

import json
import secrets
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...confinement.streams import Sink

SEED_BYTES = 64
HEAD = struct.Struct(">cI")
# How long a program may be compiled, and how long the harness of its runtime may take to start.
COMPILE_S, START_S = 120.0, 60.0
MAX_FRAME_BYTES = 64 * 1024  # as the agent reads
MAX_REPORT_BYTES = 4096
MAX_SIGNAL = 64


@dataclass(frozen=True, kw_only=True)
class Program:
    """Tell the agent what to run. `source` goes to `file`, or is an archive where that is None.

    `compile` is run before it, where it is not empty. A program that `marks` writes a byte to
    descriptor 3 when its harness is about to load it.
    """

    source: bytes
    file: str | None
    compile: Sequence[str] = ()
    argv: Sequence[str]
    environment: Mapping[str, str]
    signals_start: bool = False

    @property
    def prepares(self) -> bool:
        """Tell whether the agent says when its time begins."""
        return self.prepare_s > 0

    @property
    def prepare_s(self) -> float:
        """Return how long that may take."""
        return COMPILE_S if self.compile else START_S if self.signals_start else 0.0


@dataclass(frozen=True, kw_only=True)
class GuestLimits:
    """What the program may use of the machine."""

    cpus: float
    memory_bytes: int
    disk_bytes: int
    processes: int


@dataclass(frozen=True, kw_only=True)
class ExitReport:
    """How the program ended, as the machine's kernel saw it: `code` is minus a signal's number.

    `starved` says that something was ended for want of memory, `denied` that memory was asked for
    and not given, `refused` that a process or thread was not made, `full` that no room was left for
    files.
    """

    code: int
    cpu_us: int
    memory_bytes: int
    starved: bool
    denied: bool
    refused: bool
    full: bool


def request(program: Program, guest_limits: GuestLimits, given: bytes) -> bytes:
    """As the agent takes it, with the time, and with entropy and an id that are this machine's."""
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
        "input_bytes": len(given),
    }
    text = json.dumps(head).encode()
    return struct.pack(">I", len(text)) + text + program.source + given


@dataclass
class AgentProtocol:
    """A sink: takes the agent's frames apart. `on_account` is called when the last one is there,
    `on_begun` when the program has been prepared and its time begins.

    Nothing after that is read. What no agent says makes it `broken`, which is as final: then there
    is no account. A workload cannot open the port; if it has broken its machine, it can say here
    how it ended, and no more than that.
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
            begun, self.on_start = self.on_start, None
            begun()
        else:
            self._finish(_parse_report(body) if kind == b"x" else None)

    def _finish(self, report: ExitReport | None) -> None:
        self.report, self.broken = report, report is None
        self._data.clear()
        self.on_exit()


def _parse_report(body: bytes) -> ExitReport | None:
    """None for what no agent says."""
    try:
        found: Any = json.loads(body) if len(body) <= MAX_REPORT_BYTES else None
    except (ValueError, RecursionError):
        return None
    match found:
        case {
            "code": int(code),
            "cpu_us": int(cpu_us),
            "memory_bytes": int(memory_bytes),
            "starved": bool(starved),
            "denied": bool(denied),
            "refused": bool(refused),
            "full": bool(full),
        } if -MAX_SIGNAL <= code <= 255 and 0 <= cpu_us < 2**53 and 0 <= memory_bytes < 2**53:
            return ExitReport(
                code=int(code),
                cpu_us=int(cpu_us),
                memory_bytes=int(memory_bytes),
                starved=starved,
                denied=denied,
                refused=refused,
                full=full,
            )
    return None
