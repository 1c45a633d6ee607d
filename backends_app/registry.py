"""The backend registry: which backends there are, what each can do, which one a request goes to.

Reads take no lock. The whole state is one immutable `Snapshot`; a writer builds the next one under
the lock and swaps it in, so a reader sees the state before or after a write, never between.
"""

import builtins
import os
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
from .routing import MAX_NAME_CHARS, RegisteredBackend, Resolution, RouteTable, decide
from .workloads import AUTO, Isolation

_NAME = re.compile(rf"[a-z][a-z0-9-]{{0,{MAX_NAME_CHARS - 1}}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendInfo:
    """One registered backend as everybody may see it; equal state gives equal values."""

    name: str
    capabilities: BackendCapabilities
    detected: bool | None
    healthy: bool | None
    health_description: str
    attributes: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The registry at one moment; `entries` is ordered by name.

    `resolved` remembers what `resolve` has found in this snapshot, by source format, isolation and
    runtime: three lookups cost less than making and hashing one key of three parts. It grows by
    successes alone, so registered names times supported runtimes and formats bound it.
    """

    entries: Mapping[str, RegisteredBackend]
    routes: RouteTable
    resolved: dict[str, dict[str, dict[str | None, Backend]]] = field(
        default_factory=dict, repr=False
    )

    def decide(
        self, isolation: Isolation, runtime: str | None, source_format: str = "code"
    ) -> Resolution:
        """Which backend, and why; see `routing.decide`."""
        return decide(isolation, runtime, source_format, entries=self.entries, routes=self.routes)

    def list(self) -> list[BackendInfo]:
        """Every backend, by name."""
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


class Registry:
    """Backends by name. Every method may be called from any thread."""

    def __init__(self, routes: RouteTable | None = None) -> None:
        self._lock = threading.Lock()
        self._snapshot = Snapshot(MappingProxyType({}), routes or RouteTable())

    @property
    def snapshot(self) -> Snapshot:
        """The state right now; hold on to it for answers that agree with each other."""
        return self._snapshot

    def register(self, name: str, backend: Backend, *, replace: bool = False) -> None:
        """Add a backend; its health is unknown until somebody probes it.

        Raises `InvalidBackendName`, `InvalidBackend`, and `BackendAlreadyRegistered` when the name
        is taken and `replace` is not set.
        """
        entry = _entry(name, backend)
        with self._lock:
            if name in self._snapshot.entries and not replace:
                raise BackendAlreadyRegistered(name)
            self._swap({**self._snapshot.entries, name: entry})

    def unregister(self, name: str) -> Backend:
        """Take a backend out and return it, still open; raises `BackendNotRegistered`."""
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
        """The backend to use.

        Raises a `ResolutionError` that says why there is none, or `InvalidRequest`.
        """
        snapshot = self._snapshot
        try:
            return snapshot.resolved[source_format][isolation][runtime]  # type: ignore[index]
        except (KeyError, TypeError):  # not asked before, or a list, which does not hash
            pass
        resolution = snapshot.decide(isolation, runtime, source_format)
        if resolution.error is not None:
            raise resolution.error
        assert resolution.backend is not None
        if isinstance(isolation, str):
            by_isolation = snapshot.resolved.setdefault(source_format, {})
            by_isolation.setdefault(isolation, {})[runtime] = resolution.backend
        return resolution.backend

    def explain(
        self, isolation: Isolation, runtime: str | None, source_format: str = "code"
    ) -> Resolution:
        """The decision of `resolve` as a value, with every candidate and its reason."""
        return self._snapshot.decide(isolation, runtime, source_format)

    def list(self) -> builtins.list[BackendInfo]:
        """Every registered backend, by name."""
        return self._snapshot.list()

    def get(self, name: str) -> RegisteredBackend:
        """One registered backend; raises `BackendNotRegistered`."""
        entries = self._snapshot.entries
        if name not in entries:
            raise BackendNotRegistered(name, tuple(entries))
        return entries[name]

    def set_health(self, name: str, backend: Backend, health: Health) -> bool:
        """Make a backend's health known; False when that changes nothing.

        `backend` says whose health it is: a finding about an instance that has been replaced or
        unregistered meanwhile is dropped.
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
        """Exchange what settings registered in one step; whatever others registered stays.

        `remove` takes out a name only while it still holds that very instance: who has replaced one
        keeps the name, and what `add` has for it is dropped. Raises `BackendAlreadyRegistered` when
        a name of `add` was never in `remove` and is taken, changing nothing.
        """
        fresh = {name: _entry(name, backend) for name, backend in add.items()}
        with self._lock:
            entries = {
                name: entry
                for name, entry in self._snapshot.entries.items()
                if remove.get(name) is not entry.backend
            }
            for name in fresh:
                if name in entries and name not in remove:
                    raise BackendAlreadyRegistered(name)
            self._swap({**fresh, **entries})

    def set_routes(self, routes: RouteTable) -> None:
        """Put another auto table in place; the backends and their health stay."""
        with self._lock:
            self._swap(self._snapshot.entries, routes)

    def __contains__(self, name: object) -> bool:
        return name in self._snapshot.entries

    def __iter__(self) -> Iterator[str]:
        """The registered names in order."""
        return iter(tuple(self._snapshot.entries))

    def __len__(self) -> int:
        return len(self._snapshot.entries)

    def _reset_after_fork(self) -> None:
        """For a forked child: the thread that held the lock, if any, was not copied."""
        self._lock = threading.Lock()

    def _swap(
        self, entries: Mapping[str, RegisteredBackend], routes: RouteTable | None = None
    ) -> None:
        ordered = MappingProxyType(dict(sorted(entries.items())))
        self._snapshot = Snapshot(ordered, routes or self._snapshot.routes)


def validate_name(name: object) -> str | None:
    """Why no backend can have this name, or None."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return "a name takes a lower-case letter, then up to 62 of lower-case letters, digits and -"
    return "the name is reserved for automatic routing" if name == AUTO else None


def _entry(name: str, backend: Backend) -> RegisteredBackend:
    if problem := validate_name(name):
        raise InvalidBackendName(name, problem)
    capabilities = getattr(backend, "capabilities", None)
    if not isinstance(capabilities, BackendCapabilities):
        raise InvalidBackend(name, "its `capabilities` is no BackendCapabilities")
    for method in ("probe", "execute", "kill", "close", "check"):
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

os.register_at_fork(after_in_child=registry._reset_after_fork)
