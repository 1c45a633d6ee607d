"""System checks of the configuration as a whole, and the backends' own checks.

- `backends_app.W001`: the target of a route is not registered.
- `backends_app.W002`: no backend is registered.
- `backends_app.W003`: a required backend is not registered.
- The ids of a backend's own checks start with `backends_app.` and the name of its family.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.core import checks

from .conf import required_backends
from .exceptions import comma_join
from .registry import Registry, registry


def register() -> None:
    """Register the checks with Django."""
    checks.register(check_isolation, "isolation")


def check_isolation(
    app_configs: Sequence[AppConfig] | None, *, registry: Registry = registry, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Run all checks that do not touch the host."""
    snapshot = registry.snapshot
    messages = [message for entry in snapshot.entries.values() for message in entry.backend.check()]
    if not snapshot.entries:
        messages.append(
            checks.Warning(
                "No isolation backend is registered, so no workload can run.",
                hint="Name at least one in ISOLATION_BACKENDS.",
                id="backends_app.W002",
            )
        )
        return messages
    messages += [
        checks.Warning(
            f"Backend {name!r} is required but not registered: this server will never be ready.",
            hint=f"Registered: {comma_join(registry)}. Change ISOLATION_REQUIRED_BACKENDS.",
            id="backends_app.W003",
        )
        for name in required_backends()
        if name not in registry
    ]
    return messages + list(_dangling_routes(registry))


def _dangling_routes(registry: Registry) -> Iterator[checks.CheckMessage]:
    rules: dict[str, list[str]] = {}
    for route in registry.snapshot.routes:
        if route.target not in registry:
            rules.setdefault(route.target, []).append(route.rule)
    for target, names in rules.items():
        yield checks.Warning(
            f"Routes target backend {target!r}, which is not registered: {comma_join(names)}.",
            hint=f"Registered: {comma_join(registry)}. Change ISOLATION_ROUTES or register it.",
            id="backends_app.W001",
        )
