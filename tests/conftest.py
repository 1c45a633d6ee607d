"""Shared fixtures: registries of fakes, the API over a registry, users."""

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import pytest
from django.contrib.auth.models import User
from django.http import HttpResponse
from django.urls import include, path
from knox.models import get_token_model
from rest_framework.test import APIClient

from backends_app.api.urls import api_urlpatterns
from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.executors.base import Executor
from backends_app.executors.local import LocalExecutor
from backends_app.registry import Registry
from backends_app.web.dashboard.history import History
from backends_app.web.dashboard.urls import dashboard_urlpatterns
from tests.support.lanes import LANES, lanes_of, timeout_of
from tests.support.needs import unlisted
from tests.support.programs import DATABASE, ROOT, manage

hypothesis.settings.register_profile("fast", deadline=None, max_examples=50, derandomize=True)
hypothesis.settings.load_profile("fast")


_unlisted_programs: list[str] = []


def pytest_configure() -> None:
    # A shell without job control ignores SIGINT in what it starts in the background, and a child
    # inherits that: tests send SIGINT to theirs.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(_note_unlisted_program)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for lane in lanes_of(str(item.path.relative_to(ROOT))):
            item.add_marker(lane)
        lanes = [marker.name for marker in item.iter_markers() if marker.name in LANES]
        # Hypothesis catches the failure that a signal raises, and runs the example that hangs once
        # more. A thread ends the process instead, and pytest-xdist reports the test and goes on.
        by_thread = hypothesis.is_hypothesis_test(getattr(item, "obj", None))
        method = "thread" if by_thread else "signal"
        item.add_marker(pytest.mark.timeout(timeout_of(lanes), method=method))


def _note_unlisted_program(event: str, arguments: tuple) -> None:
    if event == "subprocess.Popen":
        program = os.fsdecode(arguments[0])
        if unlisted(program):
            _unlisted_programs.append(program)


@pytest.fixture(autouse=True)
def _programs_are_listed() -> Iterator[None]:
    """Fail a test that started a program that no package of tests/support/needs.py provides."""
    _unlisted_programs.clear()
    yield
    assert not _unlisted_programs, "add them to tests/support/needs.py, or do without them"


@pytest.fixture(autouse=True)
def runtime_dir(settings, tmp_path_factory) -> Path:
    """Use a runtime folder of the test's own: other processes may run tests at the same time."""
    settings.ISOLATION_RUNTIME_DIR = tmp_path_factory.mktemp("runtime", numbered=True)
    settings.ISOLATION_RUNTIME_DIR.chmod(0o700)
    # Independent of this machine's .env:
    settings.ISOLATION_RETENTION = settings.ISOLATION_METRICS = {}
    settings.ISOLATION_REQUIRED_BACKENDS = []
    # Not the slow hash of real passwords.
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    return settings.ISOLATION_RUNTIME_DIR


@pytest.fixture(scope="session")
def _migrated(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("migrated")
    done = manage("migrate", "--verbosity", "0", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / DATABASE


@pytest.fixture
def migrated(_migrated: Path, tmp_path: Path) -> Path:
    """Return a folder with a migrated SQLite database, for programs."""
    shutil.copy(_migrated, tmp_path / DATABASE)
    return tmp_path


@pytest.fixture
def registry() -> Registry:
    """Return an empty registry with the default routes."""
    return Registry()


@pytest.fixture
def fakes() -> dict[str, FakeBackend]:
    """Return a fake for each default route, with the capabilities of the real backend."""
    return {
        "isolate": FakeBackend(runtimes=["node", "wasm"], source_formats=["code"]),
        "gvisor": FakeBackend(runtimes=["oci"], source_formats=["image"]),
        "microvm": FakeBackend(
            runtimes=["python", "node", "go"], source_formats=["code", "archive"]
        ),
    }


@pytest.fixture
def filled(registry: Registry, fakes: dict[str, FakeBackend]) -> Registry:
    """Return a registry of the three fakes, all healthy."""
    for name, fake in fakes.items():
        registry.register(name, fake)
        registry.set_health(name, fake, Health.ok())
    return registry


@pytest.fixture
def serve(settings) -> Callable[..., APIClient]:
    """Return a function that sets the site up over a registry and returns a client of it."""

    def over(
        registry: Registry, executor: Executor | None = None, history: History | None = None
    ) -> APIClient:
        urlconf = ModuleType("urls_of_a_test")
        executor, history = executor or LocalExecutor(registry), history or History()
        urlconf.urlpatterns = [
            path("", include(dashboard_urlpatterns(registry, executor, history))),
            path("v1/", include((api_urlpatterns(registry, executor), "v1"))),
            path("", include("vulcan_site.urls")),
            path("broken", _broken),
        ]
        for name in ("handler400", "handler403", "handler404", "handler500"):
            setattr(urlconf, name, getattr(sys.modules["vulcan_site.urls"], name))
        settings.ROOT_URLCONF = urlconf
        return APIClient()

    import vulcan_site.urls  # noqa: F401 - the handlers above

    return over


def _broken(request) -> HttpResponse:
    raise RuntimeError("a bug, with a secret in its message")


@pytest.fixture
def user(db) -> User:
    return User.objects.create_user("ada")


@pytest.fixture
def token(user: User) -> str:
    return get_token_model().objects.create(user=user)[1]


@pytest.fixture
def client(serve, filled: Registry, token: str) -> APIClient:
    """Return a signed-in client of the API over the three fakes."""
    client = serve(filled)
    client.credentials(HTTP_AUTHORIZATION=f"Token {token}")
    return client


@pytest.fixture
def busy_interpreter() -> Iterator[None]:
    """Let threads interrupt each other as often as CPython can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)
