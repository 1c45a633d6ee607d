"""The app as a library: a wheel, installed into another project."""

import subprocess
import sys
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.programs import ROOT, environment, tracked_files

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Build the wheel with the installed build back end, without the network."""
    folder = tmp_path_factory.mktemp("wheel")
    pip(
        *("wheel", "--no-index", "--no-deps", "--no-build-isolation"),
        *("--check-build-dependencies", "--wheel-dir", str(folder), str(ROOT)),
    )
    [built] = folder.iterdir()
    return built


def pip(*arguments: str, python: str = sys.executable) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--isolated", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_the_app_with_all_of_its_files_and_nothing_else(wheel: Path):
    app = {name for name in tracked_files() if name.startswith("backends_app/")}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
        assert {archive.read(name) for name in app} == {(ROOT / name).read_bytes() for name in app}
    assert packed == app
    for part in ("templates/", "static/", "migrations/", "backends/microvm/guest/"):
        assert any(name.startswith(f"backends_app/{part}") for name in packed)
    assert {"backends_app/sandbox/launcher.py", "backends_app/backends/isolate/wasi.js"} <= packed


def test_the_wheel_requires_the_packages_of_the_app_and_those_of_each_extra(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = HeaderParser().parsestr(archive.read(name).decode())
    extras = PROJECT["optional-dependencies"]
    assert {"isolate", "gvisor", "microvm", "celery", "site"} == {*extras}
    assert {*metadata.get_all("Provides-Extra")} == {*extras}
    required = [line.replace(" ", "") for line in metadata.get_all("Requires-Dist")]
    assert {*required} == {
        *PROJECT["dependencies"],
        *(f'{one};extra=="{extra}"' for extra, wanted in extras.items() for one in wanted),
    }


PROBES = """
import sys
sys.modules.update(dict.fromkeys({hidden!r}))  # an import of None is an ImportError
import django
from django.conf import settings
settings.configure(INSTALLED_APPS={apps!r})
django.setup()
from backends_app.registry import registry
for name in ("isolate", "gvisor"):
    health = registry.get(name).backend.probe()
    print(name, health.state, health.description, sep=": ")
"""


def test_backends_without_their_extras_are_undetected_with_instructions(tmp_path: Path):
    hidden = ["deno", "docker", "requests", "celery", "environ", "whitenoise", "psycopg"]
    code = PROBES.format(hidden=hidden, apps=APPS)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "isolate: undetected: Deno is not installed; install it with: pip install deno",
        "gvisor: undetected: its SDK is not installed; install it with: pip install docker",
    ]


APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "rest_framework",
    "knox",
    "backends_app",
]
