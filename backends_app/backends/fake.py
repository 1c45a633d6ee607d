"""Test double for projects that embed Vulcan: a Python function stands in for the program."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeAlias

from ..exceptions import BackendUnavailable, VulcanError
from ..utils.strict_json import JSON
from ..workloads import ExitReason, WorkloadResult, WorkloadSpec
from .base import Backend, BackendCapabilities, Health

MAX_WORKLOADS = 1000

Program: TypeAlias = "Callable[[WorkloadSpec], JSON | WorkloadResult]"


def echo(workload: WorkloadSpec) -> JSON:
    """Return the workload's input: the default program."""
    return workload.input


class FakeBackend(Backend):
    """Backend that runs every workload by calling `program` in this process, without isolation.

    The program's return value is the `output`, or the whole result if it is a `WorkloadResult`. An
    exception fails the workload with exit code 1, as an uncaught error does in a real runtime; a
    `VulcanError` propagates, to simulate `BackendUnavailable`. `workloads` holds the most recently
    executed ones. `health` may be set at any time; the next probe returns it.
    """

    def __init__(
        self,
        *,
        runtimes: Sequence[str] = ("node", "wasm", "python", "go", "oci"),
        source_formats: Sequence[str] = ("code", "archive", "image"),
        isolations: Sequence[str] = ("fake",),
        max_concurrency: int = 100,
        name: str = "Fake (no isolation)",
        program: Program = echo,
        health: Health | None = None,
    ) -> None:
        self.capabilities = BackendCapabilities(
            name=name,
            supported_runtimes=runtimes,
            supported_isolations=isolations,
            supported_source_formats=source_formats,
            max_concurrency=max_concurrency,
        )
        self.program = program
        self.health = health or Health.ok("a fake always works")
        self.workloads: deque[WorkloadSpec] = deque(maxlen=MAX_WORKLOADS)
        self.closed = False

    def probe(self) -> Health:
        return self.health

    def execute(self, plan: WorkloadSpec) -> WorkloadResult:
        if self.closed:
            raise BackendUnavailable("it has been closed")
        self.workloads.append(plan)
        started = time.monotonic()
        try:
            outcome = self.program(plan)
        except VulcanError:
            raise
        except Exception as error:  # noqa: BLE001 - the program is user code: any error is a result
            outcome = WorkloadResult(
                exit_reason=ExitReason.EXITED,
                exit_code=1,
                stderr=f"{type(error).__name__}: {error}\n",
                error=f"{type(error).__name__}: {error}",
            )
        if isinstance(outcome, WorkloadResult):
            return outcome
        return WorkloadResult(
            exit_reason=ExitReason.EXITED,
            exit_code=0,
            output=outcome,
            duration_ms=round((time.monotonic() - started) * 1000),
        )

    def close(self) -> None:
        self.closed = True
