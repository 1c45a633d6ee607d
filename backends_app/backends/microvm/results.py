"""How the end of a machine becomes the result of a workload."""

import signal
from dataclasses import dataclass

from ... import strict_json
from ...confinement.client import Exit
from ...confinement.streams import Capture
from ...strict_json import JSON
from ...workloads import ExitReason, WorkloadResult, WorkloadSpec, output_from_stdout
from .. import heap
from ..last_words import error_line
from .channel import COMPILE_S, START_S, AgentProtocol, ExitReport, Program
from .runtimes import RUNTIMES

MAX_ERROR_CHARS = 4000  # as many as `returned.cjs` takes
NO_JSON, ODD, THROWN = "!", "?", "\n!"
"""What stands before the texts that `returned.cjs` gives."""


@dataclass(frozen=True, kw_only=True)
class Streams:
    """What the program said; `returned` is None where its runtime returns nothing."""

    stdout: Capture
    stderr: Capture
    returned: Capture | None


def result_of(
    exit: Exit, port: AgentProtocol, said: Streams, workload: WorkloadSpec, program: Program
) -> WorkloadResult:
    report = port.report
    begun = exit.prepare_ms is not None or not program.prepares
    duration_ms, compile_ms = _times(exit, program, begun)
    output, code, name, error = None, None, None, ""
    if report is None:
        reason = exit.kill_reason or ExitReason.BACKEND_ERROR
        late = reason is ExitReason.TIMEOUT and not begun
        error = (
            _describe_late_start(program)
            if late
            else _why(reason, workload) or _describe_machine_failure(exit, port)
        )
    else:
        code = report.code if report.code >= 0 else None
        name = None if report.code >= 0 else _signal_name(-report.code)
        reason = _reason(report, workload)
        error = f"ended by {name}" if reason is ExitReason.SIGNAL else _why(reason, workload)
        if program.compile and not begun and reason is not ExitReason.EXITED:
            error = f"the compiler met a bound of its machine: {reason}"
        if reason is ExitReason.EXITED:
            if code == 0:
                reason, output, error = _output(said, workload)
            else:
                error = _thrown_error(said.returned) or error_line(said.stderr.text())
    return WorkloadResult(
        exit_reason=reason,
        exit_code=code,
        signal=name,
        output=output,
        stdout=said.stdout.text(),
        stderr=said.stderr.text(),
        stdout_truncated=said.stdout.truncated,
        stderr_truncated=said.stderr.truncated,
        stdout_encoding=said.stdout.encoding,
        stderr_encoding=said.stderr.encoding,
        error=error,
        duration_ms=duration_ms,
        compile_ms=compile_ms,
        cpu_time_ms=exit.cpu_time_ms if report is None else report.cpu_us // 1000,
        memory_bytes=None if report is None else report.memory_bytes,
    )


def _times(exit: Exit, program: Program, begun: bool) -> tuple[int, int | None]:
    """Return how long the program ran and how long it was compiled, in milliseconds."""
    if not program.compile:
        return exit.duration_ms, None
    return (exit.duration_ms, exit.prepare_ms) if begun else (0, exit.duration_ms)


def _describe_late_start(program: Program) -> str:
    """Return why a program did not begin in time."""
    if program.compile:
        return f"it took longer than {COMPILE_S:g} s to compile"
    return f"its runtime took longer than {START_S:g} s to start"


def _reason(report: ExitReport, workload: WorkloadSpec) -> ExitReason:
    """A program that ended well has got over what was refused to it."""
    if report.code == 0:
        return ExitReason.EXITED
    if report.starved:
        return ExitReason.MEMORY_LIMIT
    if report.refused:
        return ExitReason.PROCESS_LIMIT
    if report.denied or _filled_its_heap(report, workload):
        return ExitReason.MEMORY_LIMIT
    if report.full:
        return ExitReason.DISK_LIMIT
    return ExitReason.EXITED if report.code > 0 else ExitReason.SIGNAL


def _filled_its_heap(report: ExitReport, workload: WorkloadSpec) -> bool:
    row = RUNTIMES.get(workload.runtime or "")
    aborts = row is not None and row.aborts
    return aborts and heap.is_exhausted(
        workload.resources.mem_mb, report.memory_bytes, -report.code
    )


def _thrown_error(returned: Capture | None) -> str:
    """Return what the harness saw that nobody caught."""
    if returned is None or returned.empty:
        return ""
    return returned.text().partition(THROWN)[2][:MAX_ERROR_CHARS]


def _output(said: Streams, workload: WorkloadSpec) -> tuple[ExitReason, JSON, str]:
    """What the program returned, or else what it printed, where that is JSON."""
    returned = said.returned
    if returned is None or returned.empty:
        printed = output_from_stdout(said.stdout.text(), truncated=said.stdout.truncated)
        return ExitReason.EXITED, printed, ""
    if returned.truncated:
        error = f"the output is larger than {workload.output_bytes:,} bytes"
        return ExitReason.OUTPUT_LIMIT, None, error
    text = returned.text().partition(THROWN)[0]  # it went on, and ended well
    if text.startswith(NO_JSON):
        return ExitReason.INVALID_OUTPUT, None, text[1:MAX_ERROR_CHARS]
    if text.startswith(ODD) or not text:
        printed = output_from_stdout(said.stdout.text(), truncated=said.stdout.truncated)
        return ExitReason.EXITED, printed, text[1:MAX_ERROR_CHARS]
    try:
        return ExitReason.EXITED, strict_json.loads(text), ""
    except strict_json.InvalidJSON as refused:
        return ExitReason.INVALID_OUTPUT, None, f"the output is no JSON: {refused}"


def _describe_machine_failure(exit: Exit, port: AgentProtocol) -> str:
    if port.broken:
        return "what came from the machine is not what its agent says; it was switched off"
    if exit.signal is not None:
        return f"the machine was ended by {exit.signal} before the program had ended"
    return (
        "the machine stopped before the program had ended: its kernel or its agent was brought down"
    )


def _why(reason: ExitReason, workload: WorkloadSpec) -> str:
    """The bound that was enforced, for people."""
    resources = workload.resources
    return {
        ExitReason.TIMEOUT: f"it took longer than {resources.timeout_s:g} s",
        ExitReason.MEMORY_LIMIT: f"it needed more than {resources.mem_mb} MB",
        ExitReason.PROCESS_LIMIT: "it started more processes or threads than it may have",
        ExitReason.DISK_LIMIT: "it wrote more files than there is room for",
        ExitReason.OUTPUT_LIMIT: "it printed too much",
        ExitReason.KILLED: "killed",
    }.get(reason, "")


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
