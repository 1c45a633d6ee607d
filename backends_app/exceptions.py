"""The error tree. Each error carries its evidence as attributes, and a `code` for programs.

::

    ImproperlyConfigured                 Django's: the operator must change the configuration
    └── ConfigurationError
        ├── InvalidSetting               an ISOLATION_* setting: where, value, reason
        ├── InvalidBackendName           name
        ├── InvalidBackend               name, reason
        └── BackendAlreadyRegistered     name

    InvalidOption                        a backend's constructor rejects one of its OPTIONS;
                                         settings turn it into InvalidSetting with the alias

    VulcanError                          one request cannot be served; independent of HTTP
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
    ├── BodyMemoryFull                   limit
    ├── IdempotencyKeyConflict           key
    └── WorkloadFinished                 status
"""

from collections.abc import Iterable
from typing import ClassVar

from django.core.exceptions import ImproperlyConfigured

from .utils.text import short_repr


def comma_join(names: Iterable[str]) -> str:
    """Join names for a sentence; return "none" when there are none."""
    return ", ".join(names) or "none"


class ConfigurationError(ImproperlyConfigured):
    """The settings or a `register` call must be changed."""


class InvalidSetting(ConfigurationError):
    """A value in one of the ISOLATION_* settings is invalid."""

    def __init__(self, where: str, value: object, reason: str) -> None:
        self.where = where
        self.value = value
        self.reason = reason
        super().__init__(f"{where} = {short_repr(value)}: {reason}")


class InvalidBackendName(ConfigurationError):
    """The name is malformed or reserved."""

    def __init__(self, name: object, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"{short_repr(name)} is not a valid backend name: {reason}")


class InvalidBackend(ConfigurationError):
    """The object lacks something that every backend must have."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = reason
        super().__init__(f"Backend {name!r} cannot be registered: {reason}")


class BackendAlreadyRegistered(ConfigurationError):
    """The name is registered already; `replace=True` replaces its backend."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(
            f"Backend {name!r} is already registered; unregister it first or pass replace=True."
        )


class InvalidOption(ValueError):
    """A backend's constructor rejects one of its OPTIONS."""

    def __init__(self, option: str, value: object, reason: str) -> None:
        self.option = option
        self.value = value
        self.reason = reason
        super().__init__(f"{option} = {short_repr(value)}: {reason}")


class VulcanError(Exception):
    """Base of the errors that prevent one request from being served."""

    code: ClassVar[str] = "error"
    """Names the kind of error for programs."""

    field: str | None = None
    """The field of the request that the caller must change, if one is at fault."""


class InvalidRequest(VulcanError):
    """One field of a request is malformed, regardless of which backends are registered."""

    code = "invalid"

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}")


class ResolutionError(VulcanError):
    """No backend accepts this request.

    `name` is the selected backend. `eligible` are the backends that would accept the request now if
    named explicitly, or None where that was not computed.
    """

    def __init__(self, name: str, problem: str, eligible: tuple[str, ...] | None) -> None:
        self.name = name
        self.eligible = eligible
        alternatives = (
            "" if eligible is None else f" Backends that could run this: {comma_join(eligible)}."
        )
        super().__init__(f"{problem}{alternatives}")


class BackendNotRegistered(ResolutionError):
    """The requested backend, or the target of the route, is not registered."""

    code = "backend_not_registered"
    field = "isolation"

    def __init__(
        self, name: str, registered: tuple[str, ...], eligible: tuple[str, ...] | None = None
    ) -> None:
        self.registered = registered
        problem = (
            f"Backend {short_repr(name)} is not registered. Registered: {comma_join(registered)}."
        )
        super().__init__(name, problem, eligible)


class RuntimeNotSupported(ResolutionError):
    """The backend does not support this runtime; those in `supported_by` do."""

    code = "runtime_not_supported"
    field = "runtime"

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
            f"Backend {name!r} does not support runtime {short_repr(runtime)}; it supports: "
            f"{comma_join(supported)}. Backends for this runtime: {comma_join(supported_by)}."
        )
        super().__init__(name, problem, eligible)


class SourceFormatNotSupported(ResolutionError):
    """The backend does not support this source format; those in `supported_by` do."""

    code = "source_format_not_supported"
    field = "source_format"

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
            f"Backend {name!r} does not support source format {short_repr(source_format)}; it "
            f"supports: {comma_join(supported)}. "
            f"Backends for this format: {comma_join(supported_by)}."
        )
        super().__init__(name, problem, eligible)


class BackendUnavailable(ResolutionError):
    """The backend supports the workload, but its infrastructure does not work now.

    A backend's `execute` raises it with the reason alone; the caller adds the name.
    """

    code = "backend_unavailable"

    def __init__(
        self, reason: str, *, name: str = "", eligible: tuple[str, ...] | None = None
    ) -> None:
        self.reason = reason
        problem = f"Backend {name!r} is unavailable: {reason.rstrip('.')}."
        super().__init__(name, problem if name else reason, eligible)


class BackendAtCapacity(VulcanError):
    """Every slot of the backend is in use."""

    code = "backend_at_capacity"

    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self.limit = limit
        super().__init__(
            f"Backend {name!r} is at capacity ({limit} running). Try again in a moment."
        )


class QueueFull(VulcanError):
    """The backend's queue is full, in total or, with `own`, for this user."""

    code = "queue_full"

    def __init__(self, name: str, limit: int, *, own: bool = False) -> None:
        self.name = name
        self.limit = limit
        self.own = own
        queue = "Your queue" if own else "The queue"
        super().__init__(
            f"{queue} for backend {name!r} is full ({limit:,} workloads). Try again later."
        )


class TooManyWaiting(VulcanError):
    """Too many requests of this process wait for workloads or stream logs."""

    code = "too_many_waiting"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"Too many requests are waiting or streaming logs (limit {limit:,}). "
            "Try again in a moment."
        )


class BodyMemoryFull(VulcanError):
    """The request bodies in this process's memory have reached their limit in bytes."""

    code = "body_memory_full"

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(
            f"Too many bytes of request bodies are being processed (limit {limit:,}). "
            "Try again in a moment."
        )


class HostFault(VulcanError):
    """This host lacks, or cannot trust, something that every workload needs."""

    code = "host_unavailable"


class IdempotencyKeyConflict(VulcanError):
    """The user has already used the idempotency key for a different request."""

    code = "idempotency_key_reused"

    def __init__(self, key: str) -> None:
        self.key = key
        super().__init__(
            f"The idempotency key {short_repr(key)} was used for a different request. "
            "Use a new key."
        )


class WorkloadFinished(VulcanError):
    """The workload to be killed has already finished."""

    code = "workload_ended"

    def __init__(self, status: str) -> None:
        self.status = status
        super().__init__(f"The workload has already finished: {status}.")
