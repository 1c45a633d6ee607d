"""The project from a newcomer's view: its layout, its start-up, its test command."""

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.lanes import LANES
from tests.needs import find, need
from tests.programs import ROOT, environment, manage, tracked_files
from vulcan_site.test_runner import as_pytest_label

TOP_LEVEL = {
    *("Makefile", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *("pyproject.toml", "manage.py", "gunicorn.conf.py"),
    *("requirements.in", "requirements.txt", "requirements-production.txt"),
    *("vulcan_site", "backends_app", "tests", "docs", "ops"),
}
SOURCES = {"requirements-production": "pyproject.toml", "requirements": "requirements.in"}
REQUIREMENT = re.compile(r'"?([A-Za-z0-9_-]+)(?:\[[a-z,]+\])?~=[0-9.]+"?,?')


def test_the_top_level_has_exactly_the_expected_files():
    tops = {line.split("/")[0] for line in tracked_files()}
    assert {top for top in tops if not top.startswith(".")} == TOP_LEVEL


def locked(name: str) -> dict[str, str]:
    """Return the versions that a lock pins, by package."""
    lines = (ROOT / f"{name}.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith((" ", "#"))]
    assert all("==" in line and line.endswith("\\") for line in pinned)
    assert not any("http" in line for line in lines)
    return dict(line.split(" ;")[0].rstrip(" \\").split("==") for line in pinned)


def wanted(name: str) -> dict[str, str]:
    """Return the packages that the source of a lock asks for, with the reason in its comment."""
    lines = [line.strip() for line in (ROOT / SOURCES[name]).read_text().splitlines()]
    reasons = {}
    for line in lines:
        requirement, _, reason = line.partition("#")
        if found := REQUIREMENT.fullmatch(requirement.strip()):
            reasons[found[1].replace("_", "-")] = reason
    return reasons


@pytest.mark.parametrize("name", SOURCES)
def test_every_requirement_has_a_reason_and_is_locked_by_hash(name: str):
    assert {*wanted(name)} <= {*locked(name)}
    assert all(wanted(name).values())


def test_the_requirements_that_need_a_reason_are_all_that_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    assert len(wanted("requirements-production")) == sum(
        map(len, [project["dependencies"], *extras])
    )
    lines = (ROOT / "requirements.in").read_text().splitlines()
    assert len(wanted("requirements")) == sum("~=" in line for line in lines)
    assert all("~=" in line or line.startswith("#") for line in lines if line)


def test_production_installs_what_the_tests_run_with_and_none_of_the_test_packages():
    assert locked("requirements-production").items() <= locked("requirements").items()
    assert not {*wanted("requirements")} & {*locked("requirements-production")}


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


@pytest.mark.parametrize(
    ("label", "pytest_label"),
    [
        ("tests", "tests"),
        ("tests.test_routing", "tests/test_routing.py"),
        ("tests.api.test_edges", "tests/api/test_edges.py"),
        (
            "tests.test_routing.test_routes_can_be_replaced",
            "tests/test_routing.py::test_routes_can_be_replaced",
        ),
        (
            "tests.backends.test_fake.TestFakeBackend.test_capabilities_are_complete",
            "tests/backends/test_fake.py::TestFakeBackend::test_capabilities_are_complete",
        ),
        ("tests/test_routing.py", "tests/test_routing.py"),
        (
            "tests/test_routing.py::test_routes_can_be_replaced",
            "tests/test_routing.py::test_routes_can_be_replaced",
        ),
        ("nothing.like.it", "nothing.like.it"),
    ],
)
def test_dotted_labels_select_tests(monkeypatch, label: str, pytest_label: str):
    monkeypatch.chdir(ROOT)
    assert as_pytest_label(label) == pytest_label


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


def test_the_shell_scripts_have_valid_syntax():
    for script in (ROOT / ".ci" / "run",):
        assert os.access(script, os.X_OK)
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_lanes_name_existing_paths():
    places = [place for lane in LANES.values() for place in lane]
    assert [place for place in places if not (ROOT / place).exists()] == []
