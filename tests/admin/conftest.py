"""Fixtures: operators with and without permissions, and a registry of fakes."""

from collections.abc import Callable

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.test import Client

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.registry import Registry
from backends_app.registry import registry as the_registry

FAKE = "backends_app.backends.fake.FakeBackend"
EXECUTOR = "tests.admin.executors.Resting"


@pytest.fixture(autouse=True)
def fleet(settings, db) -> Registry:
    """The process's registry with three healthy fakes."""
    settings.ISOLATION_BACKENDS = {
        "isolate": {
            "BACKEND": FAKE,
            "OPTIONS": {
                "runtimes": ["node", "wasm"],
                "source_formats": ["code"],
                "max_concurrency": 2,
            },
        },
        "gvisor": {
            "BACKEND": FAKE,
            "OPTIONS": {"runtimes": ["oci"], "source_formats": ["image"]},
        },
        "microvm": {
            "BACKEND": FAKE,
            "OPTIONS": {
                "runtimes": ["python", "go"],
                "source_formats": ["code", "archive"],
            },
        },
    }
    settings.ISOLATION_EXECUTOR = {"BACKEND": EXECUTOR}
    for entry in the_registry.snapshot.entries.values():
        the_registry.set_health(entry.name, entry.backend, Health.ok("it ran", {"version": "1.2"}))
    return the_registry


@pytest.fixture
def isolate(fleet: Registry) -> FakeBackend:
    return fleet.get("isolate").backend


@pytest.fixture
def root(db) -> User:
    return User.objects.create_superuser("root")


@pytest.fixture
def operator(root: User) -> Client:
    """The client of a superuser."""
    client = Client()
    client.force_login(root)
    return client


@pytest.fixture
def staff(db) -> Callable[..., Client]:
    """Return a factory: `staff("view_workload")` is the client of a staff user with permissions."""

    def create(*codenames: str) -> Client:
        user = User.objects.create_user("staff", is_staff=True)
        permissions = Permission.objects.filter(
            codename__in=codenames, content_type__app_label="backends_app"
        )
        assert len(permissions) == len(codenames)
        user.user_permissions.set(permissions)
        client = Client()
        client.force_login(user)
        return client

    return create


@pytest.fixture
def audit(db) -> Callable[[], list[tuple[str, str, str]]]:
    """Return a function that reads the admin log as (user, object id, message)."""

    def read() -> list[tuple[str, str, str]]:
        return [
            (entry.user.get_username(), entry.object_id, entry.get_change_message())
            for entry in LogEntry.objects.order_by("pk")
        ]

    return read
