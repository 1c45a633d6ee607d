"""What is asked for and what came of it: plain values that every layer shares.

Sizes are bytes unless a name says otherwise, times are seconds or milliseconds as named, and
`cpus` counts whole processors.
"""

import json
import uuid
from base64 import b64decode
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import partial
from typing import Any, TypeAlias

from . import strict_json
from .exceptions import InvalidRequest, comma_join, short_repr
from .strict_json import JSON

AUTO = "auto"
SOURCE_FORMATS = ("code", "archive", "image")
WASM = "wasm"  # the runtime whose `code` is no text but a module in base64
MAX_COMMAND_BYTES = 128 * 1024  # as Linux takes for one argument

STREAMS = ("stdout", "stderr")
ENCODINGS = UTF8, LOSSY = "utf-8", "utf-8-lossy"
"""How a stream's text was made of what was printed: as it is, or with U+FFFD for some of it."""

Isolation: TypeAlias = str | Sequence[str]
"""`auto`, one backend name, or names in order of preference."""

OutputCallback: TypeAlias = Callable[[str, bytes], None]
"""Takes one of `STREAMS` and what a program has just written there; must be quick."""


class Status(StrEnum):
    """Where a workload is in its life."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    KILLED = "killed"


class ExitReason(StrEnum):
    """Why a workload ended, as the host saw it."""

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
    """What one workload may use at the most."""

    cpus: float = 1.0
    mem_mb: int = 256
    timeout_s: float = 10.0


UNSPECIFIED = Resources()
"""Stands for resources that the caller did not name: `services.run` puts the operator's there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceRange:
    """The default of a resource and the least and most that a caller may ask for."""

    default: float
    min: float
    max: float


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadSpec:
    """One workload as its caller describes it; exactly one of code, archive and image is given.

    `archive` is a tar.gz. `input` is any JSON. `output_bytes` is the host's cap on each of output,
    stdout and stderr; `services.run` sets it, it is no caller's choice. `on_output` gets what the
    program prints while it runs, from backends that can say it before the end.
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
        given = [name for name in SOURCE_FORMATS if getattr(self, name) is not None]
        if len(given) != 1:
            raise InvalidRequest(
                "code",
                "Give exactly one of code, code_archive and image"
                + (f"; this has {len(given)} of them." if given else "."),
            )

    @property
    def source_format(self) -> str:
        """Which of `SOURCE_FORMATS` the source is."""
        return next(name for name in SOURCE_FORMATS if getattr(self, name) is not None)

    def output_callback(self, stream: str) -> Callable[[bytes], None] | None:
        """Who gets what the program writes to one of `STREAMS`, if anybody wants it."""
        return None if self.on_output is None else partial(self.on_output, stream)

    def code_utf8(self) -> bytes:
        """`code` as the program's file has it; empty when the source is no code."""
        try:
            return (self.code or "").encode()
        except UnicodeEncodeError:
            raise InvalidRequest(
                "code", "Holds half a surrogate pair, which no UTF-8 has."
            ) from None

    def wasm_module(self) -> bytes | None:
        """Return the WebAssembly module that `code` holds in base64; None when it holds none."""
        if self.runtime != WASM:
            return None
        try:
            return b64decode("".join((self.code or "").split()), validate=True)
        except ValueError:
            return None

    def argv(self) -> tuple[str, ...]:
        """`command` as a kernel takes it."""
        try:
            size = sum(len(word.encode()) + 1 for word in self.command)
        except UnicodeEncodeError:
            raise InvalidRequest("command", "Holds half a surrogate pair.") from None
        if any("\0" in word for word in self.command):
            raise InvalidRequest("command", "Must not hold a NUL character.")
        if size > MAX_COMMAND_BYTES:
            raise InvalidRequest("command", f"Must be at most {MAX_COMMAND_BYTES:,} bytes.")
        return self.command

    def input_json(self) -> bytes:
        """Return `input` as the program gets it: one line with a JSON document in UTF-8."""
        try:
            text = json.dumps(
                self.input, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
            return f"{text}\n".encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequest("input", f"Must be JSON: {error}.") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The operator's bounds (ISOLATION_LIMITS): what a caller may ask for and send."""

    timeout_s: ResourceRange = ResourceRange(default=10.0, min=0.1, max=300.0)
    mem_mb: ResourceRange = ResourceRange(default=256, min=64, max=2048)
    cpus: ResourceRange = ResourceRange(default=1.0, min=0.1, max=4.0)
    code_bytes: int = 1024 * 1024
    archive_bytes: int = 10 * 1024 * 1024
    input_bytes: int = 1024 * 1024
    output_bytes: int = 1024 * 1024
    bodies_bytes: int | None = None
    """Bound the bytes of bodies that a process holds at once; by default two of the largest."""

    def resources(
        self,
        *,
        cpus: float | None = None,
        mem_mb: int | None = None,
        timeout_s: float | None = None,
    ) -> Resources:
        """What the caller asked for, with the operator's default for the rest."""
        return Resources(
            cpus=self.cpus.default if cpus is None else cpus,
            mem_mb=int(self.mem_mb.default) if mem_mb is None else mem_mb,
            timeout_s=self.timeout_s.default if timeout_s is None else timeout_s,
        )

    def check(self, spec: WorkloadSpec) -> None:
        """Raise `InvalidRequest` for the first bound that the workload breaks."""
        for part in fields(Resources):
            value, bound = getattr(spec.resources, part.name), getattr(self, part.name)
            if not bound.min <= value <= bound.max:  # NaN fails this too
                raise InvalidRequest(
                    f"resources.{part.name}",
                    f"Must be between {bound.min:g} and {bound.max:g}; got {short_repr(value)}.",
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
                    name, f"Must be at most {max_bytes:,} {unit}; this is {len(data):,}."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkloadResult:
    """What the host saw of one execution.

    `exit_reason` is the host's finding; only `output`, `stdout`, `stderr` and the text of `error`
    are the program's own words. `exit_code` is None when the program was ended by a signal, which
    is then named. `duration_ms` is the program's; to compile it before took `compile_ms`, None
    where nothing was compiled. `cpu_time_ms` is user plus system time, `memory_bytes` the peak
    resident set. `stdout_encoding` and `stderr_encoding` are `UTF8`, or `LOSSY` where bytes were
    no UTF-8.
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
        """Follows from the reason, so that the two cannot contradict each other."""
        if self.exit_reason is ExitReason.EXITED and self.exit_code == 0:
            return Status.COMPLETED
        if self.exit_reason is ExitReason.KILLED:
            return Status.KILLED
        return Status.FAILED


MAX_SIGNAL_CHARS = 16


def validate_result(result: object) -> str:
    """Return what no record or answer could hold of a result, with its field; empty if nothing.

    Backends are anybody's code, and a dataclass does not check its fields. `output` is the
    program's own and is checked apart.
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


def _check_integer(value: object, least: int, max_bytes: int) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"must be an integer, not {type(value).__name__}"
    return "" if least <= value <= max_bytes else f"must be between {least} and {max_bytes}"


def _check_member(value: object, members: Collection[str]) -> str:
    known = isinstance(value, str) and value in members
    return "" if known else f"must be one of {comma_join(members)}"


def _optional(check: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "" if value is None else check(value)


def _check_reason(value: object) -> str:
    if isinstance(value, ExitReason):
        return ""
    return f"must be an ExitReason, not {type(value).__name__}"


def _check_flag(value: object) -> str:
    return "" if isinstance(value, bool) else f"must be a boolean, not {type(value).__name__}"


_figure = partial(_check_integer, least=0, max_bytes=2**63 - 1)  # as a column takes it
_encoding = partial(_check_member, members=ENCODINGS)
_CHECKS: Mapping[str, Callable[[Any], str]] = {
    "exit_reason": _check_reason,
    "exit_code": _optional(partial(_check_integer, least=-(2**31), max_bytes=2**31 - 1)),
    "signal": _optional(partial(_check_text, max_chars=MAX_SIGNAL_CHARS)),
    "stdout": _check_text,
    "stderr": _check_text,
    "error": _check_text,
    "stdout_truncated": _check_flag,
    "stderr_truncated": _check_flag,
    "stdout_encoding": _encoding,
    "stderr_encoding": _encoding,
    "duration_ms": _figure,
    "compile_ms": _optional(_figure),
    "cpu_time_ms": _optional(_figure),
    "memory_bytes": _optional(_figure),
}


def output_from_stdout(stdout: str, *, truncated: bool) -> JSON:
    """`stdout` parsed, when the whole of it is one JSON document; else None."""
    if truncated:
        return None
    try:
        value: JSON = strict_json.loads(stdout)
    except strict_json.InvalidJSON:
        return None
    return value
