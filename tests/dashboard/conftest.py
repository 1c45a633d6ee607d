"""Fixtures: the dashboard with a registry and a clock of the test."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib.auth.models import User
from django.test import Client

from backends_app.executors.local import LocalExecutor
from backends_app.registry import Registry
from backends_app.web.dashboard.history import History


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
def site(serve, filled: Registry, executor: LocalExecutor, history: History) -> None:
    """Serve the dashboard over the test's registry, executor and history."""
    serve(filled, executor, history)


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
