"""Measure real runs on real backends, in the slots that all workloads share.

Runs happen in worker threads while the caller's thread waits, so an interruption reaches the
caller at once, which kills what runs and starts nothing more.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass

from ..backends.base import Backend, Health
from ..backends.progress import Advance
from ..conf import limits, new_instance, runtime_dir
from ..exceptions import BackendAtCapacity, VulcanError
from ..execution import services
from ..execution.slots import wait_for_slot
from ..health import run_probe
from ..registry import Registry
from ..routing import RegisteredBackend
from ..utils.text import one_line, short_repr
from ..workloads import ExitReason, WorkloadResult, WorkloadSpec
from .programs import TASK, Program, program_for
from .results import BackendResult, Figures, Results, Sample, Skipped

TIMEOUT_S = 60.0  # generous, so that a slow host is measured rather than timed out
PROBE_S = 60.0
POLL_INTERVAL_S = 0.05  # how often running workloads are killed after an interruption
SLOT_S = 60.0  # how long to wait for a slot, once for each backend

BackendFactory = Callable[[str, Backend], Backend | None]
"""Given a name and a backend, returns a fresh instance of it, or None if it cannot be built."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A backend to measure, with its program."""

    name: str
    backend: Backend
    program: Program
    image: str | None

    @property
    def at_once(self) -> int:
        return self.backend.capabilities.max_concurrency

    def spec(self, program_input: object) -> WorkloadSpec:
        resource_limits = limits()
        program = self.program
        return WorkloadSpec(
            runtime=program.runtime,
            isolation=self.name,
            code=program.code,
            image=None if program.code is not None else self.image,
            command=program.command,
            input=program_input,  # type: ignore[arg-type]  # any JSON
            resources=resource_limits.resources(
                timeout_s=min(TIMEOUT_S, resource_limits.timeout_s.max)
            ),
        )


def probe(registry: Registry, names: Iterable[str]) -> None:
    """Probe these backends and publish their health; wait up to PROBE_S seconds.

    A server waits less, but the first probe of a process may take long on a busy host.
    """

    def probe_one(entry: RegisteredBackend) -> None:
        registry.set_health(entry.name, entry.backend, run_probe(entry.backend))

    deadline = time.monotonic() + PROBE_S
    threads = []
    for entry in map(registry.get, names):
        thread = threading.Thread(target=probe_one, args=[entry], daemon=True)
        thread.start()
        threads.append((entry, thread))
    for entry, thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        if thread.is_alive():
            timed_out = Health.unhealthy(f"its probe did not finish within {PROBE_S:g} s")
            registry.set_health(entry.name, entry.backend, timed_out)


def targets(
    registry: Registry, *, runtime: str | None = None, image: str | None = None
) -> tuple[list[Target], list[Skipped]]:
    """Return the backends that can be measured now, and the skipped ones with the reason."""
    found, left_out = [], []
    for name, entry in registry.snapshot.entries.items():
        program = program_for(entry.capabilities, runtime=runtime, image=image)
        if program is None:
            reason = f"it does not run {runtime or 'any of the benchmark programs'}"
            if program_for(entry.capabilities, runtime=runtime, image="any"):
                reason = "it runs images; use --image to name one that has cat"
            left_out.append(Skipped(name=name, reason=reason, broken=False))
        elif not entry.health.healthy:
            reason = one_line(f"{entry.health.state}: {entry.health.description}")
            left_out.append(Skipped(name=name, reason=reason, broken=True))
        else:
            used_image = image if program.code is None else None
            target = Target(name=name, backend=entry.backend, program=program, image=used_image)
            found.append(target)
    return found, left_out


class Bench:
    """One benchmark of the backends of a registry."""

    def __init__(
        self,
        registry: Registry,
        targets: Sequence[Target],
        rounds: int,
        *,
        left_out: Sequence[Skipped] = (),
        factory: BackendFactory = new_instance,
    ) -> None:
        self._registry = registry
        self._targets = targets
        self._rounds = rounds
        self._left_out = left_out
        self._factory = factory
        self._done = 0
        self._advance: Advance = lambda done, total: None
        self._running: dict[str, Backend] = {}
        self._full: set[str] = set()
        self._interrupted = threading.Event()

    @property
    def total(self) -> int:
        """Return how many runs the benchmark takes."""
        return sum(self._rounds * (2 + one.at_once) + 1 for one in self._targets)

    def run(self, advance: Advance | None = None) -> Results:
        """Measure all targets; an exception leaves no workload running.

        `advance(done, total)` is called at the start and after each run.
        """
        self._advance = advance or self._advance
        self._advance(0, self.total)
        load_before = os.getloadavg()[0]
        cold = {one.name: self._cold(one) for one in self._targets}
        measured = []
        for one in self._targets:
            modes = dict(zip(("warm", "parallel"), self._warm(one), strict=True))
            if first := cold[one.name]:
                modes = {"cold": first, **modes}
            runtime, image = one.program.runtime, one.image
            measured.append(BackendResult(name=one.name, runtime=runtime, image=image, modes=modes))
        return Results(
            task=TASK,
            rounds=self._rounds,
            processors=os.cpu_count() or 1,
            load_before=round(load_before, 2),
            load_after=round(os.getloadavg()[0], 2),
            measured=measured,
            left_out=self._left_out,
        ).with_ratios()

    def _cold(self, target: Target) -> Figures | None:
        samples: list[Sample] = []
        for _ in range(self._rounds):
            fresh = self._factory(target.name, target.backend)
            if fresh is None:
                self._done += self._rounds
                return None
            try:
                samples += self._runs(target, fresh, 1, at_once=1)
            finally:
                fresh.close()
        return Figures.of(samples, 1)

    def _warm(self, target: Target) -> tuple[Figures, Figures]:
        """Measure sequential and then parallel runs, after one run to warm the backend up."""
        self._runs(target, target.backend, 1, at_once=1)
        sequential = self._runs(target, target.backend, self._rounds, at_once=1)
        slots = target.at_once
        parallel = self._runs(target, target.backend, self._rounds * slots, at_once=slots)
        return Figures.of(sequential, 1), Figures.of(parallel, slots)

    def _runs(self, target: Target, backend: Backend, runs: int, *, at_once: int) -> list[Sample]:
        with ThreadPoolExecutor(at_once, "vulcan-benchmark") as pool:
            futures: list[Future[Sample]] = []
            try:
                futures += (pool.submit(self._one, target, backend) for _ in range(runs))
                for _ in as_completed(futures):
                    self._done += 1
                    self._advance(self._done, self.total)
            except BaseException:
                self._interrupted.set()
                for future in futures:
                    future.cancel()
                while wait(futures, timeout=POLL_INTERVAL_S).not_done:
                    for workload_id, runs_on in list(self._running.items()):
                        runs_on.kill(workload_id)
                raise
        return [future.result() for future in futures]

    def _one(self, target: Target, backend: Backend) -> Sample:
        """Run the task once; count any error as a failure."""
        program_input = {"number": secrets.randbelow(2**31)}  # random: no stale output matches
        spec = target.spec(program_input)
        waited = False
        own_ms, failure = 0.0, ""
        started = ended = time.monotonic()
        self._running[spec.id] = backend
        try:
            admitted = services.admit(spec, registry=self._registry)
            prepared = services.prepare(admitted.spec, target.name, backend)
            with self._slot(target) as waited:
                started = time.monotonic()
                try:
                    result = services.execute(prepared, registry=self._registry)
                finally:
                    ended = time.monotonic()
            own_ms, failure = result.duration_ms, _failure(result, program_input)
        except VulcanError as error:
            failure = one_line(str(error))
        finally:
            del self._running[spec.id]
        return Sample(started=started, ended=ended, own_ms=own_ms, waited=waited, failure=failure)

    @contextmanager
    def _slot(self, target: Target) -> Iterator[bool]:
        """Hold a slot; yield whether it had to wait for one. Raise BackendAtCapacity on timeout."""
        deadline = time.monotonic() + SLOT_S
        waited = False

        def is_over() -> bool:
            nonlocal waited
            waited = True
            if time.monotonic() > deadline:
                self._full.add(target.name)
            return target.name in self._full or self._interrupted.is_set()

        with wait_for_slot(target.name, target.at_once, runtime_dir(), is_over) as has_slot:
            if not has_slot:
                raise BackendAtCapacity(target.name, target.at_once)
            yield waited


def _failure(result: WorkloadResult, expected: object) -> str:
    """Return why the run failed, or ""."""
    if result.exit_reason is not ExitReason.EXITED or result.exit_code != 0:
        code = f" {result.exit_code}" if result.exit_reason is ExitReason.EXITED else ""
        words = f": {result.error}" if result.error else ""
        return one_line(f"{result.exit_reason}{code}{words}")
    if result.output == expected:
        return ""
    return one_line(f"unexpected output {short_repr(result.output)}")
