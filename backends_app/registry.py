"""Hold the registered backends with their capabilities and health, and route requests to them.

Reads take no lock. The whole state is one immutable `Snapshot`; a writer builds the next one under
the lock and swaps it in, so a reader sees the state before or after a write, never in between.
"""

import builtins
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType

from .backends.base import Backend, BackendCapabilities, Health
from .exceptions import (
    BackendAlreadyRegistered,
    BackendNotRegistered,
    InvalidBackend,
    InvalidBackendName,
)
from .routing import (
    MAX_NAME_CHARS,
    RegisteredBackend,
    Resolution,
    RouteStatus,
    RouteTable,
    decide,
    route_status,
)
from .utils.forks import reset_after_fork
from .workloads import AUTO, Isolation

_NAME = re.compile(rf"[a-z][a-z0-9-]{{0,{MAX_NAME_CHARS - 1}}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendInfo:
    """Public information about one registered backend; equal states compare equal."""

    name: str
    capabilities: BackendCapabilities
    detected: bool | None
    healthy: bool | None
    health_description: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The registry at one moment; `entries` is ordered by name.

    `decisions` memoises `decide` by isolation, runtime and source format. It has only successes of
    `auto` and of single names, so registered names times supported runtimes and formats bound its
    size. Callers choose everything else: there is no end of unknown names and of lists. Errors are
    made anew also because a raised error collects tracebacks.
    """

    entries: Mapping[str, RegisteredBackend]
    routes: RouteTable
    decisions: dict[tuple[Isolation, str | None, str], Resolution] = field(
        default_factory=dict, init=False, repr=False
    )

    def decide(
        self, isolation: Isolation, runtime: str | None, source_format: str = "code"
    ) -> Resolution:
        """Choose a backend; see `routing.decide`."""
        try:
            return self.decisions[isolation, runtime, source_format]
        except (KeyError, TypeError):  # not memoised, or unhashable
            pass
        resolution = decide(
            isolation, runtime, source_format, entries=self.entries, routes=self.routes
        )
        if resolution.error is None and isinstance(isolation, str):
            self.decisions[isolation, runtime, source_format] = resolution
        return resolution

    def list(self) -> list[BackendInfo]:
        """Return every backend, by name."""
        return [
            BackendInfo(
                name=entry.name,
                capabilities=entry.capabilities,
                detected=entry.health.detected,
                healthy=entry.health.healthy,
                health_description=entry.health.description,
                attributes=entry.health.attributes,
            )
            for entry in self.entries.values()
        ]

    def list_routes(self) -> builtins.list[RouteStatus]:
        """Return every row of the route table with the state of its target, in order."""
        return [route_status(route, self.entries) for route in self.routes]


class Registry:
    """Backends by name. Thread-safe."""

    def __init__(self, routes: RouteTable | None = None) -> None:
        self._lock = threading.Lock()
        self._snapshot = Snapshot(MappingProxyType({}), routes or RouteTable())
        reset_after_fork(self)

    @property
    def snapshot(self) -> Snapshot:
        """The current state; keep one snapshot for reads that must be consistent."""
        return self._snapshot

    def register(self, name: str, backend: Backend, *, replace: bool = False) -> None:
        """Add a backend; its health is unknown until it is probed.

        Raise `InvalidBackendName`, `InvalidBackend`, or `BackendAlreadyRegistered` when the name is
        registered and `replace` is false.
        """
        entry = _entry(name, backend)
        with self._lock:
            if name in self._snapshot.entries and not replace:
                raise BackendAlreadyRegistered(name)
            self._swap({**self._snapshot.entries, name: entry})

    def unregister(self, name: str) -> Backend:
        """Remove a backend and return it, still open; raise `BackendNotRegistered`."""
        with self._lock:
            entries = dict(self._snapshot.entries)
            entry = entries.pop(name, None)
            if entry is None:
                raise BackendNotRegistered(name, tuple(entries))
            self._swap(entries)
            return entry.backend

    def resolve(
        self, isolation: Isolation, runtime: str | None, source_format: str = "code"
    ) -> Backend:
        """Return the backend to use.

        Raise a `ResolutionError` with the reason when there is none, or `InvalidRequest`.
        """
        resolution = self._snapshot.decide(isolation, runtime, source_format)
        if resolution.backend is None:
            assert resolution.error is not None
            raise resolution.error
        return resolution.backend

    def explain(
        self, isolation: Isolation, runtime: str | None, source_format: str = "code"
    ) -> Resolution:
        """Return the decision of `resolve` as a value, with every candidate and its reason."""
        return self._snapshot.decide(isolation, runtime, source_format)

    def list(self) -> builtins.list[BackendInfo]:
        """Return every registered backend, by name."""
        return self._snapshot.list()

    def get(self, name: str) -> RegisteredBackend:
        """Return one registered backend; raise `BackendNotRegistered`."""
        entries = self._snapshot.entries
        if name not in entries:
            raise BackendNotRegistered(name, tuple(entries))
        return entries[name]

    def set_health(self, name: str, backend: Backend, health: Health) -> bool:
        """Set a backend's health; return False when that changes nothing.

        `backend` is the instance that was probed: the health of an instance that has been replaced
        or unregistered in the meantime is dropped.
        """
        with self._lock:
            entry = self._snapshot.entries.get(name)
            if entry is None or entry.backend is not backend or entry.health == health:
                return False
            changed = replace(entry, health=health, changed_at=datetime.now(UTC))
            self._swap({**self._snapshot.entries, name: changed})
            return True

    def replace_configured(
        self, *, add: Mapping[str, Backend], remove: Mapping[str, Backend]
    ) -> None:
        """Replace the backends that settings registered, atomically; keep all others.

        A name in `remove` is removed only while it still holds that very instance: if it was
        replaced, the replacement stays and the backend in `add` is dropped. Raise
        `BackendAlreadyRegistered`, and change nothing, when a name of `add` is registered and not
        in `remove`.
        """
        added = {name: _entry(name, backend) for name, backend in add.items()}
        with self._lock:
            entries = {
                name: entry
                for name, entry in self._snapshot.entries.items()
                if remove.get(name) is not entry.backend
            }
            for name in added:
                if name in entries and name not in remove:
                    raise BackendAlreadyRegistered(name)
            self._swap({**added, **entries})

    def set_routes(self, routes: RouteTable) -> None:
        """Replace the route table; keep the backends and their health."""
        with self._lock:
            self._swap(self._snapshot.entries, routes)

    def __contains__(self, name: object) -> bool:
        return name in self._snapshot.entries

    def __iter__(self) -> Iterator[str]:
        """Iterate over the registered names in order."""
        return iter(tuple(self._snapshot.entries))

    def __len__(self) -> int:
        return len(self._snapshot.entries)

    def _reset_after_fork(self) -> None:
        """Replace the lock in a forked child: the thread that may hold it was not copied."""
        self._lock = threading.Lock()

    def _swap(
        self, entries: Mapping[str, RegisteredBackend], routes: RouteTable | None = None
    ) -> None:
        ordered = MappingProxyType(dict(sorted(entries.items())))
        self._snapshot = Snapshot(ordered, routes or self._snapshot.routes)


def validate_name(name: object) -> str | None:
    """Return why a backend cannot have this name, or None when it is valid."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "must be a lower-case letter, then up to 62 lower-case letters, digits and hyphens"
    return "the name is reserved for automatic routing" if name == AUTO else None


def _entry(name: str, backend: Backend) -> RegisteredBackend:
    if problem := validate_name(name):
        raise InvalidBackendName(name, problem)
    capabilities = getattr(backend, "capabilities", None)
    if not isinstance(capabilities, BackendCapabilities):
        raise InvalidBackend(name, "its `capabilities` must be a BackendCapabilities")
    for method in ("probe", "prepare", "execute", "kill", "close", "check"):
        if not callable(getattr(backend, method, None)):
            raise InvalidBackend(name, f"it has no method `{method}`; derive it from Backend")
    return RegisteredBackend(
        name=name,
        backend=backend,
        capabilities=capabilities,
        health=Health.unknown(),
        changed_at=datetime.now(UTC),
    )


registry = Registry()
"""The registry of this process; `BackendsConfig.ready()` fills it from the settings."""
