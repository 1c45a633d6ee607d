"""Probe the backends in the background and keep the registry's health current.

The monitor starts lazily in each process, with the first call of `ensure_started`: never during
Django's set-up, so never before a server forks. A healthy backend is probed every 30 s, a failing
one after 5 s, then after twice as long each time, up to 2 min. Nomad's driver manager has the same
first delay and limit, but quadruples the delay.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from . import signals
from .backends.base import Backend, Health
from .registry import Registry, registry
from .routing import RegisteredBackend
from .utils import background
from .utils.forks import reset_after_fork

logger = logging.getLogger(__name__)

INTERVAL_S = 30.0
RETRY_S = (5.0, 120.0)
PROBE_TIMEOUT_S = 10.0
FIRST_ROUND_S = 1.0
MAX_SLEEP_S = 1.0  # bounds how long a newly registered backend goes unnoticed
_TIMED_OUT = Health.unhealthy(f"its probe timed out after {PROBE_TIMEOUT_S:g} s")


@dataclass(slots=True)
class _Probe:
    """One running probe; its thread sets `result` when it is done, and then `ended`."""

    backend: Backend
    started: float
    result: Health | None = None
    timed_out: bool = False
    ended: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _ProbeState:
    """The monitor's state of one backend between probes; `due` is a monotonic time."""

    backend: Backend
    due: float
    failures: int = 0
    probed: bool = False
    probe: _Probe | None = field(default=None)


def _in_thread(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


class HealthMonitor:
    """Probes every backend of one registry and publishes changes.

    A hanging probe holds its own thread, at most one per backend, and delays no other probe: after
    `PROBE_TIMEOUT_S` the backend is unhealthy, and it is not probed again until the hanging probe
    ends. `spawn` and `clock` are injected so that tests need neither threads nor waiting.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        spawn: Callable[[Callable[[], None], str], None] = _in_thread,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = registry
        self._spawn = spawn
        self._clock = clock
        self._reset_after_fork()
        reset_after_fork(self)

    def _reset_after_fork(self) -> None:
        """Reset to not started: a forked child has none of its parent's threads."""
        self._start = threading.Lock()
        self._started = False
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._first_round = threading.Event()
        self._states: dict[str, _ProbeState] = {}
        self._on_demand_lock = threading.Lock()
        self._on_demand: dict[str, _Probe] = {}

    def ensure_started(self, wait_s: float = FIRST_ROUND_S) -> None:
        """Start the monitor unless it is running.

        The caller that starts it waits up to `wait_s` seconds for the first round of probes; other
        callers never wait.
        """
        if self._started:
            return
        with self._start:
            if self._started:
                return
            self._started = True
        self._spawn(self._run, "vulcan-health")
        self._first_round.wait(wait_s)

    def stop(self) -> None:
        """Stop the monitor's own thread; a running probe ends by itself."""
        self._stopping.set()
        self._wake.set()

    def probe_all(self) -> None:
        """Probe every backend once; return when each probe has ended or timed out.

        For commands; the monitor must not have been started.
        """
        self.tick()
        while not self._round_complete():
            self._wake.wait(0.1)
            self._wake.clear()
            self.tick()

    def probe_now(self, name: str) -> Health:
        """Probe one backend immediately; publish and return its health.

        Concurrent callers wait for the same probe, so a hanging probe holds one thread, however
        often it is requested. Raise `BackendNotRegistered`.
        """
        backend = self.registry.get(name).backend
        with self._on_demand_lock:
            probe = self._on_demand.get(name)
            if probe is None or probe.ended.is_set() or probe.backend is not backend:
                probe = self._on_demand[name] = _Probe(backend, started=self._clock())
                self._spawn(self._probe_job(name, probe), f"vulcan-probe-{name}")
        probe.ended.wait(max(0.0, probe.started + PROBE_TIMEOUT_S - self._clock()))
        return self._publish(name, backend, probe.result or _TIMED_OUT)

    def tick(self) -> float:
        """Start due probes and publish ended ones; return the seconds until the next is due."""
        now = self._clock()
        entries = self.registry.snapshot.entries
        self._states = {
            name: state
            for name, state in self._states.items()
            if name in entries and entries[name].backend is state.backend
        }
        for name, entry in entries.items():
            state = self._states.setdefault(name, _ProbeState(entry.backend, due=now))
            self._expedite(state, entry, now)
            if state.probe is None and state.due <= now:
                state.probe = _Probe(state.backend, started=now)
                prober = self._probe_job(name, state.probe, self._wake)
                self._spawn(prober, f"vulcan-probe-{name}")
            if state.probe is not None:
                self._collect(name, state, state.probe, now)
        if self._round_complete():
            self._first_round.set()
        return max(0.0, min((state.due for state in self._states.values()), default=now) - now)

    def _run(self) -> None:
        background.repeat(self._round, "the health monitor", self._stopping)

    def _round(self) -> None:
        """Run one tick, and wait until something is to be done."""
        pause = MAX_SLEEP_S
        try:
            pause = self.tick()
        finally:
            busy = any(state.probe for state in self._states.values())
            self._wake.wait(MAX_SLEEP_S if busy else min(pause, MAX_SLEEP_S))
            self._wake.clear()

    def _probe_job(
        self, name: str, probe: _Probe, wake: threading.Event | None = None
    ) -> Callable[[], None]:
        """Return the function that a probe's thread runs; it sets `wake` at its end.

        `wake` belongs to the process that started the probe: `self._wake` is new after a fork.
        """

        def run() -> None:
            warm_count = _warm_count(probe.backend)  # before the probe takes one
            started = self._clock()
            probe.result = run_probe(probe.backend)
            seconds = self._clock() - started
            probe.ended.set()
            if wake is not None:
                wake.set()
            signals.probe_ended.send_robust(None, name=name, seconds=seconds, warm_count=warm_count)

        return run

    def _round_complete(self) -> bool:
        return all(state.probed for state in self._states.values())

    def _expedite(self, state: _ProbeState, entry: RegisteredBackend, now: float) -> None:
        """Probe again soon when a workload's fault has made the backend unhealthy."""
        if state.probed and state.failures == 0 and not entry.health.eligible:
            state.failures = 1
            state.due = min(state.due, now + RETRY_S[0])

    def _collect(self, name: str, state: _ProbeState, probe: _Probe, now: float) -> None:
        if probe.result is not None:
            state.probe = None
            if not probe.timed_out:
                self._record(name, state, probe.result)
            state.due = now + (INTERVAL_S if state.failures == 0 else self._backoff(state.failures))
        elif now - probe.started >= PROBE_TIMEOUT_S and not probe.timed_out:
            probe.timed_out = True
            self._record(name, state, _TIMED_OUT)

    def _record(self, name: str, state: _ProbeState, result: Health) -> None:
        state.probed = True
        state.failures = 0 if result.healthy else state.failures + 1
        self._publish(name, state.backend, result)

    def _publish(self, name: str, backend: Backend, result: Health) -> Health:
        """Set the health in the registry and log a change; return the published health."""
        before = self.registry.snapshot.entries.get(name)
        if before is not None and before.health.detected and not result.healthy:
            # It was detected before: this is a fault, not an undetected backend. Its attributes
            # stay.
            attributes = result.attributes or before.health.attributes
            result = Health.unhealthy(result.description, attributes)
        if self.registry.set_health(name, backend, result):
            first = before is None or before.health.healthy is None
            level = logging.DEBUG if first else logging.INFO if result.healthy else logging.WARNING
            logger.log(level, "backend %s is %s: %s", name, result.state, result.description)
        return result

    def _backoff(self, failures: int) -> float:
        shortest, longest = RETRY_S
        return min(longest, shortest * 2.0 ** min(failures - 1, 10))


def run_probe(backend: Backend) -> Health:
    """Run the backend's probe and return its health; turn every failure into `unhealthy`."""
    try:
        result = backend.probe()
    except BaseException as error:  # a backend may be third-party code; this thread runs only it
        logger.warning("probe of %s raised", type(backend).__name__, exc_info=True)
        return Health.unhealthy(f"its probe raised {type(error).__name__}")
    if not isinstance(result, Health):
        return Health.unhealthy(f"its probe returned {type(result).__name__} instead of Health")
    if result.healthy is None:
        return Health.unhealthy("its probe returned unknown health")
    return result


def _warm_count(backend: Backend) -> int | None:
    try:
        return backend.warm_count()
    except BaseException as error:  # noqa: BLE001 - as in `run_probe`
        logger.warning("counting warm instances of %s failed: %s", type(backend).__name__, error)
        return None


monitor = HealthMonitor(registry)
"""The health monitor of this process's registry."""
