"""Value types for workloads, their limits and their results, shared by every layer.

Sizes are in bytes unless the name has another unit, times in seconds or milliseconds as named, and
`cpus` counts whole processors.
"""

import json
import signal
import uuid
from base64 import b64decode
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

from .exceptions import InvalidRequest, comma_join
from .utils import strict_json
from .utils.strict_json import JSON
from .utils.text import short_repr

AUTO = "auto"
SOURCE_FORMATS = ("code", "archive", "image")
WASM = "wasm"  # the runtime whose `code` is a module in base64 instead of text
MAX_COMMAND_BYTES = 128 * 1024  # Linux's limit for one argument

STREAMS = ("stdout", "stderr")
ENCODINGS = UTF8, LOSSY = "utf-8", "utf-8-lossy"
"""How a stream's bytes were decoded: exactly, or with U+FFFD for invalid bytes."""

Isolation: TypeAlias = str | Sequence[str]
"""`auto`, one backend name, or names in order of preference."""

OutputCallback: TypeAlias = Callable[[str, bytes], None]
"""Receives one of `STREAMS` and the bytes just written to it; must return quickly."""


class Status(StrEnum):
    """The state of a workload's lifecycle."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    KILLED = "killed"


class ExitReason(StrEnum):
    """Why a workload ended, as observed by the host."""

    EXITED = "exited"
    SIGNAL = "signal"
    TIMEOUT = "timeout"
    MEMORY_LIMIT = "memory_limit"
    PROCESS_LIMIT = "process_limit"
    OUTPUT_LIMIT = "output_limit"
    DISK_LIMIT = "disk_limit"
    INVALID_OUTPUT = "invalid_output"
    KILLED = "killed"
    BACKEND_ERROR = "backend_error"
    WORKER_LOST = "worker_lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class Resources:
    """The maximum resources of one workload."""

    cpus: float = 1.0
    mem_mb: int = 256
    timeout_s: float = 10.0


UNSPECIFIED = Resources()
"""Stands for unspecified resources; `services.admit` substitutes the operator's defaults."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceRange:
    """The default of a resource, and the minimum and maximum that a caller may request."""

    default: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """One workload as requested; exactly one of code, archive and image is set.

    `archive` is a tar.gz. `input` is any JSON. `output_bytes` is the host's cap on each of output,
    stdout and stderr; `services.admit` sets it, callers cannot. `on_output` receives what the
    program prints while it runs, from backends that stream their output.
    """

    runtime: str | None = None
    isolation: Isolation = AUTO
    code: str | None = None
    archive: bytes | None = None
    image: str | None = None
    command: tuple[str, ...] = ()
    input: JSON = None
    resources: Resources = UNSPECIFIED
    output_bytes: int = 1024 * 1024
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    on_output: OutputCallback | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        sources = [name for name in SOURCE_FORMATS if getattr(self, name) is not None]
        if len(sources) != 1:
            raise InvalidRequest(
                "code",
                "Give exactly one of code, code_archive and image"
                + (f"; got {len(sources)} of them." if sources else "."),
            )

    @property
    def source_format(self) -> str:
        """Return which of `SOURCE_FORMATS` the source has."""
        return next(name for name in SOURCE_FORMATS if getattr(self, name) is not None)

    def output_callback(self, stream: str) -> Callable[[bytes], None] | None:
        """Return the callback for output on one of `STREAMS`, or None without `on_output`."""
        return None if self.on_output is None else partial(self.on_output, stream)

    def code_utf8(self) -> bytes:
        """Return `code` as the bytes of the program's file; empty for other source formats."""
        try:
            return (self.code or "").encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                "code", "Contains an unpaired surrogate and cannot be encoded as UTF-8."
            ) from None

    def wasm_module(self) -> bytes | None:
        """Return the WebAssembly module that `code` encodes in base64, or None."""
        if self.runtime != WASM:
            return None
        try:
            return b64decode("".join((self.code or "").split()), validate=True)
        except ValueError:
            return None

    def argv(self) -> tuple[str, ...]:
        """Return `command` checked for the kernel: no NUL, within its size limit."""
        try:
            size = sum(len(word.encode()) + 1 for word in self.command)
        except UnicodeEncodeError:
            raise InvalidRequest("command", "Contains an unpaired surrogate.") from None
        if any("\0" in word for word in self.command):
            raise InvalidRequest("command", "Must not contain a NUL character.")
        if size > MAX_COMMAND_BYTES:
            raise InvalidRequest("command", f"Must be at most {MAX_COMMAND_BYTES:,} bytes.")
        return self.command

    def input_json(self) -> bytes:
        """Return `input` as the program receives it: a JSON document in one line of UTF-8."""
        try:
            text = json.dumps(
                self.input, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
            return f"{text}\n".encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest("input", f"Must be JSON: {error}.") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The operator's limits (ISOLATION_LIMITS) on requested resources and request sizes."""

    timeout_s: ResourceRange = ResourceRange(default=10.0, min=0.1, max=300.0)
    mem_mb: ResourceRange = ResourceRange(default=256, min=64, max=2048)
    cpus: ResourceRange = ResourceRange(default=1.0, min=0.1, max=4.0)
    code_bytes: int = 1024 * 1024
    archive_bytes: int = 10 * 1024 * 1024
    input_bytes: int = 1024 * 1024
    output_bytes: int = 1024 * 1024
    bodies_bytes: int | None = None
    """The maximum bytes of request bodies in one process; by default two of the largest."""

    def resources(
        self,
        *,
        cpus: float | None = None,
        mem_mb: int | None = None,
        timeout_s: float | None = None,
    ) -> Resources:
        """Return the requested resources, with the operator's defaults for the rest."""
        return Resources(
            cpus=self.cpus.default if cpus is None else cpus,
            mem_mb=int(self.mem_mb.default) if mem_mb is None else mem_mb,
            timeout_s=self.timeout_s.default if timeout_s is None else timeout_s,
        )

    def check(self, spec: WorkloadSpec) -> None:
        """Raise `InvalidRequest` for the first limit that the workload exceeds."""
        for part in fields(Resources):
            value, allowed = getattr(spec.resources, part.name), getattr(self, part.name)
            if not allowed.min <= value <= allowed.max:  # NaN fails this too
                raise InvalidRequest(
                    f"resources.{part.name}",
                    f"Must be between {allowed.min:g} and {allowed.max:g}; "
                    f"got {short_repr(value)}.",
                )
        module = spec.wasm_module()
        sizes = {
            "code": (spec.code_utf8() if module is None else module, self.code_bytes),
            "code_archive": (spec.archive or b"", self.archive_bytes),
            "input": (spec.input_json().rstrip(b"\n"), self.input_bytes),
        }
        for name, (data, max_bytes) in sizes.items():
            if len(data) > max_bytes:
                unit = "bytes" if data is not module else "bytes of the module"
                raise InvalidRequest(
                    name, f"Must be at most {max_bytes:,} {unit}; got {len(data):,}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadResult:
    """The result of one execution, as observed by the host.

    `exit_reason` is determined by the host; only `output`, `stdout`, `stderr` and the text of
    `error` come from the program. `exit_code` is None when a signal ended the program; `signal` is
    its name. `duration_ms` is the program's and excludes `compile_ms`, the time to compile it
    before, which is None where nothing was compiled. `cpu_time_ms` is user plus system time,
    `memory_bytes` the peak resident set. `stdout_encoding` and `stderr_encoding` are `UTF8`, or
    `LOSSY` where the bytes were not valid UTF-8.
    """

    exit_reason: ExitReason
    exit_code: int | None = None
    signal: str | None = None
    output: JSON = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    stdout_encoding: str = UTF8
    stderr_encoding: str = UTF8
    error: str = ""
    duration_ms: int = 0
    compile_ms: int | None = None
    cpu_time_ms: int | None = None
    memory_bytes: int | None = None

    @property
    def status(self) -> Status:
        """Derive the status from the exit reason, so that the two cannot disagree."""
        if self.exit_reason is ExitReason.EXITED and self.exit_code == 0:
            return Status.COMPLETED
        if self.exit_reason is ExitReason.KILLED:
            return Status.KILLED
        return Status.FAILED


def describe_exit(reason: ExitReason, resources: Resources) -> str:
    """Return the sentence for a limit or a kill, the same on every backend; empty for the rest."""
    return {
        ExitReason.TIMEOUT: f"timed out after {resources.timeout_s:g} s",
        ExitReason.MEMORY_LIMIT: f"exceeded the memory limit of {resources.mem_mb} MB",
        ExitReason.PROCESS_LIMIT: "exceeded the limit on processes and threads",
        ExitReason.OUTPUT_LIMIT: "exceeded the output limit",
        ExitReason.DISK_LIMIT: "exceeded the disk limit",
        ExitReason.KILLED: "killed on request",
    }.get(reason, "")


MAX_SIGNAL_CHARS = 16


def signal_name(number: int) -> str:
    """Return the name of a signal; `SIG40` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def validate_result(result: object) -> str:
    """Return why a result cannot be recorded or rendered, starting with the field; "" if valid.

    Backends may be third-party code, and a dataclass does not check its fields. `output` comes from
    the program and is checked separately.
    """
    if not isinstance(result, WorkloadResult):
        return f"a {type(result).__name__} instead of a WorkloadResult"
    for name, check in _CHECKS.items():
        if problem := check(getattr(result, name)):
            return f"{name} {problem}"
    return ""


def _check_text(value: object, max_chars: int | None = None) -> str:
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if max_chars is not None and (len(value) > max_chars or not value.isprintable()):
        return f"must be at most {max_chars} printable characters"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "contains an unpaired surrogate"
    return ""


def _check_integer(value: object, minimum: int, maximum: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be an integer, not {type(value).__name__}"
    return "" if minimum <= value <= maximum else f"must be between {minimum} and {maximum}"


def _check_member(value: object, members: Collection[str]) -> str:
    is_member = isinstance(value, str) and value in members
    return "" if is_member else f"must be one of {comma_join(members)}"


def _optional(check: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "" if value is None else check(value)


def _check_reason(value: object) -> str:
    if isinstance(value, ExitReason):
        return ""
    return f"must be an ExitReason, not {type(value).__name__}"


def _check_flag(value: object) -> str:
    return "" if isinstance(value, bool) else f"must be a boolean, not {type(value).__name__}"


_check_count = partial(_check_integer, minimum=0, maximum=2**63 - 1)  # the range of the column
_check_encoding = partial(_check_member, members=ENCODINGS)
_CHECKS: Mapping[str, Callable[[Any], str]] = {
    "exit_reason": _check_reason,
    "exit_code": _optional(partial(_check_integer, minimum=-(2**31), maximum=2**31 - 1)),
    "signal": _optional(partial(_check_text, max_chars=MAX_SIGNAL_CHARS)),
    "stdout": _check_text,
    "stderr": _check_text,
    "error": _check_text,
    "stdout_truncated": _check_flag,
    "stderr_truncated": _check_flag,
    "stdout_encoding": _check_encoding,
    "stderr_encoding": _check_encoding,
    "duration_ms": _check_count,
    "compile_ms": _optional(_check_count),
    "cpu_time_ms": _optional(_check_count),
    "memory_bytes": _optional(_check_count),
}


def output_from_stdout(stdout: str, *, truncated: bool) -> JSON:
    """Parse `stdout` and return the value when all of it is one JSON document, else None."""
    if truncated:
        return None
    try:
        value: JSON = strict_json.loads(stdout)
    except strict_json.InvalidJSON:
        return None
    return value
