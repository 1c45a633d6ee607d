"""Fixtures: the dashboard with a registry and a clock of the test."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import include, path

from backends_app.api.urls import api_urlpatterns
from backends_app.executors.local import LocalExecutor
from backends_app.registry import Registry
from backends_app.web.dashboard.history import History
from backends_app.web.dashboard.urls import dashboard_urlpatterns


class Clock:
    """A clock that only tests advance."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 25, 17, 1, 30, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def ago(self, **time: float) -> datetime:
        return self.now - timedelta(**time)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def history(clock: Clock) -> History:
    return History(clock)


@pytest.fixture
def executor(filled: Registry) -> LocalExecutor:
    """An executor that is never started."""
    return LocalExecutor(filled)


@pytest.fixture
def site(settings, filled: Registry, executor: LocalExecutor, history: History) -> None:
    urlconf = ModuleType("urls_of_a_dashboard")
    urlconf.urlpatterns = [
        path("", include(dashboard_urlpatterns(filled, executor, history))),
        path("v1/", include((api_urlpatterns(filled, executor), "v1"))),
        path("", include("vulcan_site.urls")),
    ]
    settings.ROOT_URLCONF = urlconf


@pytest.fixture
def staff(db) -> User:
    return User.objects.create_user("grace", is_staff=True)


@pytest.fixture
def look(site, db) -> Callable[..., str]:
    """Return the page's HTML: `look()` for an anonymous visitor, `look(user)` signed in."""

    def look(user: User | None = None, query: str = "") -> str:
        client = Client()
        if user is not None:
            client.force_login(user)
        response = client.get(f"/{query}")
        assert response.status_code == 200
        return response.content.decode()

    return look
