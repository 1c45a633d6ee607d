"""What a backend is: the interface, what it says it can do, and how it says that it works."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar

from django.core.checks import CheckMessage

from ..workloads import WorkloadResult, WorkloadSpec
from .setup import Step

MAX_DESCRIPTION_CHARS = 500
MAX_ATTRIBUTES = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class BackendCapabilities:
    """What a backend can do, whether or not it works on this host.

    `name` is for people. `supported_isolations` are the technologies it stands for; which name it
    answers to is the registry's business. `max_concurrency` counts workloads at the same time.
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
    """A backend's own finding about itself on this host.

    Four states: unknown (never probed; both None), undetected (what it is made of is not here),
    unhealthy (it is here and does not work), healthy (a real smoke workload ran). `description` and
    `attributes` are shown to everybody: no secrets, no credentialed URLs. Both are cut to a size.
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
            raise ValueError(f"detected={self.detected!r}, healthy={self.healthy!r} is no state")
        kept = sorted(self.attributes.items())[:MAX_ATTRIBUTES]  # equal health, equal bytes
        cut = {_shorten(key): _shorten(value) for key, value in kept}
        object.__setattr__(self, "description", _shorten(self.description))
        object.__setattr__(self, "attributes", MappingProxyType(cut))

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
        """May a workload be sent here? Unknown counts: a registry without a monitor has to work."""
        return self.healthy is not False


class Backend:
    """Base of all backends; what a subclass has to give is `capabilities`, `probe` and `execute`.

    One instance serves many threads at once. It is made when settings are read, before any fork:
    the constructor keeps its options and starts nothing.
    """

    capabilities: BackendCapabilities

    def probe(self) -> Health:
        """Find out whether a workload would run here, by running a small one.

        Called by the health monitor in a thread of its own; it may block, and when it takes longer
        than the monitor waits the backend counts as unhealthy.
        """
        raise NotImplementedError

    def validate(self, workload: WorkloadSpec) -> None:
        """Raise `InvalidRequest` for what this backend would refuse on any host.

        Called before the workload is accepted, perhaps on another host than the one it will run on.
        """

    def execute(self, workload: WorkloadSpec) -> WorkloadResult:
        """Run the workload to its end within its resources and return what the host saw.

        A program that fails is a result. `BackendUnavailable` is raised when it is not the program
        that failed: the infrastructure is broken. Called by `services.run` in the caller's thread.
        """
        raise NotImplementedError

    def kill(self, workload_id: str) -> None:
        """Remove whatever is left of a workload, running or not; nothing left is no error.

        One that runs is ended by this, with the reason `killed`.
        """

    def warm_count(self) -> int | None:
        """How many workloads could begin at once in this process, for something waits prepared.

        None where nothing is ever prepared, or it cannot be said now. Must start nothing.
        """
        return None

    def close(self) -> None:
        """Let go of everything the instance holds. May be called twice."""

    def setup(self, runtimes: Sequence[str] = ()) -> Sequence[Step]:
        """What the backend needs on this host, in order; `manage.py setup_backend` takes them.

        `runtimes` are those that are wanted, where that makes a difference; none are all.
        """
        return ()

    def check(self) -> Sequence[CheckMessage]:
        """Django system checks: what is suspicious about the options, or about the host.

        Every command runs them first, so they have to be quick, and to do without a database.
        """
        return ()


def _shorten(text: object) -> str:
    """Bounded, and never half a surrogate pair: the text ends up in a JSON answer."""
    clean = str(text).encode(errors="replace").decode()
    if len(clean) <= MAX_DESCRIPTION_CHARS:
        return clean
    return f"{clean[: MAX_DESCRIPTION_CHARS - 1]}…"
