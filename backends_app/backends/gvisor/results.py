"""How the end of a container becomes the result of a workload."""

import re
import signal

from ...confinement.streams import Capture
from ...workloads import ExitReason, WorkloadResult, WorkloadSpec, output_from_stdout
from .. import heap
from ..last_words import last_words
from .configuration import Mapped
from .container import Ended

MAX_SIGNAL = 64
# How the engine's init says that it could not execute the command.
NOT_EXECUTED = re.compile(r"\[FATAL tini \(\d+\)\] (exec .{0,200} failed: [^\n]{0,200})", re.DOTALL)


def result_of(
    ended: Ended, stdout: Capture, stderr: Capture, workload: WorkloadSpec, mapped: Mapped | None
) -> WorkloadResult:
    """`mapped` is what has run the workload's code; an image speaks for itself."""
    reason, code, name = ExitReason.EXITED, ended.code, None
    if ended.ended_for is not None:
        reason = ended.ended_for
    elif 128 < code <= 128 + MAX_SIGNAL:
        reason = ExitReason.SIGNAL
        mem_mb, used = workload.resources.mem_mb, ended.usage.memory_bytes
        if mapped is not None and mapped.aborts and heap.was_full(mem_mb, used, code - 128):
            reason = ExitReason.MEMORY_LIMIT
    if 128 < code <= 128 + MAX_SIGNAL:
        number = code - 128
        known = number in {one.value for one in signal.Signals}
        name = signal.Signals(number).name if known else f"SIG{number}"
    printed = stdout.text()
    done = reason is ExitReason.EXITED and code == 0
    error = _why(reason, name, workload)
    if reason is ExitReason.EXITED and code in (126, 127):
        error = _not_executed(stderr)
    if reason is ExitReason.EXITED and code != 0 and mapped is not None:
        error = error or last_words(stderr.text())
    return WorkloadResult(
        exit_reason=reason,
        exit_code=code if name is None else None,
        signal=name,
        output=output_from_stdout(printed, truncated=stdout.truncated) if done else None,
        stdout=printed,
        stderr=stderr.text(),
        stdout_truncated=stdout.truncated,
        stderr_truncated=stderr.truncated,
        stdout_encoding=stdout.encoding,
        stderr_encoding=stderr.encoding,
        error=error,
        duration_ms=ended.duration_ms,
        cpu_time_ms=ended.usage.cpu_time_ms,
        memory_bytes=ended.usage.memory_bytes,
    )


def _not_executed(stderr: Capture) -> str:
    found = NOT_EXECUTED.match(stderr.text())
    return found[1] if found else ""


def _why(reason: ExitReason, signal_name: str | None, workload: WorkloadSpec) -> str:
    resources = workload.resources
    return {
        ExitReason.SIGNAL: f"ended by {signal_name}",
        ExitReason.TIMEOUT: f"it took longer than {resources.timeout_s:g} s",
        ExitReason.MEMORY_LIMIT: f"it needed more than {resources.mem_mb} MB",
        ExitReason.PROCESS_LIMIT: "it started more processes or threads than it may have",
        ExitReason.OUTPUT_LIMIT: "it printed too much",
        ExitReason.KILLED: "killed",
    }.get(reason, "")
