"""System checks: what is suspicious about the configuration as a whole, and what backends find.

- `backends_app.W001`: a route leads to a backend that is not registered.
- `backends_app.W002`: nothing is registered at all.
- `backends_app.W003`: a backend is required and not registered.
- ids of a backend's own checks start with `backends_app.` and its family's name.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from django.apps import AppConfig
from django.core import checks

from .conf import required_backends
from .exceptions import comma_join
from .registry import Registry, registry


def register() -> None:
    checks.register(check_isolation, "isolation")


def check_isolation(
    app_configs: Sequence[AppConfig] | None, *, registry: Registry = registry, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Everything that can be said without touching the host."""
    snapshot = registry.snapshot
    messages = [message for entry in snapshot.entries.values() for message in entry.backend.check()]
    if not snapshot.entries:
        messages.append(
            checks.Warning(
                "No isolation backend is registered: no workload can run.",
                hint="Name at least one in ISOLATION_BACKENDS.",
                id="backends_app.W002",
            )
        )
        return messages
    messages += [
        checks.Warning(
            f"Backend {name!r} is required and not registered: this server is never ready.",
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
    for target, leading in rules.items():
        yield checks.Warning(
            f"Routes lead to backend {target!r}, which is not registered: {comma_join(leading)}.",
            hint=f"Registered: {comma_join(registry)}. Change ISOLATION_ROUTES or register it.",
            id="backends_app.W001",
        )
