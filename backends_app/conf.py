"""The ISOLATION_* settings: defaults, validation, and the one place that reads them.

Every mistake is an `ImproperlyConfigured` that names the setting, the key and the value. A host
program that is not installed is no mistake: the backend's probe says so.
"""

import functools
import inspect
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.utils.module_loading import import_string

from .backends.base import Backend
from .exceptions import InvalidBackend, InvalidOption, InvalidSetting, comma_join
from .registry import Registry, registry, validate_name
from .routing import RUNTIME_ALIASES, RouteTable
from .workloads import SOURCE_FORMATS, Limits, ResourceRange

DEFAULT_BACKENDS: Mapping[str, Mapping[str, Any]] = {
    "isolate": {"BACKEND": "backends_app.backends.isolate.IsolateBackend"},
    "gvisor": {"BACKEND": "backends_app.backends.gvisor.GVisorBackend"},
    "microvm": {"BACKEND": "backends_app.backends.microvm.MicroVMBackend"},
}
DEFAULT_EXECUTOR: Mapping[str, Any] = {"BACKEND": "backends_app.executors.local.LocalExecutor"}
_configured: dict[str, Backend] | None = None

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days after its end something of a workload is kept.

    Its source, so that it can be run again, which is 0: no longer than it runs; its outputs and
    logs; and its record.
    """

    source_days: float = 0.0
    outputs_days: float = 30.0
    records_days: float = 365.0


METRICS_ACCESS = ("open", "token", "off")


@dataclass(frozen=True, slots=True)
class MetricsAccess:
    """Who may read the metrics: everybody, who has the token, or nobody.

    Without a token of its own, `token` lets nobody in either: the safe default.
    """

    access: str = "token"
    token: str = field(default="", repr=False)


def populate() -> None:
    """Fill the process's registry from the settings, once: a second call changes nothing."""
    if _configured is None:
        limits()  # a mistake there shows now, not with the first workload
        runtime_dir()
        retention()
        metrics_access()
        required_backends()
        registry.set_routes(load_routes())
        _replace_backends()


def reload(*, setting: str, **kwargs: object) -> None:
    """Receiver of `setting_changed`: take over the new settings, or refuse them."""
    if setting == "ISOLATION_BACKENDS":
        _replace_backends()
    elif setting == "ISOLATION_ROUTES":
        registry.set_routes(load_routes())
    elif setting == "ISOLATION_LIMITS":
        limits.cache_clear()
        limits()
    elif setting == "ISOLATION_RUNTIME_DIR":
        runtime_dir.cache_clear()
        runtime_dir()
    elif setting == "ISOLATION_RETENTION":
        retention.cache_clear()
        retention()
    elif setting == "ISOLATION_METRICS":
        metrics_access.cache_clear()
        metrics_access()
    elif setting == "ISOLATION_REQUIRED_BACKENDS":
        required_backends.cache_clear()
        required_backends()


def _replace_backends() -> None:
    """Register what the settings say in the place of what they said before."""
    global _configured
    backends, old = load_backends(), _configured or {}
    try:
        registry.replace_configured(add=backends, remove=old)
    except InvalidBackend as error:
        where = f"ISOLATION_BACKENDS[{error.name!r}]['BACKEND']"
        raise InvalidSetting(
            where, type(backends[error.name]).__qualname__, error.reason
        ) from error
    _configured = backends
    for backend in old.values():
        backend.close()


def load_backends() -> dict[str, Backend]:
    """An instance of every backend in ISOLATION_BACKENDS."""
    where = "ISOLATION_BACKENDS"
    configured = _mapping(where, getattr(settings, where, DEFAULT_BACKENDS))
    for alias in configured:
        _name(f"{where}[{alias!r}]", alias)
    return {
        alias: _instance(f"{where}[{alias!r}]", entry, Backend)
        for alias, entry in configured.items()
    }


def new_instance(name: str, backend: Backend) -> Backend | None:
    """A fresh instance, for its caller to close, of a backend that the settings have made."""
    if (_configured or {}).get(name) is not backend:
        return None
    where = "ISOLATION_BACKENDS"
    configured = getattr(settings, where, DEFAULT_BACKENDS)
    return _instance(f"{where}[{name!r}]", configured[name], Backend)


def load_routes() -> RouteTable:
    """ISOLATION_ROUTES; a key that is left out keeps its default."""
    where = "ISOLATION_ROUTES"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, ("source_formats", "runtimes", "default"))
    for key in ("source_formats", "runtimes"):
        for source, target in _mapping(f"{where}[{key!r}]", configured.get(key, {})).items():
            _name(f"{where}[{key!r}][{source!r}]", target)
    _known_keys(f"{where}['source_formats']", configured.get("source_formats", {}), SOURCE_FORMATS)
    for runtime, target in configured.get("runtimes", {}).items():
        if runtime in RUNTIME_ALIASES:
            reason = f"an alias never comes to routing; name {RUNTIME_ALIASES[runtime]!r}"
            raise InvalidSetting(f"{where}['runtimes'][{runtime!r}]", target, reason)
    if "default" in configured:
        _name(f"{where}['default']", configured["default"])
    return RouteTable(**configured)


@functools.cache
def limits() -> Limits:
    """ISOLATION_LIMITS; a key that is left out keeps its default."""
    where = "ISOLATION_LIMITS"
    configured = _mapping(where, getattr(settings, where, {}))
    defaults = Limits()
    _known_keys(where, configured, [part.name for part in fields(Limits)])
    values: dict[str, Any] = {
        key: _resource_range(f"{where}[{key!r}]", value, getattr(defaults, key))
        if isinstance(getattr(defaults, key), ResourceRange)
        else _number(f"{where}[{key!r}]", value, whole=True)
        for key, value in configured.items()
        if not (value is None and getattr(defaults, key) is None)  # it follows from others
    }
    return Limits(**values)


@functools.cache
def runtime_dir() -> Path:
    """ISOLATION_RUNTIME_DIR: for what lives only while workloads run, this user's alone."""
    where = "ISOLATION_RUNTIME_DIR"
    default = Path(tempfile.gettempdir(), f"vulcan-{os.geteuid()}")
    value = getattr(settings, where, default)
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        raise InvalidSetting(where, value, "must be an absolute path")
    return Path(value)


def load_executor(kind: type[T], registry: Registry) -> T:
    """What ISOLATION_EXECUTOR names: an instance of `kind`, over this registry."""
    where = "ISOLATION_EXECUTOR"
    return _instance(where, getattr(settings, where, DEFAULT_EXECUTOR), kind, registry)


@functools.cache
def retention() -> Retention:
    """ISOLATION_RETENTION; a key that is left out keeps its default."""
    where = "ISOLATION_RETENTION"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, [part.name for part in fields(Retention)])
    values = {
        key: 0.0 if value == 0 else _number(f"{where}[{key!r}]", value, whole=False)
        for key, value in configured.items()
    }
    found = Retention(**values)
    if not found.source_days <= found.outputs_days <= found.records_days:
        reason = f"must keep source_days <= outputs_days <= records_days, and makes {found}"
        raise InvalidSetting(where, configured, reason)
    return found


@functools.cache
def metrics_access() -> MetricsAccess:
    """ISOLATION_METRICS; a key that is left out keeps its default."""
    where = "ISOLATION_METRICS"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, [part.name for part in fields(MetricsAccess)])
    found = MetricsAccess(**configured)
    if found.access not in METRICS_ACCESS:
        reason = f"must be one of {comma_join(METRICS_ACCESS)}"
        raise InvalidSetting(f"{where}['access']", found.access, reason)
    if not isinstance(found.token, str):
        raise InvalidSetting(f"{where}['token']", "…", "must be a string")  # it is a secret
    return found


@functools.cache
def required_backends() -> Sequence[str]:
    """ISOLATION_REQUIRED_BACKENDS: those without which a server is not ready for requests."""
    where = "ISOLATION_REQUIRED_BACKENDS"
    configured = getattr(settings, where, ())
    if isinstance(configured, str) or not isinstance(configured, Sequence):
        raise InvalidSetting(where, configured, "must be a list of names of backends")
    for number, name in enumerate(configured):
        _name(f"{where}[{number}]", name)
    return tuple(configured)


def _instance(where: str, entry: object, kind: type[T], *arguments: object) -> T:
    """What an entry in Django's shape stands for: BACKEND, a class, made with its OPTIONS."""
    entry = _mapping(where, entry)
    _known_keys(where, entry, ("BACKEND", "OPTIONS"))
    path = entry.get("BACKEND")
    if not isinstance(path, str):
        raise InvalidSetting(f"{where}['BACKEND']", path, "must be the dotted path of a class")
    try:
        found = import_string(path)
    except ImportError as error:
        raise InvalidSetting(f"{where}['BACKEND']", path, f"cannot be imported: {error}") from error
    if not isinstance(found, type) or not issubclass(found, kind):
        reason = f"must be a class derived from {kind.__name__}"
        raise InvalidSetting(f"{where}['BACKEND']", path, reason)
    options = _mapping(f"{where}['OPTIONS']", entry.get("OPTIONS", {}))
    _known_keys(f"{where}['OPTIONS']", options, _options(found, len(arguments)) or options)
    try:
        return found(*arguments, **options)
    except InvalidOption as error:
        raise InvalidSetting(
            f"{where}['OPTIONS'][{error.option!r}]", error.value, error.reason
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"{where}['OPTIONS']", options, str(error)) from error


def _options(found: type, arguments: int) -> Sequence[str]:
    """The names that the class takes as OPTIONS; none when it takes any."""
    parameters = list(inspect.signature(found).parameters.values())[arguments:]
    if any(part.kind is part.VAR_KEYWORD for part in parameters):
        return ()
    return [part.name for part in parameters]


def _mapping(where: str, value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidSetting(where, value, "must be a dict")
    for key in value:
        if not isinstance(key, str):
            raise InvalidSetting(where, key, "every key must be a string")
    return value


def _known_keys(where: str, value: Mapping[str, Any], known: Any) -> None:
    for key in value:
        if key not in known:
            raise InvalidSetting(
                f"{where}[{key!r}]", value[key], f"unknown; known: {comma_join(known)}"
            )


def _name(where: str, value: object) -> None:
    if problem := validate_name(value):
        raise InvalidSetting(where, value, f"invalid backend name: {problem}")


def _resource_range(where: str, value: object, default: ResourceRange) -> ResourceRange:
    given = _mapping(where, value)
    _known_keys(where, given, [part.name for part in fields(ResourceRange)])
    numbers = {
        part.name: _number(
            f"{where}[{part.name!r}]",
            given.get(part.name, getattr(default, part.name)),
            whole=isinstance(default.default, int),
        )
        for part in fields(ResourceRange)
    }
    bound = ResourceRange(**numbers)
    if not bound.min <= bound.default <= bound.max:
        raise InvalidSetting(where, value, f"must keep min <= default <= max, and makes {bound}")
    return bound


def _number(where: str, value: object, *, whole: bool) -> float:
    kinds = (int,) if whole else (int, float)
    if (
        isinstance(value, bool)
        or not isinstance(value, kinds)
        or not math.isfinite(value)
        or value <= 0
    ):
        kind = "a whole number" if whole else "a number"
        raise InvalidSetting(where, value, f"must be {kind} above 0")
    return value
