"""The project's commands in processes of their own: make, manage.py, a server, the tests."""

import json
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.support.needs import find, need
from tests.support.programs import ELSEWHERE, ROOT, environment, manage
from tests.test_project import locked


def test_a_server_starts_without_the_test_packages(tmp_path: Path):
    test_packages = {*locked("requirements")} - {*locked("requirements-production")}
    canonical = {re.sub(r"[-_.]+", "-", name).lower() for name in test_packages}
    hidden = [
        module
        for module, distributions in packages_distributions().items()
        if all(re.sub(r"[-_.]+", "-", name).lower() in canonical for name in distributions)
    ]
    assert {"pytest", "mypy", "hypothesis"} <= {*hidden}
    code = f"""
import sys
sys.modules.update(dict.fromkeys({hidden!r}))  # an import of None is an ImportError
import vulcan_site.wsgi, vulcan_site.gunicorn_worker, backends_app.executors.celery
from django.core.management import call_command
call_command("check")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def make(*arguments: str, folder: Path, path: str) -> subprocess.CompletedProcess[str]:
    """Run make without an existing environment, with only these programs."""
    need("make")
    venv = f"VENV={folder}/venv"
    return subprocess.run(
        [find("make"), *arguments, venv, f"{folder}/venv/.installed"],
        cwd=ROOT,
        env={"PATH": path, "HOME": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def python(folder: Path, name: str, code: str = "") -> None:
    """Put a Python that first runs some code into the folder."""
    file = folder / name
    file.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{code}$1"\n')
    file.chmod(0o755)


def test_make_uses_the_newest_suitable_python(tmp_path: Path):
    path = f"{tmp_path}:/usr/bin:/bin"
    without_venv = (
        "import sys; sys.modules['ensurepip'] = None; "  # like Debian's without python3-venv
    )
    too_old = "import sys; sys.version_info = (3, 10, 9); "
    for name, code in (("python3.13", without_venv), ("python3.12", too_old), ("python3.11", "")):
        python(tmp_path, name, code)
    done = make("--dry-run", folder=tmp_path, path=path)
    assert '"python3.11" -m venv' in done.stdout, done.stderr
    python(tmp_path, "python3.13")
    assert '"python3.13" -m venv' in make("--dry-run", folder=tmp_path, path=path).stdout


def test_make_without_a_suitable_python_names_the_package_to_install(tmp_path: Path):
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        python(tmp_path, name, "import sys; sys.version_info = (3, 14, 0); ")
    done = make(folder=tmp_path, path=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


STARTED = """
import json, os, socket, sys, threading
import django
django.setup()
from django.apps import apps
apps.get_app_config("backends_app").ready()
from backends_app.registry import registry
from django.db import connections
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
opened = []
for number in os.listdir("/proc/self/fd"):
    if os.path.islink(f"/proc/self/fd/{number}"):  # not the listing's own, which is closed
        opened.append(os.readlink(f"/proc/self/fd/{number}"))
print(json.dumps({
    "threads": threading.active_count(),
    "children": children,
    "database": any(one.connection is not None for one in connections.all()),
    "backends": list(registry),
    "healthy": [info.healthy for info in registry.list()],
    "sockets": [name for name in opened if name.startswith("socket:")],
}))
"""


def test_ready_starts_no_thread_process_socket_or_database(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", STARTED],
        cwd=ROOT,
        env=environment(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {
        "threads": 1,
        "children": [],
        "database": False,
        "backends": ["gvisor", "isolate", "microvm"],
        "healthy": [None, None, None],
        "sockets": [],
    }
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_any_program_can_still_migrate_and_check(tmp_path: Path):
    for command in (["check"], ["migrate", "--verbosity", "0"], ["list_backends"]):
        done = manage(*command, folder=tmp_path, PATH="/nowhere")
        assert done.returncode == 0, done.stderr


def test_the_production_settings_pass_djangos_deployment_check(tmp_path: Path):
    done = manage(
        *("check", "--deploy", "--fail-level", "WARNING"),
        folder=tmp_path,
        SECRET_KEY="a-key-of-more-than-fifty-characters-with-enough-different-ones-0123456789",
        HTTPS="1",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        *(("LOG_FORMAT", "xml"), ("LOG_LEVEL", "loud")),
        *((f"THROTTLE_{name}", "many") for name in ("USER", "ADDRESS", "SIGN_IN")),
    ],
)
def test_a_mistake_in_the_environment_stops_the_start(tmp_path: Path, variable: str, value: str):
    done = manage("check", folder=tmp_path, **{variable: value})
    assert done.returncode != 0
    assert f"{variable}='{value}'" in done.stderr


def test_manage_py_test_runs_pytest_with_djangos_options(tmp_path: Path):
    done = manage(
        *("test", "tests.test_routing", "-k", "routes_can_be_replaced", "--parallel"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "2 workers" in done.stdout
    done = manage("test", "tests.test_routing.test_that_does_not_exist", folder=tmp_path)
    assert done.returncode != 0


HANGING = """
import threading
from hypothesis import given, strategies

def test_hanging():
    threading.Event().wait()

@given(strategies.integers())
def test_hanging_with_examples(number):
    threading.Event().wait()

def test_passing():
    pass
"""


def test_tests_that_hang_fail_and_the_others_run(pytester: pytest.Pytester):
    pytester.makeconftest(
        """
import pathlib
import tests.conftest, tests.support.lanes
from tests.conftest import pytest_collection_modifyitems
tests.conftest.ROOT = pathlib.Path(__file__).parent
tests.support.lanes.FAST_TIMEOUT_S = 1
"""
    )
    pytester.makepyfile(HANGING)
    result = pytester.runpytest_subprocess(*ELSEWHERE, "-n", "2")
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*crashed while running*examples*", "*Timeout (>1.0s)*"])
