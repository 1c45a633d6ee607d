"""The isolate backend: JavaScript, TypeScript and WebAssembly, a fresh Deno for each workload.

A process of Deno has started, and waits, before the workload comes that it is for; it runs that
one, behind the walls of `confinement`, and ends.
"""

import functools
import json
import os
import re
import secrets
import shutil
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import deno
from django.core.checks import CheckMessage, Warning

from ... import strict_json
from ...confinement.client import (
    Command,
    ConfinedProcess,
    Exit,
    Launcher,
    LaunchError,
    ProcessLimits,
)
from ...confinement.streams import Capture
from ...exceptions import BackendUnavailable, InvalidRequest
from ...strict_json import JSON
from ...workloads import WASM, ExitReason, WorkloadResult, WorkloadSpec, output_from_stdout
from .. import options
from ..base import Backend, BackendCapabilities, Health
from ..walls import describe_layers
from .frame import FRAME_OVERHEAD, MAX_ERROR_CHARS, FramedStdout, max_frame_bytes

INSTALL = "install it with: pip install deno"
HARNESSES = {"node": ("head.js", "container.js", "module.js"), WASM: ("head.js", "wasi.js")}
"""What runs a workload of each runtime inside Deno."""
SMOKE = """export default (x: { a: number; b: number }) => (
  { sum: x.a + x.b, deno: Deno.version.deno, v8: Deno.version.v8 });"""
MB = 1024 * 1024
MAX_OUTPUT_FACTOR = 16  # a program that prints more than this many frames is ended
MAX_THREADS = 64 + 2 * (os.cpu_count() or 1)  # Deno has some for each processor of its own
MAX_WORKERS = 8
WORKER_MB = 600  # V8 reserves 512 MB of addresses for the code of each isolate, as data
ENVIRONMENT = {
    "DENO_DIR": "/dev/null/deno",  # no cache, no localStorage, no file at all can be made there
    "DENO_EMIT_CACHE_MODE": "disable",  # or it tries to for 150 ms
    "NO_COLOR": "1",
}
BLOB = re.compile(r"blob:null/[0-9a-f-]{36}")  # what Deno calls the module in its own messages
HARNESS = re.compile(r"data:text/javascript;base64,[A-Za-z0-9+/=.]{100,}")  # and what calls it
ADVICE = re.compile(r'(Requires \w+ access(?: to "[^"\n]*")?), run again with the --[a-z-]+ flag')
STDOUT_CLOSED = "the program closed its stdout, so its result could not be handed over"
NAME = "workload.ts"
MODULE_NAME = "workload.wasm"  # as its first argument, which a shell makes of the file's name
MAX_PARTIAL_LINE_BYTES = 64 * 1024  # of a line that does not end; more than the harness's name has
STACK_OVERFLOW = "fatal runtime error: stack overflow"  # as Rust says it, and ends the process
TOO_DEEP = "Deno's stack overflowed, as it does when it reads source that is nested too deeply"
ABORTS = frozenset({"SIGTRAP", "SIGABRT", "SIGILL"})  # how V8 ends when its heap is full


class IsolateBackend(Backend):
    """Runs `node` and `wasm` workloads in Deno.

    The code of a `node` workload is an ES module or CommonJS. It is JavaScript where it can be read
    as that, and TypeScript otherwise.

    The code of a `wasm` workload is a WASI command module (preview 1) in base64. Its `command` are
    the module's arguments.

    OPTIONS: `deno`, the program (default: the one of the `deno` package); `max_concurrency`, how
    many workloads may run at once (default: 4); `pool_size`, how many processes of Deno wait for
    the next workloads, in each process of the server that has run one (default: 2); and
    `require_walls`, whether a wall that this host lacks makes the backend unavailable instead of a
    warning (default: False).
    """

    def __init__(
        self,
        *,
        deno: str | None = None,
        max_concurrency: int = 4,
        pool_size: int = 2,
        require_walls: bool = False,
    ) -> None:
        if deno is not None:
            options.text("deno", deno, "the path of the program")
        self._pool_size = options.integer("pool_size", pool_size, least=0)
        self._require_full_sandbox = options.boolean("require_walls", require_walls)
        self.capabilities = BackendCapabilities(
            name="V8 isolate (Deno)",
            supported_runtimes=tuple(HARNESSES),
            supported_isolations=("isolate",),
            supported_source_formats=("code",),
            max_concurrency=options.integer("max_concurrency", max_concurrency),
        )
        self._deno = deno
        self._launchers: dict[str, Launcher] = {}  # one, when there is Deno
        self._running: dict[str, ConfinedProcess] = {}
        self._closed = False

    def probe(self) -> Health:
        try:
            self._find_deno()
        except BackendUnavailable as missing:
            return Health.undetected(missing.reason)
        try:
            walls = self._describe_layers()
            result = self.execute(WorkloadSpec(runtime="node", code=SMOKE, input={"a": 1, "b": 2}))
        except BackendUnavailable as fault:
            return Health.unhealthy(fault.reason)
        match result.output:
            case {"sum": 3, "deno": str(deno_version), "v8": str(v8_version)}:
                return Health.ok(
                    "a TypeScript workload ran",
                    {
                        "deno_version": deno_version,
                        "v8_version": v8_version,
                        "isolation": "V8 isolate in a process of its own, Deno without permissions",
                        **{f"wall_{wall}": by for wall, by in walls.items()},
                    },
                )
        return Health.unhealthy(
            f"the smoke workload ended with {result.exit_reason} instead of its sum"
        )

    def validate(self, workload: WorkloadSpec) -> None:
        if workload.command and workload.runtime != WASM:
            raise InvalidRequest(
                "command", "A module is called, not run by a command: leave it out."
            )
        workload.argv()
        _code(workload)

    def execute(self, workload: WorkloadSpec) -> WorkloadResult:
        if self._closed:
            raise BackendUnavailable("it has been closed")
        self.validate(workload)
        assert workload.runtime is not None
        marker = secrets.token_hex(16)
        code, stdin = _code(workload), workload.input_json()
        given = _arguments(workload) if workload.runtime == WASM else stdin
        cap = workload.output_bytes
        stdout = FramedStdout(marker.encode(), cap, workload.output_callback("stdout"))
        complaints = _StderrForwarder(marker.encode(), workload.output_callback("stderr"))
        stderr = Capture(cap, complaints.write)
        resources = workload.resources
        limits = ProcessLimits(
            timeout_s=resources.timeout_s,
            memory_bytes=resources.mem_mb * MB,
            threads=MAX_THREADS,
            output_bytes=MAX_OUTPUT_FACTOR * max_frame_bytes(cap),
        )
        head = f"{marker}{len(code):08x}{len(given):08x}".encode()
        try:
            if self._require_full_sandbox:
                self._describe_layers()
            command = _command(workload.runtime, resources.mem_mb)
            process = self._launcher().process(command, limits, self._pool_size)
            self._running[workload.id] = process
            try:
                exit = process.run(head + code + given + stdin, stdout, stderr)
                complaints.close()
            finally:
                del self._running[workload.id]
        except LaunchError as error:
            raise BackendUnavailable(f"Deno could not be run: {error}") from error
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise BackendUnavailable(f"Deno could not be run: {reason}") from error
        return _result(exit, stdout, stderr, marker, workload)

    def kill(self, workload_id: str) -> None:
        if process := self._running.get(workload_id):
            process.kill()

    def warm_count(self) -> int:
        return sum(launcher.warm_count() for launcher in list(self._launchers.values()))

    def close(self) -> None:
        self._closed = True
        for process in list(self._running.values()):
            process.kill()
        for launcher in list(self._launchers.values()):
            launcher.close()

    def check(self) -> Sequence[CheckMessage]:
        try:
            _, missing = self._launcher().layers
        except (BackendUnavailable, LaunchError):  # what its probe says, and better
            return ()
        return [
            Warning(
                f"Isolates run without the wall {wall!r}: {reason}.",
                hint="docs/security.md says what each wall is for. With the option"
                " 'require_walls' the backend is unavailable instead.",
                id="backends_app.isolate.W001",
            )
            for wall, reason in missing.items()
        ]

    def _launcher(self) -> Launcher:
        """Nothing is started by this, only by what it is asked for. Without a lock, which a fork
        could leave locked for ever.
        """
        if found := self._launchers.get("deno"):
            return found
        launcher = self._launchers.setdefault("deno", Launcher(self._find_deno(), name="deno"))
        if self._closed:  # perhaps while this was made
            launcher.close()
        return launcher

    def _describe_layers(self) -> Mapping[str, str]:
        """What stands around each process, or why nothing may run."""
        return describe_layers(self._launcher(), what="Deno", required=self._require_full_sandbox)

    def _find_deno(self) -> str:
        """The path of Deno, or `BackendUnavailable` that says how to get it."""
        if self._deno is not None:
            if found := shutil.which(self._deno):
                return found
            raise BackendUnavailable(f"the configured Deno is no program; {INSTALL}")
        try:
            return os.fsdecode(deno.find_deno_bin())
        except FileNotFoundError:
            raise BackendUnavailable(f"Deno is not installed; {INSTALL}") from None


class _StderrForwarder:
    """Hands stderr on as it comes, line by line, as a person is to see it."""

    def __init__(self, marker: bytes, on_output: Callable[[bytes], None] | None) -> None:
        self._marker = marker  # the harness's, no line of the program
        self._on_output = on_output
        self._partial_line = b""

    def write(self, data: bytes) -> None:
        if self._on_output is None:
            return
        lines, end, self._partial_line = (self._partial_line + data).rpartition(b"\n")
        if len(self._partial_line) > MAX_PARTIAL_LINE_BYTES:
            lines, end, self._partial_line = lines + end + self._partial_line, b"", b""
        if lines or end:
            self._on_output(_clean_stderr((lines + end).decode(errors="replace")).encode())

    def close(self) -> None:
        begun = self._partial_line.removesuffix(self._marker)
        if self._on_output is not None and begun:
            self._on_output(_clean_stderr(begun.decode(errors="replace")).encode())


def _clean_stderr(stderr: str) -> str:
    """Name the program and what calls it, and leave out advice that nobody can take."""
    return ADVICE.sub(r"\1", BLOB.sub(NAME, HARNESS.sub("the harness", stderr)))


@functools.cache
def _command(runtime: str, mem_mb: int) -> Command:
    return Command(
        arguments=(
            "run",
            "--quiet",
            "--no-prompt",
            "--no-remote",
            "--no-npm",
            "--no-config",
            "--cached-only",
            "--no-lock",
            "--unstable-bare-node-builtins",
            "--unstable-unsafe-proto",  # Object.prototype.__proto__, which Node has
            f"--v8-flags=--max-old-space-size={mem_mb}",
            _harness(runtime, mem_mb),
        ),
        environment=ENVIRONMENT,
        memory_bytes=(mem_mb + MAX_WORKERS * WORKER_MB) * MB,
    )


def _code(workload: WorkloadSpec) -> bytes:
    """Return the source as the harness takes it: text, or the bytes of a WebAssembly module."""
    if workload.runtime != WASM:
        return workload.code_utf8()
    module = workload.wasm_module()
    if module is None:
        raise InvalidRequest("code", "Must be a WebAssembly module in base64.")
    return module


def _arguments(workload: WorkloadSpec) -> bytes:
    """Return the arguments of a WASI command as JSON, with the program's name before them."""
    return json.dumps([MODULE_NAME, *workload.argv()]).encode()


def _harness(runtime: str, mem_mb: int) -> str:
    """Return a data: URL: a module that was loaded by one, and what that one imports, may read no
    local file, not even by `import`.
    """
    here = Path(__file__).parent
    parts = [(here / name).read_bytes() for name in HARNESSES[runtime]]
    source = b"".join([f"const MEMORY_BYTES = {mem_mb * MB};\n".encode(), *parts])
    return f"data:text/javascript;base64,{b64encode(source).decode()}"


def _result(
    exit: Exit, stdout: FramedStdout, stderr: Capture, marker: str, workload: WorkloadSpec
) -> WorkloadResult:
    """What the host saw decides; what the program handed over counts only where it ended well."""
    stdout.close()
    printed = stdout.capture.text()
    complaints = stderr.text()
    lost = complaints.endswith(marker)
    complaints = _clean_stderr(complaints.removesuffix(marker))
    reason, output, error = ExitReason.EXITED, None, ""
    if exit.kill_reason is not None:
        reason, error = exit.kill_reason, _why(exit.kill_reason, workload)
    elif exit.signal is not None:
        reason, error = _describe_signal(exit, complaints, workload)
    elif note := _note(stdout):
        output = output_from_stdout(printed, truncated=stdout.capture.truncated)
        error = note if exit.exit_code == 0 else _deno_error(complaints)
    elif stdout.has_frame:
        reason, output, error = _parse_frame(stdout, workload)
        if error and exit.exit_code == 0 and reason is ExitReason.EXITED:
            reason = ExitReason.INVALID_OUTPUT  # an error that wants to pass for a success
    elif exit.exit_code != 0:
        error = STDOUT_CLOSED if lost else _deno_error(complaints)
    else:
        output = output_from_stdout(printed, truncated=stdout.capture.truncated)
    return WorkloadResult(
        exit_reason=reason,
        exit_code=exit.exit_code,
        signal=exit.signal,
        output=output if exit.exit_code == 0 else None,
        stdout=printed,
        stderr=complaints,
        stdout_truncated=stdout.capture.truncated,
        stderr_truncated=stderr.truncated,
        stdout_encoding=stdout.capture.encoding,
        stderr_encoding=stderr.encoding,
        error=error,
        duration_ms=exit.duration_ms,
        cpu_time_ms=exit.cpu_time_ms,
        memory_bytes=exit.memory_bytes,
    )


def _note(stdout: FramedStdout) -> str:
    """Return what the harness says beside an output that was printed, if anything."""
    try:
        frame = strict_json.loads(stdout.frame or b"")
    except strict_json.InvalidJSON:
        return ""
    match frame:
        case {"note": str(note)}:
            return note
    return ""


def _parse_frame(stdout: FramedStdout, workload: WorkloadSpec) -> tuple[ExitReason, JSON, str]:
    """Reason, output and error as the frame has them; user code may have written it."""
    too_large = f"the output is larger than {workload.output_bytes:,} bytes"
    if stdout.frame_too_large:
        return ExitReason.OUTPUT_LIMIT, None, too_large
    try:
        frame = strict_json.loads(stdout.frame or b"")
    except strict_json.InvalidJSON as refused:
        return ExitReason.INVALID_OUTPUT, None, f"the output is no JSON: {refused}"
    match frame:
        case {"output": _} if len(stdout.frame or b"") > workload.output_bytes + FRAME_OVERHEAD:
            return ExitReason.OUTPUT_LIMIT, None, too_large
        case {"output": output}:
            return ExitReason.EXITED, output, ""
        case {"error": str(error)}:
            return ExitReason.EXITED, None, error
        case {"invalid": str(error)}:
            return ExitReason.INVALID_OUTPUT, None, error
    return ExitReason.INVALID_OUTPUT, None, "the output is no JSON"


def _describe_signal(exit: Exit, stderr: str, workload: WorkloadSpec) -> tuple[ExitReason, str]:
    """Why a signal ended it that the host did not send."""
    mem_mb = workload.resources.mem_mb
    full = exit.memory_bytes >= mem_mb * MB * 0.9
    crowded = exit.data_bytes + WORKER_MB * MB > exit.max_data_bytes
    if exit.signal in ABORTS and (full or crowded):
        error = f"V8 gave up: {mem_mb} MB and {MAX_WORKERS} workers are what there is room for"
        return ExitReason.MEMORY_LIMIT, error
    if exit.signal == "SIGABRT" and STACK_OVERFLOW in stderr:
        return ExitReason.SIGNAL, f"{TOO_DEEP}, and was ended by {exit.signal}"
    return ExitReason.SIGNAL, f"ended by {exit.signal}"


def _deno_error(stderr: str) -> str:
    """What Deno itself says on a program's end that no handler of ours was told of."""
    if "Deno has panicked" in stderr:
        return "Deno itself failed: it panicked"
    found = re.search(r"^error: (.+)$", stderr, re.MULTILINE)
    return found.group(1)[:MAX_ERROR_CHARS] if found else ""


def _why(reason: ExitReason, workload: WorkloadSpec) -> str:
    """The bound that the host enforced, for people."""
    return {
        ExitReason.TIMEOUT: f"ended after its time limit of {workload.resources.timeout_s:g} s",
        ExitReason.MEMORY_LIMIT: f"ended for using more than {workload.resources.mem_mb} MB",
        ExitReason.OUTPUT_LIMIT: "ended for printing without end",
        ExitReason.PROCESS_LIMIT: f"ended for having more than {MAX_THREADS} threads",
        ExitReason.KILLED: "ended because somebody asked for it",
    }[reason]
