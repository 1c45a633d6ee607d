"""The error tree: every way in which Vulcan says no, with the evidence as attributes.

::

    ImproperlyConfigured                 Django's: the operator has to change something
    └── ConfigurationError
        ├── InvalidSetting               an ISOLATION_* setting: where, value, reason
        ├── InvalidBackendName           name
        ├── InvalidBackend               name, reason
        └── BackendAlreadyRegistered     name

    InvalidOption                        a backend's constructor refuses one of its OPTIONS;
                                         settings turn it into InvalidSetting with the alias

    VulcanError                          the answer to one request; knows nothing of HTTP
    ├── InvalidRequest                   field, reason
    ├── ResolutionError                  no backend for this request; name, eligible
    │   ├── BackendNotRegistered         name, registered
    │   ├── RuntimeNotSupported          name, runtime, supported, supported_by
    │   ├── SourceFormatNotSupported     name, source_format, supported, supported_by
    │   └── BackendUnavailable           name, reason; raised by execute() too
    ├── BackendAtCapacity                name, limit
    ├── QueueFull                        name, limit, own
    ├── TooManyWaiting                   limit
    ├── HostFault
    ├── BodyMemoryFull               limit
    ├── IdempotencyKeyConflict                        key
    └── WorkloadFinished                     status
"""

from collections.abc import Iterable

from django.core.exceptions import ImproperlyConfigured

MAX_QUOTED_CHARS = 80


def short_repr(value: object) -> str:
    """`repr` that a stranger cannot make long: at most about 80 characters."""
    text = repr(value)
    return text if len(text) <= MAX_QUOTED_CHARS else f"{text[: MAX_QUOTED_CHARS - 1]}…"


def comma_join(names: Iterable[str]) -> str:
    """Names as prose; says so when there are none."""
    return ", ".join(names) or "none"


class ConfigurationError(ImproperlyConfigured):
    """Something in the settings or in a `register` call has to be changed."""


class InvalidSetting(ConfigurationError):
    """A value under one of the ISOLATION_* settings is wrong."""

    def __init__(self, where: str, value: object, reason: str) -> None:
        self.where = where
        self.value = value
        self.reason = reason
        super().__init__(f"{where} = {short_repr(value)}: {reason}")


class InvalidBackendName(ConfigurationError):
    """The name cannot be registered: it is malformed or reserved."""

    def __init__(self, name: object, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{short_repr(name)} is no backend name: {reason}")


class InvalidBackend(ConfigurationError):
    """The object is no backend: something that every backend has is missing."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"Backend {name!r} cannot be registered: {reason}")


class BackendAlreadyRegistered(ConfigurationError):
    """The name is taken; pass replace=True to put another backend in its place."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"Backend {name!r} is already registered; unregister it first or pass replace=True."
        )


class InvalidOption(ValueError):
    """A backend's constructor refuses one of its OPTIONS."""

    def __init__(self, option: str, value: object, reason: str) -> None:
        self.option = option
        self.value = value
        self.reason = reason
        super().__init__(f"{option} = {short_repr(value)}: {reason}")


class VulcanError(Exception):
    """Base of every answer that says why one request cannot be served."""


class InvalidRequest(VulcanError):
    """One field of a request is malformed, whatever backends there are."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class ResolutionError(VulcanError):
    """No backend takes this request.

    `name` is the backend that was meant to; `eligible` are those that would take it now if they
    were asked for by name, or None where nobody asked for that.
    """

    def __init__(self, name: str, problem: str, eligible: tuple[str, ...] | None) -> None:
        self.name = name
        self.eligible = eligible
        could = (
            "" if eligible is None else f" Backends that could run this: {comma_join(eligible)}."
        )
        super().__init__(f"{problem}{could}")


class BackendNotRegistered(ResolutionError):
    """The backend asked for, or the target of the route, is not in the registry."""

    def __init__(
        self, name: str, registered: tuple[str, ...], eligible: tuple[str, ...] | None = None
    ) -> None:
        self.registered = registered
        problem = (
            f"Backend {short_repr(name)} is not registered. Registered: {comma_join(registered)}."
        )
        super().__init__(name, problem, eligible)


class RuntimeNotSupported(ResolutionError):
    """The backend is there and does not run this runtime; `supported_by` do, if they work."""

    def __init__(
        self,
        name: str,
        runtime: str,
        supported: tuple[str, ...],
        supported_by: tuple[str, ...],
        eligible: tuple[str, ...] | None = None,
    ) -> None:
        self.runtime = runtime
        self.supported = supported
        self.supported_by = supported_by
        problem = (
            f"Backend {name!r} does not run runtime {short_repr(runtime)}; it runs: "
            f"{comma_join(supported)}. Backends for this runtime: {comma_join(supported_by)}."
        )
        super().__init__(name, problem, eligible)


class SourceFormatNotSupported(ResolutionError):
    """The backend is there and does not take this format; `supported_by` do, if they work."""

    def __init__(
        self,
        name: str,
        source_format: str,
        supported: tuple[str, ...],
        supported_by: tuple[str, ...],
        eligible: tuple[str, ...] | None = None,
    ) -> None:
        self.source_format = source_format
        self.supported = supported
        self.supported_by = supported_by
        problem = (
            f"Backend {name!r} does not take source format {short_repr(source_format)}; it takes: "
            f"{comma_join(supported)}. Backends for this format: {comma_join(supported_by)}."
        )
        super().__init__(name, problem, eligible)


class BackendUnavailable(ResolutionError):
    """The backend could run this, and its infrastructure does not work now.

    A backend's `execute` raises it with the reason alone; who called it knows the name.
    """

    def __init__(
        self, reason: str, *, name: str = "", eligible: tuple[str, ...] | None = None
    ) -> None:
        self.reason = reason
        problem = f"Backend {name!r} cannot run workloads now: {reason.rstrip('.')}."
        super().__init__(name, problem if name else reason, eligible)


class BackendAtCapacity(VulcanError):
    """Every slot of the backend is taken."""

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        super().__init__(f"Backend {name!r} already runs its {limit} workloads. Try again soon.")


class QueueFull(VulcanError):
    """As many workloads wait for the backend as may wait: of everybody, or `own`, of this user."""

    def __init__(self, name: str, limit: int, *, own: bool = False) -> None:
        self.name = name
        self.limit = limit
        self.own = own
        whose = "of your workloads" if own else "workloads"
        super().__init__(f"{limit:,} {whose} wait for backend {name!r} already. Try again later.")


class TooManyWaiting(VulcanError):
    """As many requests wait, or follow logs, in this process as may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"{limit:,} requests wait or follow logs already. Try again soon.")


class BodyMemoryFull(VulcanError):
    """The process holds as many bytes of bodies as it may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"Bodies of up to {limit:,} bytes are handled at once. Try again soon.")


class HostFault(VulcanError):
    """Say that this host lacks, or cannot trust, what every workload needs."""


class IdempotencyKeyConflict(VulcanError):
    """The idempotency key stands for another request of the same user."""

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(
            f"The idempotency key {short_repr(key)} was given with another request; take a new one."
        )


class WorkloadFinished(VulcanError):
    """What is to be killed has ended."""

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(f"The workload has ended: it is {status}.")
