"""Read and validate the ISOLATION_* settings, with their defaults.

Every mistake raises an `ImproperlyConfigured` that names the setting, the key and the value. A
missing host program is not a mistake: the backend's probe reports it.
"""

import functools
import inspect
import math
import os
import re
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
DEFAULT_THROTTLE_RATES: Mapping[str, str | None] = {"user": "6000/min", "address": "12000/min"}
_configured: dict[str, Backend] | None = None

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Retention:
    """Days after the end of a workload until its data are deleted.

    The source, needed to run it again (default 0: deleted at the end); the outputs and logs; and
    the record.
    """

    source_days: float = 0.0
    outputs_days: float = 30.0
    records_days: float = 365.0


THROTTLE_RATE = r"[1-9][0-9]*/(s|sec|m|min|h|hour|d|day)"
METRICS_ACCESS = ("open", "token", "off")


@dataclass(frozen=True, slots=True)
class MetricsAccess:
    """The access to the metrics: open, only with the token, or off.

    With `token` and an empty token, the safe default, nobody can read them.
    """

    access: str = "token"
    token: str = field(default="", repr=False)


def populate() -> None:
    """Fill the process's registry from the settings, once: a second call changes nothing."""
    if _configured is None:
        limits()  # raises now instead of with the first workload
        runtime_dir()
        retention()
        metrics_access()
        required_backends()
        throttle_rates()
        registry.set_routes(load_routes())
        _replace_backends()


def reload(*, setting: str, **kwargs: object) -> None:
    """Receiver of `setting_changed`: apply the new settings, or raise `InvalidSetting`."""
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
    elif setting == "ISOLATION_THROTTLE_RATES":
        throttle_rates.cache_clear()
        throttle_rates()


def _replace_backends() -> None:
    """Register the backends of the settings in place of those of the previous settings."""
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
    """Create an instance of every backend in ISOLATION_BACKENDS."""
    where = "ISOLATION_BACKENDS"
    configured = _mapping(where, getattr(settings, where, DEFAULT_BACKENDS))
    for alias in configured:
        _name(f"{where}[{alias!r}]", alias)
    return {
        alias: _instance(f"{where}[{alias!r}]", entry, Backend)
        for alias, entry in configured.items()
    }


def new_instance(name: str, backend: Backend) -> Backend | None:
    """Create a new instance of a configured backend, or return None for any other backend.

    The caller must close it.
    """
    if (_configured or {}).get(name) is not backend:
        return None
    where = "ISOLATION_BACKENDS"
    configured = getattr(settings, where, DEFAULT_BACKENDS)
    return _instance(f"{where}[{name!r}]", configured[name], Backend)


def load_routes() -> RouteTable:
    """Read ISOLATION_ROUTES; missing keys keep their defaults."""
    where = "ISOLATION_ROUTES"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, ("source_formats", "runtimes", "default"))
    for key in ("source_formats", "runtimes"):
        for source, target in _mapping(f"{where}[{key!r}]", configured.get(key, {})).items():
            _name(f"{where}[{key!r}][{source!r}]", target)
    _known_keys(f"{where}['source_formats']", configured.get("source_formats", {}), SOURCE_FORMATS)
    for runtime, target in configured.get("runtimes", {}).items():
        if runtime in RUNTIME_ALIASES:
            reason = f"aliases are resolved before routing; name {RUNTIME_ALIASES[runtime]!r}"
            raise InvalidSetting(f"{where}['runtimes'][{runtime!r}]", target, reason)
    if "default" in configured:
        _name(f"{where}['default']", configured["default"])
    return RouteTable(**configured)


@functools.cache
def limits() -> Limits:
    """Read ISOLATION_LIMITS; missing keys keep their defaults."""
    where = "ISOLATION_LIMITS"
    configured = _mapping(where, getattr(settings, where, {}))
    defaults = Limits()
    _known_keys(where, configured, [part.name for part in fields(Limits)])
    values: dict[str, Any] = {
        key: _resource_range(f"{where}[{key!r}]", value, getattr(defaults, key))
        if isinstance(getattr(defaults, key), ResourceRange)
        else _number(f"{where}[{key!r}]", value, whole=True)
        for key, value in configured.items()
        if not (value is None and getattr(defaults, key) is None)  # derived from other limits
    }
    return Limits(**values)


@functools.cache
def runtime_dir() -> Path:
    """Read ISOLATION_RUNTIME_DIR, the private folder for files needed only at run time."""
    where = "ISOLATION_RUNTIME_DIR"
    default = Path(tempfile.gettempdir(), f"vulcan-{os.geteuid()}")
    value = getattr(settings, where, default)
    if not isinstance(value, str | Path) or not Path(value).is_absolute():
        raise InvalidSetting(where, value, "must be an absolute path")
    return Path(value)


def load_executor(kind: type[T], registry: Registry) -> T:
    """Create the executor of ISOLATION_EXECUTOR, an instance of `kind`, for this registry."""
    where = "ISOLATION_EXECUTOR"
    return _instance(where, getattr(settings, where, DEFAULT_EXECUTOR), kind, registry)


@functools.cache
def retention() -> Retention:
    """Read ISOLATION_RETENTION; missing keys keep their defaults."""
    where = "ISOLATION_RETENTION"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, [part.name for part in fields(Retention)])
    values = {
        key: 0.0 if value == 0 else _number(f"{where}[{key!r}]", value, whole=False)
        for key, value in configured.items()
    }
    days = Retention(**values)
    if not days.source_days <= days.outputs_days <= days.records_days:
        reason = f"must satisfy source_days <= outputs_days <= records_days; got {days}"
        raise InvalidSetting(where, configured, reason)
    return days


@functools.cache
def metrics_access() -> MetricsAccess:
    """Read ISOLATION_METRICS; missing keys keep their defaults."""
    where = "ISOLATION_METRICS"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, [part.name for part in fields(MetricsAccess)])
    metrics = MetricsAccess(**configured)
    if metrics.access not in METRICS_ACCESS:
        reason = f"must be one of {comma_join(METRICS_ACCESS)}"
        raise InvalidSetting(f"{where}['access']", metrics.access, reason)
    if not isinstance(metrics.token, str):
        raise InvalidSetting(f"{where}['token']", "…", "must be a string")  # hides the secret
    return metrics


@functools.cache
def required_backends() -> Sequence[str]:
    """Read ISOLATION_REQUIRED_BACKENDS: a server is ready only while these are healthy."""
    where = "ISOLATION_REQUIRED_BACKENDS"
    configured = getattr(settings, where, ())
    if isinstance(configured, str) or not isinstance(configured, Sequence):
        raise InvalidSetting(where, configured, "must be a list of backend names")
    for number, name in enumerate(configured):
        _name(f"{where}[{number}]", name)
    return tuple(configured)


@functools.cache
def throttle_rates() -> Mapping[str, str | None]:
    """Read ISOLATION_THROTTLE_RATES, in DRF's notation; missing keys keep their defaults.

    None means no limit.
    """
    where = "ISOLATION_THROTTLE_RATES"
    configured = _mapping(where, getattr(settings, where, {}))
    _known_keys(where, configured, DEFAULT_THROTTLE_RATES)
    for scope, rate in configured.items():
        if rate is not None and not re.fullmatch(THROTTLE_RATE, str(rate)):
            raise InvalidSetting(
                f"{where}[{scope!r}]", rate, "must be a rate like 600/min, or None"
            )
    return {**DEFAULT_THROTTLE_RATES, **configured}


def _instance(where: str, entry: object, kind: type[T], *arguments: object) -> T:
    """Create an instance from an entry in Django's form: the class BACKEND with its OPTIONS."""
    entry = _mapping(where, entry)
    _known_keys(where, entry, ("BACKEND", "OPTIONS"))
    path = entry.get("BACKEND")
    if not isinstance(path, str):
        raise InvalidSetting(f"{where}['BACKEND']", path, "must be the dotted path of a class")
    try:
        factory = import_string(path)
    except ImportError as error:
        raise InvalidSetting(f"{where}['BACKEND']", path, f"cannot be imported: {error}") from error
    if not isinstance(factory, type) or not issubclass(factory, kind):
        reason = f"must be a class derived from {kind.__name__}"
        raise InvalidSetting(f"{where}['BACKEND']", path, reason)
    options = _mapping(f"{where}['OPTIONS']", entry.get("OPTIONS", {}))
    _known_keys(f"{where}['OPTIONS']", options, _options(factory, len(arguments)) or options)
    try:
        return factory(*arguments, **options)
    except InvalidOption as error:
        raise InvalidSetting(
            f"{where}['OPTIONS'][{error.option!r}]", error.value, error.reason
        ) from error
    except (TypeError, ValueError) as error:
        raise InvalidSetting(f"{where}['OPTIONS']", options, str(error)) from error


def _options(factory: type, arguments: int) -> Sequence[str]:
    """Return the names that the class accepts as OPTIONS; empty when it accepts any."""
    parameters = list(inspect.signature(factory).parameters.values())[arguments:]
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
    entries = _mapping(where, value)
    _known_keys(where, entries, [part.name for part in fields(ResourceRange)])
    numbers = {
        part.name: _number(
            f"{where}[{part.name!r}]",
            entries.get(part.name, getattr(default, part.name)),
            whole=isinstance(default.default, int),
        )
        for part in fields(ResourceRange)
    }
    result = ResourceRange(**numbers)
    if not result.min <= result.default <= result.max:
        raise InvalidSetting(where, value, f"must satisfy min <= default <= max; got {result}")
    return result


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
