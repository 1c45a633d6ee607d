"""Fixtures: the site in this process with a fake backend, and the headers of its clients."""

import logging
from collections.abc import Iterator

import pytest
from django.conf import settings as site
from django.contrib.auth.models import User
from django.core.cache import cache
from django.middleware.csrf import get_token
from django.test import Client, RequestFactory
from knox.models import get_token_model

from backends_app.backends.base import Health
from backends_app.registry import registry

FAKE = "backends_app.backends.fake.FakeBackend"


@pytest.fixture
def fake_site(settings, transactional_db, runtime_dir) -> Iterator[None]:
    """Configure the process's registry with a fake, and an executor that starts no threads."""
    settings.ISOLATION_BACKENDS = {"isolate": {"BACKEND": FAKE, "OPTIONS": {}}}
    settings.ISOLATION_EXECUTOR = {"BACKEND": "tests.admin.executors.Resting"}
    settings.SIGN_IN_RATE = None
    registry.set_health("isolate", registry.get("isolate").backend, Health.ok())
    cache.clear()
    logging.getLogger("vulcan_site.requests").setLevel(logging.ERROR)
    yield
    logging.getLogger("vulcan_site.requests").setLevel(logging.NOTSET)
    cache.clear()


def identify(who: str) -> dict[str, str]:
    """Return the headers of a client that is signed in."""
    if who == "nobody":
        return {}
    user = User.objects.get(username=who)
    if who == "user":
        return {"HTTP_AUTHORIZATION": f"Token {get_token_model().objects.create(user=user)[1]}"}
    client = Client()
    client.force_login(user)
    request = RequestFactory().get("/")
    csrf = get_token(request)
    cookies = {
        site.SESSION_COOKIE_NAME: client.cookies[site.SESSION_COOKIE_NAME].value,
        site.CSRF_COOKIE_NAME: request.META["CSRF_COOKIE"],
    }
    text = "; ".join(f"{name}={value}" for name, value in cookies.items())
    return {"HTTP_COOKIE": text, "HTTP_X_CSRFTOKEN": csrf}
