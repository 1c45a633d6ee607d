"""Convert the end of a machine into the result of a workload."""

from dataclasses import dataclass

from ...sandbox.client import Exit
from ...sandbox.streams import Capture
from ...utils import strict_json
from ...utils.strict_json import JSON
from ...workloads import (
    ExitReason,
    WorkloadResult,
    WorkloadSpec,
    describe_exit,
    output_from_stdout,
    signal_name,
)
from .. import heap
from ..last_words import error_line
from .channel import COMPILE_S, START_S, AgentProtocol, ExitReport, Program
from .runtimes import RUNTIMES

MAX_ERROR_CHARS = 4000  # the limit of `returned.cjs`
NO_JSON, ODD, THROWN = "!", "?", "\n!"
"""Prefixes of the texts that `returned.cjs` writes."""


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Output of a program. `returned` is None where its runtime has no return value."""

    stdout: Capture
    stderr: Capture
    returned: Capture | None


def result_of(
    exit: Exit, protocol: AgentProtocol, streams: Streams, workload: WorkloadSpec, program: Program
) -> WorkloadResult:
    """Return the result of a machine that has ended."""
    report = protocol.report
    started = exit.prepare_ms is not None or not program.prepares
    duration_ms, compile_ms = _times(exit, program, started)
    output, code, name, error = None, None, None, ""
    if report is None:
        reason = exit.kill_reason or ExitReason.BACKEND_ERROR
        late = reason is ExitReason.TIMEOUT and not started
        error = (
            _describe_late_start(program)
            if late
            else describe_exit(reason, workload.resources)
            or _describe_machine_failure(exit, protocol)
        )
    else:
        code = report.code if report.code >= 0 else None
        name = None if report.code >= 0 else signal_name(-report.code)
        reason = _reason(report, workload)
        error = (
            f"ended by {name}"
            if reason is ExitReason.SIGNAL
            else describe_exit(reason, workload.resources)
        )
        if program.compile and not started and reason is not ExitReason.EXITED:
            error = f"the compiler exceeded a limit of its machine: {reason}"
        if reason is ExitReason.EXITED:
            if code == 0:
                reason, output, error = _output(streams, workload)
            else:
                error = _thrown_error(streams.returned) or error_line(streams.stderr.text())
    return WorkloadResult(
        exit_reason=reason,
        exit_code=code,
        signal=name,
        output=output,
        stdout=streams.stdout.text(),
        stderr=streams.stderr.text(),
        stdout_truncated=streams.stdout.truncated,
        stderr_truncated=streams.stderr.truncated,
        stdout_encoding=streams.stdout.encoding,
        stderr_encoding=streams.stderr.encoding,
        error=error,
        duration_ms=duration_ms,
        compile_ms=compile_ms,
        cpu_time_ms=exit.cpu_time_ms if report is None else report.cpu_us // 1000,
        memory_bytes=None if report is None else report.memory_bytes,
    )


def _times(exit: Exit, program: Program, started: bool) -> tuple[int, int | None]:
    """Return the run time and the compile time in milliseconds; the latter None if not compiled."""
    if not program.compile:
        return exit.duration_ms, None
    return (exit.duration_ms, exit.prepare_ms) if started else (0, exit.duration_ms)


def _describe_late_start(program: Program) -> str:
    """Return why a program did not begin in time."""
    if program.compile:
        return f"the compiler took longer than {COMPILE_S:g} s"
    return f"the runtime took longer than {START_S:g} s to start"


def _reason(report: ExitReport, workload: WorkloadSpec) -> ExitReason:
    """Return the exit reason. Denied requests do not matter to a program that exited with 0."""
    if report.code == 0:
        return ExitReason.EXITED
    if report.oom_killed:
        return ExitReason.MEMORY_LIMIT
    if report.pids_denied:
        return ExitReason.PROCESS_LIMIT
    if report.memory_denied or _filled_its_heap(report, workload):
        return ExitReason.MEMORY_LIMIT
    if report.disk_full:
        return ExitReason.DISK_LIMIT
    return ExitReason.EXITED if report.code > 0 else ExitReason.SIGNAL


def _filled_its_heap(report: ExitReport, workload: WorkloadSpec) -> bool:
    row = RUNTIMES.get(workload.runtime or "")
    aborts = row is not None and row.aborts
    return aborts and heap.is_exhausted(
        workload.resources.mem_mb, report.memory_bytes, -report.code
    )


def _thrown_error(returned: Capture | None) -> str:
    """Return the uncaught error that the harness reported; empty if there is none."""
    if returned is None or returned.empty:
        return ""
    return returned.text().partition(THROWN)[2][:MAX_ERROR_CHARS]


def _output(streams: Streams, workload: WorkloadSpec) -> tuple[ExitReason, JSON, str]:
    """Return reason, output and error, from the return value or else from stdout if it is JSON."""
    returned = streams.returned
    if returned is None or returned.empty:
        stdout_text = output_from_stdout(streams.stdout.text(), truncated=streams.stdout.truncated)
        return ExitReason.EXITED, stdout_text, ""
    if returned.truncated:
        error = f"the output is larger than {workload.output_bytes:,} bytes"
        return ExitReason.OUTPUT_LIMIT, None, error
    text = returned.text().partition(THROWN)[0]  # an error that was caught later
    if text.startswith(NO_JSON):
        return ExitReason.INVALID_OUTPUT, None, text[1:MAX_ERROR_CHARS]
    if text.startswith(ODD) or not text:
        stdout_text = output_from_stdout(streams.stdout.text(), truncated=streams.stdout.truncated)
        return ExitReason.EXITED, stdout_text, text[1:MAX_ERROR_CHARS]
    try:
        return ExitReason.EXITED, strict_json.loads(text), ""
    except strict_json.InvalidJSON as refused:
        return ExitReason.INVALID_OUTPUT, None, f"the output is not valid JSON: {refused}"


def _describe_machine_failure(exit: Exit, protocol: AgentProtocol) -> str:
    if protocol.broken:
        return "the machine sent data that its agent never sends and was switched off"
    if exit.signal is not None:
        return f"the machine was ended by {exit.signal} before the program ended"
    return "the machine stopped before the program ended: its kernel or its agent crashed"
