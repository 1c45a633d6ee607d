"""Choose the backend for a workload, and explain the choice. Pure: no I/O, no state."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, auto
from types import MappingProxyType

from .backends.base import Backend, BackendCapabilities, Health
from .exceptions import (
    BackendNotRegistered,
    BackendUnavailable,
    InvalidRequest,
    RuntimeNotSupported,
    SourceFormatNotSupported,
    VulcanError,
    comma_join,
)
from .utils.text import short_repr
from .workloads import AUTO, SOURCE_FORMATS, Isolation

RUNTIMES = ("node", "wasm", "python", "go", "oci")
RUNTIME_ALIASES: Mapping[str, str] = {"javascript": "node", "typescript": "node"}
RUNTIME_OF_IMAGES = "oci"
MAX_ISOLATIONS = 16
MAX_NAME_CHARS = 63


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the route table; a row without source format and runtime is the default."""

    target: str
    source_format: str | None = None
    runtime: str | None = None

    @property
    def rule(self) -> str:
        if self.source_format is not None:
            return f"source format {self.source_format} → {self.target}"
        if self.runtime is not None:
            return f"runtime {self.runtime} → {self.target}"
        return f"default → {self.target}"


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteTable:
    """The routes of `auto` (ISOLATION_ROUTES): by source format, then by runtime, then default.

    Every value is a backend name, which need not be registered.
    """

    source_formats: Mapping[str, str] = field(
        default_factory=lambda: {"image": "gvisor", "archive": "microvm"}
    )
    runtimes: Mapping[str, str] = field(
        default_factory=lambda: {
            "node": "isolate",
            "wasm": "isolate",
            "oci": "gvisor",
            "python": "microvm",
            "go": "microvm",
        }
    )
    default: str = "microvm"

    def __post_init__(self) -> None:
        for key in ("source_formats", "runtimes"):
            object.__setattr__(self, key, MappingProxyType(dict(getattr(self, key))))

    def __iter__(self) -> Iterator[Route]:
        """Iterate over the rows in the order in which they apply."""
        for source_format, target in self.source_formats.items():
            yield Route(target, source_format=source_format)
        for runtime, target in self.runtimes.items():
            yield Route(target, runtime=runtime)
        yield Route(self.default)

    def route(self, runtime: str, source_format: str) -> Route:
        """Return the row that applies."""
        if source_format in self.source_formats:
            return Route(self.source_formats[source_format], source_format=source_format)
        if runtime in self.runtimes:
            return Route(self.runtimes[runtime], runtime=runtime)
        return Route(self.default)


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredBackend:
    """One registered backend with its current health."""

    name: str
    backend: Backend
    capabilities: BackendCapabilities
    health: Health
    changed_at: datetime


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend in a resolution: whether it could run the workload, and why or why not."""

    name: str
    eligible: bool
    reason: str


class Ineligibility(Enum):
    """Why a backend cannot run a workload: the first check that fails."""

    NOT_REGISTERED = auto()
    RUNTIME = auto()
    SOURCE_FORMAT = auto()
    HEALTH = auto()


@dataclass(frozen=True, kw_only=True, slots=True)
class RouteStatus:
    """One row of the route table, and whether its target can run such workloads now."""

    route: Route
    ineligibility: Ineligibility | None
    reason: str

    @property
    def eligible(self) -> bool:
        return self.ineligibility is None


def check_eligibility(
    entry: RegisteredBackend | None, runtime: str | None, source_format: str | None
) -> Ineligibility | None:
    """Return the first failing check, or None; a runtime or source format of None matches any."""
    if entry is None:
        return Ineligibility.NOT_REGISTERED
    if runtime is not None and runtime not in entry.capabilities.supported_runtimes:
        return Ineligibility.RUNTIME
    if (
        source_format is not None
        and source_format not in entry.capabilities.supported_source_formats
    ):
        return Ineligibility.SOURCE_FORMAT
    if not entry.health.eligible:
        return Ineligibility.HEALTH
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class Resolution:
    """A routing decision and its reasons.

    Either `name` and `backend` are set or `error` is. `names` are the backends that the rule
    allows, best first; `entries` are the backends registered at the time of the decision.
    """

    isolation: Isolation
    runtime: str | None
    source_format: str
    rule: str
    names: tuple[str, ...] = ()
    entries: Mapping[str, RegisteredBackend] = field(default_factory=dict, repr=False)
    name: str | None = None
    backend: Backend | None = None
    error: VulcanError | None = None

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """The backends of the rule in its order, then all others by name, each with a reason."""
        others = (name for name in self.entries if name not in self.names)
        return tuple(self._candidate(name) for name in (*self.names, *others))

    def _candidate(self, name: str) -> Candidate:
        entry = self.entries.get(name)
        ineligibility = check_eligibility(entry, self.runtime, self.source_format)
        reason = describe_eligibility(entry, ineligibility)
        if ineligibility is None and name != self.name:
            suffix = (
                "a preferred backend was selected"
                if name in self.names
                else "not selected by the rule"
            )
            reason = f"{reason}; {suffix}"
        return Candidate(name, ineligibility is None, reason)


def decide(
    isolation: Isolation,
    runtime: str | None,
    source_format: str,
    *,
    entries: Mapping[str, RegisteredBackend],
    routes: RouteTable,
) -> Resolution:
    """Choose among `entries`. A malformed request is an `error` in the result, never raised."""
    try:
        isolation = _isolation(isolation)
        source_format = _source_format(source_format)
        runtime = _runtime(runtime, source_format)
    except InvalidRequest as error:
        return Resolution(
            isolation=isolation if isinstance(isolation, str) else AUTO,
            runtime=runtime if isinstance(runtime, str) else None,
            source_format=source_format if isinstance(source_format, str) else "code",
            rule="the request is malformed",
            error=error,
        )
    names, rule = _allowed_names(isolation, runtime, source_format, routes)
    ineligibilities = {
        name: check_eligibility(entries.get(name), runtime, source_format) for name in names
    }
    chosen = next((name for name in names if ineligibilities[name] is None), None)
    return Resolution(
        isolation=isolation,
        runtime=runtime,
        source_format=source_format,
        rule=rule,
        names=names,
        entries=entries,
        name=chosen,
        backend=None if chosen is None else entries[chosen].backend,
        error=None
        if chosen is not None
        else _error(ineligibilities, runtime, source_format, entries),
    )


def route_status(route: Route, entries: Mapping[str, RegisteredBackend]) -> RouteStatus:
    """Return whether the target of a route is eligible now, and why or why not."""
    entry = entries.get(route.target)
    ineligibility = check_eligibility(entry, route.runtime, route.source_format)
    return RouteStatus(
        route=route,
        ineligibility=ineligibility,
        reason=describe_eligibility(entry, ineligibility),
    )


def describe_eligibility(
    entry: RegisteredBackend | None, ineligibility: Ineligibility | None
) -> str:
    """Describe an ineligibility, or the health of an eligible backend, in words."""
    if entry is None:
        return "not registered"
    match ineligibility:
        case Ineligibility.RUNTIME:
            return f"runs {comma_join(entry.capabilities.supported_runtimes)} only"
        case Ineligibility.SOURCE_FORMAT:
            formats = comma_join(entry.capabilities.supported_source_formats)
            return f"accepts source format {formats} only"
        case Ineligibility.HEALTH:
            return f"{entry.health.state}: {entry.health.description}"
        case _:
            return "healthy" if entry.health.healthy else "not probed yet"


def parse_isolation(text: str) -> str | list[str]:
    """Return a single name unchanged, comma-separated names as a list: `gvisor,microvm`."""
    return [name.strip() for name in text.split(",")] if "," in text else text


def _allowed_names(
    isolation: Isolation, runtime: str, source_format: str, routes: RouteTable
) -> tuple[tuple[str, ...], str]:
    """Return the allowed backends, best first, and the rule that allows them."""
    if not isinstance(isolation, str):
        return tuple(isolation), f"first eligible of {comma_join(isolation)}"
    if isolation != AUTO:
        return (isolation,), f"isolation {isolation} as requested"
    route = routes.route(runtime, source_format)
    return (route.target,), route.rule


def _error(
    ineligibilities: Mapping[str, Ineligibility | None],
    runtime: str,
    source_format: str,
    entries: Mapping[str, RegisteredBackend],
) -> VulcanError:
    """Return the error of the first backend that is only unhealthy, since it may work later; or of
    the first backend.
    """
    unavailable = (
        name
        for name, ineligibility in ineligibilities.items()
        if ineligibility is Ineligibility.HEALTH
    )
    name = next(unavailable, next(iter(ineligibilities)))
    eligible = _where(
        entries, lambda other: check_eligibility(other, runtime, source_format) is None
    )
    entry = entries.get(name)
    if entry is None:
        return BackendNotRegistered(name, tuple(entries), eligible)
    capabilities = entry.capabilities
    match ineligibilities[name]:
        case Ineligibility.RUNTIME:
            supporting = _where(
                entries, lambda other: runtime in other.capabilities.supported_runtimes
            )
            return RuntimeNotSupported(
                name, runtime, tuple(capabilities.supported_runtimes), supporting, eligible
            )
        case Ineligibility.SOURCE_FORMAT:
            supporting = _where(
                entries, lambda other: source_format in other.capabilities.supported_source_formats
            )
            return SourceFormatNotSupported(
                name,
                source_format,
                tuple(capabilities.supported_source_formats),
                supporting,
                eligible,
            )
        case _:
            return BackendUnavailable(entry.health.description, name=name, eligible=eligible)


def _where(
    entries: Mapping[str, RegisteredBackend], supporting: Callable[[RegisteredBackend], bool]
) -> tuple[str, ...]:
    return tuple(entry.name for entry in entries.values() if supporting(entry))


def _isolation(value: object) -> Isolation:
    """Return `auto` or a name unchanged, or a tuple of one or more distinct names, in order."""
    if isinstance(value, str):
        return _short_string("isolation", value, f"{AUTO}, a backend name or a list of names")
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise InvalidRequest(
            "isolation",
            f"Must be {AUTO}, a backend name or a list of names, not {short_repr(value)}.",
        )
    if not 1 <= len(value) <= MAX_ISOLATIONS:
        raise InvalidRequest("isolation", f"A list must have 1 to {MAX_ISOLATIONS} backend names.")
    names: list[str] = []
    for item in value:
        name = _short_string("isolation", item, "a backend name")
        if name == AUTO:
            raise InvalidRequest(
                "isolation", f"{AUTO} cannot be in a list; a list must have backend names."
            )
        if name in names:
            raise InvalidRequest("isolation", f"{short_repr(name)} is in the list twice.")
        names.append(name)
    return tuple(names)


def _source_format(value: object) -> str:
    return _short_string("source_format", value, f"one of {comma_join(SOURCE_FORMATS)}")


def _runtime(value: object, source_format: str) -> str:
    """Return the canonical name. Any short string passes: the backends define the runtimes."""
    if value is None and source_format == "image":
        return RUNTIME_OF_IMAGES
    runtime = _short_string(
        "runtime", value, f"one of {comma_join(RUNTIMES)} (optional for images)"
    )
    return RUNTIME_ALIASES.get(runtime, runtime)


def _short_string(field: str, value: object, expected: str) -> str:
    """Return a short non-empty string, or raise `InvalidRequest`."""
    if isinstance(value, str) and 0 < len(value) <= MAX_NAME_CHARS:
        return value
    is_missing = value is None or value == ""
    raise InvalidRequest(
        field,
        f"Missing: give {expected}."
        if is_missing
        else f"Must be {expected}; got {short_repr(value)}.",
    )
