"""The backend interface, with the values for its capabilities and its health."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

from django.core.checks import CheckMessage

from ..utils.text import escape, shorten
from ..workloads import WorkloadResult, WorkloadSpec
from .setup import Step

Plan: TypeAlias = Any
"""A workload as `Backend.prepare` returns it; only the same backend reads it."""

MAX_DESCRIPTION_CHARS = 500
MAX_ATTRIBUTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendCapabilities:
    """What a backend can do, whether or not it works on this host.

    `name` is for people. `supported_isolations` are the technologies that it implements; the name
    that requests use for it is set in the registry. `max_concurrency` limits concurrent workloads.
    """

    name: str
    supported_runtimes: Sequence[str]
    supported_isolations: Sequence[str]
    supported_source_formats: Sequence[str] = ("code",)
    max_concurrency: int = 1

    def __post_init__(self) -> None:
        for key in ("supported_runtimes", "supported_isolations", "supported_source_formats"):
            value = getattr(self, key)
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise TypeError(f"{key} takes a sequence of strings, not {value!r}")
            object.__setattr__(self, key, tuple(value))
        if isinstance(self.max_concurrency, bool) or not isinstance(self.max_concurrency, int):
            raise TypeError(f"max_concurrency takes an integer, not {self.max_concurrency!r}")
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, not {self.max_concurrency}")


@dataclass(frozen=True, slots=True)
class Health:
    """Result of a backend's probe on this host.

    Four states: unknown (never probed; both None), undetected (its software is not installed),
    unhealthy (installed but not working), healthy (a real smoke workload ran). `description` and
    `attributes` are public, so they must hold no secrets and no URLs with credentials. Both are
    escaped and shortened to a maximum size.
    """

    detected: bool | None
    healthy: bool | None
    description: str
    attributes: Mapping[str, str] = field(default_factory=dict)

    STATES: ClassVar[Mapping[tuple[bool | None, bool | None], str]] = {
        (None, None): "unknown",
        (False, False): "undetected",
        (True, False): "unhealthy",
        (True, True): "healthy",
    }

    def __post_init__(self) -> None:
        if (self.detected, self.healthy) not in self.STATES:
            raise ValueError(f"no such state: detected={self.detected!r}, healthy={self.healthy!r}")
        items = sorted(self.attributes.items())[:MAX_ATTRIBUTES]  # equal health, equal bytes
        attributes = {_shorten(key): _shorten(value) for key, value in items}
        object.__setattr__(self, "description", _shorten(self.description))
        object.__setattr__(self, "attributes", MappingProxyType(attributes))

    @classmethod
    def unknown(cls) -> "Health":
        return cls(None, None, "not probed yet")

    @classmethod
    def undetected(cls, description: str, attributes: Mapping[str, str] | None = None) -> "Health":
        return cls(False, False, description, attributes or {})

    @classmethod
    def unhealthy(cls, description: str, attributes: Mapping[str, str] | None = None) -> "Health":
        return cls(True, False, description, attributes or {})

    @classmethod
    def ok(
        cls, description: str = "healthy", attributes: Mapping[str, str] | None = None
    ) -> "Health":
        return cls(True, True, description, attributes or {})

    @property
    def state(self) -> str:
        """`unknown`, `undetected`, `unhealthy` or `healthy`."""
        return self.STATES[self.detected, self.healthy]

    @property
    def eligible(self) -> bool:
        """Return whether workloads may be sent here.

        An unknown state counts as eligible, because a registry without a monitor has to work.
        """
        return self.healthy is not False


class Backend:
    """Base class of all backends; a subclass must provide `capabilities`, `probe` and `execute`.

    One instance serves many threads at once. It is created when the settings are read, before any
    fork, so the constructor stores its options and starts nothing.
    """

    capabilities: BackendCapabilities

    def probe(self) -> Health:
        """Return whether workloads run here, by running a small one.

        The health monitor calls this in a separate thread. It may block; if it exceeds the
        monitor's timeout, the backend counts as unhealthy.
        """
        raise NotImplementedError

    def prepare(self, workload: WorkloadSpec) -> Plan:
        """Validate and decode the workload, and return what `execute` needs; by default, itself.

        Raise `InvalidRequest` for a workload that this backend would reject on any host. Called
        before the workload is accepted, possibly on a different host than it will run on, and
        again where it runs after it has waited.
        """
        return workload

    def execute(self, plan: Plan) -> WorkloadResult:
        """Run a prepared workload to its end within its resources; return the host's findings.

        A failing program is a result. Raise `BackendUnavailable` when the infrastructure fails
        instead of the program. `services.run` calls this in the caller's thread.
        """
        raise NotImplementedError

    def run(self, workload: WorkloadSpec) -> WorkloadResult:
        """Prepare and execute a workload, without a registry's checks and slots."""
        return self.execute(self.prepare(workload))

    def kill(self, workload_id: str) -> None:
        """Kill a running workload, with the reason `killed`, and remove anything left of one.

        Ignore an unknown id.
        """

    def warm_count(self) -> int | None:
        """Return the number of warm instances in this process, without starting anything.

        Return None for a backend that keeps none, or if the number is not available now.
        """
        return None

    def close(self) -> None:
        """Release everything that the instance holds. May be called twice."""

    def setup(self, runtimes: Sequence[str] = ()) -> Sequence[Step]:
        """Return the ordered setup steps for this host, which `manage.py setup_backend` applies.

        `runtimes` restricts them to what these runtimes need, where that makes a difference; empty
        means all.
        """
        return ()

    def check(self) -> Sequence[CheckMessage]:
        """Return Django system check messages about doubtful options or a doubtful host.

        Every command runs them first, so they have to be quick and must not need a database.
        """
        return ()


def _shorten(text: object) -> str:
    return shorten(escape(str(text)[: MAX_DESCRIPTION_CHARS + 1]), MAX_DESCRIPTION_CHARS)
