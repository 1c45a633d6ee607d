"""System checks of the project around the app: what the API needs of it.

- `backends_app.E001`: an app that the API needs is not installed.
- `backends_app.E002`: USE_TZ is off.
- `backends_app.W004`: no database is configured.
- `backends_app.W005`: no template engine finds the templates of apps.
- `backends_app.W006`: the probe middleware comes too late.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

REQUIRED_APPS: Mapping[str, str] = {
    "django.contrib.auth": "workloads have owners",
    "rest_framework": "the API's pages extend its templates",
    "knox": "it stores the tokens",
    "drf_spectacular": "the API's documentation uses its templates",
    "drf_spectacular_sidecar": "it has the files of Swagger UI",
}
DUMMY_DATABASE = "django.db.backends.dummy"
PROBES = "backends_app.observability.probes.ProbeMiddleware"


def register() -> None:
    """Register the checks with Django."""
    checks.register(check_project, "isolation")


def require_apps() -> None:
    """Raise `ImproperlyConfigured` if an app is missing without which the API cannot be imported.

    Django imports the URLs while it checks them, and then reports nothing else.
    """
    if missing := list(_missing_apps()):
        raise ImproperlyConfigured("\n".join(map(str, missing)))


def check_project(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[checks.CheckMessage]:
    """Check what the app needs of the project around it; does not query the database."""
    messages = list(_missing_apps())
    if not settings.USE_TZ:
        messages.append(
            checks.Error(
                "USE_TZ is off, but the times of workloads have time zones.",
                hint="Set USE_TZ = True.",
                id="backends_app.E002",
            )
        )
    if settings.DATABASES.get("default", {}).get("ENGINE") in (None, "", DUMMY_DATABASE):
        messages.append(
            checks.Warning(
                "No database is configured, so the API cannot record workloads.",
                hint="Set DATABASES, or use only `services.run`, which needs none.",
                id="backends_app.W004",
            )
        )
    if not any(_finds_templates_of_apps(engine) for engine in settings.TEMPLATES):
        messages.append(
            checks.Warning(
                "No template engine finds the templates of apps, so the API's pages fail.",
                hint="Add DjangoTemplates with APP_DIRS = True to TEMPLATES.",
                id="backends_app.W005",
            )
        )
    middleware = [name for name in settings.MIDDLEWARE if name.startswith(("django.", PROBES))]
    if PROBES in middleware[1:]:
        messages.append(
            checks.Warning(
                f"{PROBES} comes after Django's middleware, which redirects or rejects probes.",
                hint="Move it to the start of MIDDLEWARE.",
                id="backends_app.W006",
            )
        )
    return messages


def _missing_apps() -> Iterator[checks.CheckMessage]:
    for name, reason in REQUIRED_APPS.items():
        if not apps.is_installed(name):
            yield checks.Error(
                f"{name!r} is not in INSTALLED_APPS: {reason}.",
                hint=f"Add {name!r} to INSTALLED_APPS, and run `manage.py migrate`.",
                id="backends_app.E001",
            )


def _finds_templates_of_apps(engine: Mapping[str, Any]) -> bool:
    loaders = engine.get("OPTIONS", {}).get("loaders")
    return bool(engine.get("APP_DIRS") or loaders)
