"""Convert the end of a container into the result of a workload."""

import re

from ...sandbox.streams import Capture
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
from .configuration import RuntimeImage
from .container import ContainerExit

MAX_SIGNAL = 64
# The message of the engine's init when it cannot execute the command.
NOT_EXECUTED = re.compile(r"\[FATAL tini \(\d+\)\] (exec .{0,200} failed: [^\n]{0,200})", re.DOTALL)


def result_of(
    exit: ContainerExit,
    stdout: Capture,
    stderr: Capture,
    workload: WorkloadSpec,
    runtime_image: RuntimeImage | None,
) -> WorkloadResult:
    """Return the result. `runtime_image` ran the workload's code; None for an image workload."""
    reason, code, name = ExitReason.EXITED, exit.code, None
    if exit.kill_reason is not None:
        reason = exit.kill_reason
    elif 128 < code <= 128 + MAX_SIGNAL:
        reason = ExitReason.SIGNAL
        mem_mb, used = workload.resources.mem_mb, exit.usage.memory_bytes
        if (
            runtime_image is not None
            and runtime_image.aborts
            and heap.is_exhausted(mem_mb, used, code - 128)
        ):
            reason = ExitReason.MEMORY_LIMIT
    if 128 < code <= 128 + MAX_SIGNAL:
        number = code - 128
        name = signal_name(number)
    stdout_text = stdout.text()
    done = reason is ExitReason.EXITED and code == 0
    error = (
        f"ended by {name}"
        if reason is ExitReason.SIGNAL
        else describe_exit(reason, workload.resources)
    )
    if reason is ExitReason.EXITED and code in (126, 127):
        error = _not_executed(stderr)
    if reason is ExitReason.EXITED and code != 0 and runtime_image is not None:
        error = error or error_line(stderr.text())
    return WorkloadResult(
        exit_reason=reason,
        exit_code=code if name is None else None,
        signal=name,
        output=output_from_stdout(stdout_text, truncated=stdout.truncated) if done else None,
        stdout=stdout_text,
        stderr=stderr.text(),
        stdout_truncated=stdout.truncated,
        stderr_truncated=stderr.truncated,
        stdout_encoding=stdout.encoding,
        stderr_encoding=stderr.encoding,
        error=error,
        duration_ms=exit.duration_ms,
        cpu_time_ms=exit.usage.cpu_time_ms,
        memory_bytes=exit.usage.memory_bytes,
    )


def _not_executed(stderr: Capture) -> str:
    found = NOT_EXECUTED.match(stderr.text())
    return found[1] if found else ""
