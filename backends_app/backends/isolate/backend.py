"""The isolate backend: JavaScript, TypeScript and WebAssembly, a fresh Deno for each workload.

A Deno process starts inside the sandbox layers of `sandbox` before its workload arrives, runs
that one workload and exits.
"""

import functools
import json
import os
import re
import secrets
import shutil
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.core.checks import CheckMessage, Warning

from ...exceptions import BackendUnavailable, InvalidRequest
from ...sandbox.client import Command, ConfinedProcess, Exit, Launcher, LaunchError, ProcessLimits
from ...sandbox.streams import Capture
from ...utils import strict_json
from ...utils.strict_json import JSON
from ...workloads import (
    WASM,
    ExitReason,
    WorkloadResult,
    WorkloadSpec,
    describe_exit,
    output_from_stdout,
)
from .. import options
from ..base import Backend, BackendCapabilities, Health
from ..walls import describe_layers
from .frame import FRAME_OVERHEAD, MAX_ERROR_CHARS, FramedStdout, max_frame_bytes

INSTALL = "install it with: pip install deno"
HARNESSES = {"node": ("head.js", "container.js", "module.js"), WASM: ("head.js", "wasi.js")}
"""JavaScript files that together run a workload of each runtime inside Deno."""
SMOKE = """export default (x: { a: number; b: number }) => (
  { sum: x.a + x.b, deno: Deno.version.deno, v8: Deno.version.v8 });"""
MB = 1024 * 1024
MAX_OUTPUT_FACTOR = 16  # in frames: a program that prints more is killed
MAX_THREADS = 64 + 2 * (os.cpu_count() or 1)  # Deno starts some for each processor
MAX_WORKERS = 8
WORKER_MB = 600  # V8 reserves 512 MB of addresses for the code of each isolate, as data
ENVIRONMENT = {
    "DENO_DIR": "/dev/null/deno",  # no cache, no localStorage, no file at all can be made there
    "DENO_EMIT_CACHE_MODE": "disable",  # otherwise it tries to create one for 150 ms
    "NO_COLOR": "1",
}
BLOB = re.compile(r"blob:null/[0-9a-f-]{36}")  # the module's name in Deno's own messages
HARNESS = re.compile(r"data:text/javascript;base64,[A-Za-z0-9+/=.]{100,}")  # its caller's name
ADVICE = re.compile(r'(Requires \w+ access(?: to "[^"\n]*")?), run again with the --[a-z-]+ flag')
STDOUT_CLOSED = "the program closed its stdout, so its result was lost"
NAME = "workload.ts"
MODULE_NAME = "workload.wasm"  # the first argument, which a shell takes from the file's name
MAX_PARTIAL_LINE_BYTES = 64 * 1024  # longer than the harness's name
STACK_OVERFLOW = "fatal runtime error: stack overflow"  # Rust's message before it aborts
TOO_DEEP = "Deno's stack overflowed, probably because the source is nested too deeply"
ABORTS = frozenset({"SIGTRAP", "SIGABRT", "SIGILL"})  # signals that V8 ends with on a full heap


@dataclass(frozen=True, kw_only=True, slots=True)
class IsolatePlan:
    """A workload as the harness reads it: the source, JSON arguments, and the program's stdin."""

    workload: WorkloadSpec
    code: bytes
    arguments: bytes
    stdin: bytes


class IsolateBackend(Backend):
    """Backend that runs `node` and `wasm` workloads in Deno.

    The code of a `node` workload is an ES module or CommonJS: JavaScript if it parses as that,
    otherwise TypeScript.

    The code of a `wasm` workload is a WASI command module (preview 1) in base64. Its `command`
    holds the module's arguments.

    OPTIONS:

    - `deno`: the program (default: the one of the `deno` package)
    - `max_concurrency`: workloads that may run at once (default: 4)
    - `pool_size`: warm Deno processes in each server process that has run a workload (default: 2)
    - `require_walls`: make the backend unavailable, instead of warning, when this host lacks a
      sandbox layer (default: False)
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
            layers = self._describe_layers()
            result = self.run(WorkloadSpec(runtime="node", code=SMOKE, input={"a": 1, "b": 2}))
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
                        **{f"wall_{layer}": basis for layer, basis in layers.items()},
                    },
                )
        return Health.unhealthy(
            f"the smoke test returned an unexpected result (exit reason: {result.exit_reason})"
        )

    def prepare(self, workload: WorkloadSpec) -> IsolatePlan:
        if workload.command and workload.runtime != WASM:
            raise InvalidRequest(
                "command", "Not supported for JavaScript modules, which are called. Leave it out."
            )
        stdin = workload.input_json()
        is_wasm = workload.runtime == WASM
        return IsolatePlan(
            workload=workload,
            code=_wasm_module(workload) if is_wasm else workload.code_utf8(),
            arguments=_wasi_arguments(workload) if is_wasm else stdin,
            stdin=stdin,
        )

    def execute(self, plan: IsolatePlan) -> WorkloadResult:
        if self._closed:
            raise BackendUnavailable("it has been closed")
        workload = plan.workload
        assert workload.runtime is not None
        marker = secrets.token_hex(16)
        cap = workload.output_bytes
        stdout = FramedStdout(marker.encode(), cap, workload.output_callback("stdout"))
        forwarder = _StderrForwarder(marker.encode(), workload.output_callback("stderr"))
        stderr = Capture(cap, forwarder.write)
        resources = workload.resources
        limits = ProcessLimits(
            timeout_s=resources.timeout_s,
            memory_bytes=resources.mem_mb * MB,
            threads=MAX_THREADS,
            output_bytes=MAX_OUTPUT_FACTOR * max_frame_bytes(cap),
        )
        head = f"{marker}{len(plan.code):08x}{len(plan.arguments):08x}".encode()
        try:
            if self._require_full_sandbox:
                self._describe_layers()
            command = _command(workload.runtime, resources.mem_mb)
            process = self._launcher().process(command, limits, self._pool_size)
            self._running[workload.id] = process
            try:
                data = head + plan.code + plan.arguments + plan.stdin
                exit = process.run(data, stdout, stderr)
                forwarder.close()
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
        except (BackendUnavailable, LaunchError):  # the probe reports it in more detail
            return ()
        return [
            Warning(
                f"Isolates run without the sandbox layer {layer!r}: {reason}.",
                hint="docs/security.md describes each layer. With the option 'require_walls' the"
                " backend is unavailable instead.",
                id="backends_app.isolate.W001",
            )
            for layer, reason in missing.items()
        ]

    def _launcher(self) -> Launcher:
        """Return the launcher, without starting its process.

        Uses no lock, because a fork could leave it locked for ever.
        """
        if found := self._launchers.get("deno"):
            return found
        launcher = self._launchers.setdefault("deno", Launcher(self._find_deno(), name="deno"))
        if self._closed:  # perhaps by another thread in the meantime
            launcher.close()
        return launcher

    def _describe_layers(self) -> Mapping[str, str]:
        """Return the sandbox layers of each process, or raise if nothing may run."""
        return describe_layers(self._launcher(), what="Deno", required=self._require_full_sandbox)

    def _find_deno(self) -> str:
        """Return the path of Deno, or raise `BackendUnavailable` with how to install it."""
        if self._deno is not None:
            if found := shutil.which(self._deno):
                return found
            raise BackendUnavailable(f"the configured Deno is not a program; {INSTALL}")
        try:
            import deno  # of the extra `isolate`

            return os.fsdecode(deno.find_deno_bin())
        except (ImportError, FileNotFoundError):
            raise BackendUnavailable(f"Deno is not installed; {INSTALL}") from None


class _StderrForwarder:
    """Forward stderr line by line while the program runs, cleaned up for people."""

    def __init__(self, marker: bytes, on_output: Callable[[bytes], None] | None) -> None:
        self._marker = marker  # written by the harness, not by the program
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
        rest = self._partial_line.removesuffix(self._marker)
        if self._on_output is not None and rest:
            self._on_output(_clean_stderr(rest.decode(errors="replace")).encode())


def _clean_stderr(stderr: str) -> str:
    """Replace the internal names of program and harness, and drop advice about Deno's flags."""
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


def _wasm_module(workload: WorkloadSpec) -> bytes:
    module = workload.wasm_module()
    if module is None:
        raise InvalidRequest("code", "Must be a WebAssembly module in base64.")
    return module


def _wasi_arguments(workload: WorkloadSpec) -> bytes:
    """Return the arguments of a WASI command as JSON, preceded by the program's name."""
    return json.dumps([MODULE_NAME, *workload.argv()]).encode()


def _harness(runtime: str, mem_mb: int) -> str:
    """Return the harness as a data: URL.

    A module loaded from one, and everything it imports, can read no local file, not even by
    `import`.
    """
    here = Path(__file__).parent
    parts = [(here / name).read_bytes() for name in HARNESSES[runtime]]
    source = b"".join([f"const MEMORY_BYTES = {mem_mb * MB};\n".encode(), *parts])
    return f"data:text/javascript;base64,{b64encode(source).decode()}"


def _result(
    exit: Exit, stdout: FramedStdout, stderr: Capture, marker: str, workload: WorkloadSpec
) -> WorkloadResult:
    """Return the result. The host's findings decide; the frame counts only after a clean exit."""
    stdout.close()
    stdout_text = stdout.capture.text()
    stderr_text = stderr.text()
    is_lost = stderr_text.endswith(marker)
    stderr_text = _clean_stderr(stderr_text.removesuffix(marker))
    reason, output, error = ExitReason.EXITED, None, ""
    if exit.kill_reason is not None:
        reason = exit.kill_reason
        error = describe_exit(reason, workload.resources)
    elif exit.signal is not None:
        reason, error = _describe_signal(exit, stderr_text, workload)
    elif note := _note(stdout):
        output = output_from_stdout(stdout_text, truncated=stdout.capture.truncated)
        error = note if exit.exit_code == 0 else _deno_error(stderr_text)
    elif stdout.has_frame:
        reason, output, error = _parse_frame(stdout, workload)
        if error and exit.exit_code == 0 and reason is ExitReason.EXITED:
            reason = ExitReason.INVALID_OUTPUT  # a forged frame: an error with exit code 0
    elif exit.exit_code != 0:
        error = STDOUT_CLOSED if is_lost else _deno_error(stderr_text)
    else:
        output = output_from_stdout(stdout_text, truncated=stdout.capture.truncated)
    return WorkloadResult(
        exit_reason=reason,
        exit_code=exit.exit_code,
        signal=exit.signal,
        output=output if exit.exit_code == 0 else None,
        stdout=stdout_text,
        stderr=stderr_text,
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
    """Return the harness's note about a program that only printed; empty if there is none."""
    try:
        frame = strict_json.loads(stdout.frame or b"")
    except strict_json.InvalidJSON:
        return ""
    match frame:
        case {"note": str(note)}:
            return note
    return ""


def _parse_frame(stdout: FramedStdout, workload: WorkloadSpec) -> tuple[ExitReason, JSON, str]:
    """Return reason, output and error from the frame, which user code may have written."""
    too_large = f"the output is larger than {workload.output_bytes:,} bytes"
    if stdout.frame_too_large:
        return ExitReason.OUTPUT_LIMIT, None, too_large
    try:
        frame = strict_json.loads(stdout.frame or b"")
    except strict_json.InvalidJSON as refused:
        return ExitReason.INVALID_OUTPUT, None, f"the output is not valid JSON: {refused}"
    match frame:
        case {"output": _} if len(stdout.frame or b"") > workload.output_bytes + FRAME_OVERHEAD:
            return ExitReason.OUTPUT_LIMIT, None, too_large
        case {"output": output}:
            return ExitReason.EXITED, output, ""
        case {"error": str(error)}:
            return ExitReason.EXITED, None, error
        case {"invalid": str(error)}:
            return ExitReason.INVALID_OUTPUT, None, error
    return ExitReason.INVALID_OUTPUT, None, "the output is not valid JSON"


def _describe_signal(exit: Exit, stderr: str, workload: WorkloadSpec) -> tuple[ExitReason, str]:
    """Return reason and error for a signal that the host did not send."""
    mem_mb = workload.resources.mem_mb
    heap_full = exit.memory_bytes >= mem_mb * MB * 0.9
    addresses_full = exit.data_bytes + WORKER_MB * MB > exit.max_data_bytes
    if exit.signal in ABORTS and (heap_full or addresses_full):
        error = f"V8 ran out of memory; there is room for {mem_mb} MB and {MAX_WORKERS} workers"
        return ExitReason.MEMORY_LIMIT, error
    if exit.signal == "SIGABRT" and STACK_OVERFLOW in stderr:
        return ExitReason.SIGNAL, f"{TOO_DEEP}; ended by {exit.signal}"
    return ExitReason.SIGNAL, f"ended by {exit.signal}"


def _deno_error(stderr: str) -> str:
    """Return Deno's own error for an exit that bypassed the harness; empty if there is none."""
    if "Deno has panicked" in stderr:
        return "Deno itself failed: it panicked"
    found = re.search(r"^error: (.+)$", stderr, re.MULTILINE)
    return found.group(1)[:MAX_ERROR_CHARS] if found else ""
