"""The systemd units: valid for systemd, hardened, and consistent with this project."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from django.core.management import get_commands, load_command_class
from gunicorn.config import Config

from tests.support.needs import need
from tests.support.programs import ROOT

UNITS = ROOT / "ops" / "systemd"
SERVICES = sorted(UNITS.glob("*.service"))
RUN_WORKLOADS = ("vulcan-web", "vulcan-worker")
HOME = "/opt/vulcan"
SETTINGS = (ROOT / "vulcan_site" / "settings.py").read_text()


def directives(unit: Path) -> list[tuple[str, str]]:
    lines = unit.read_text().splitlines()
    return [tuple(line.split("=", 1)) for line in lines if re.match(r"[A-Za-z]+=", line)]


def values(unit: Path, name: str) -> list[str]:
    return [value for key, value in directives(unit) if key == name]


def is_setting(variable: str) -> bool:
    return bool(re.search(rf'env\.\w+\("{variable}"', SETTINGS))


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Create a root folder in which systemd-analyze finds an installed Vulcan."""
    shutil.copytree(UNITS, tmp_path / "etc/systemd/system")
    for program in (f"{HOME}/.venv/bin/python", f"{HOME}/.venv/bin/gunicorn", "/bin/kill"):
        file = tmp_path / program.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#!/bin/sh\n")
        file.chmod(0o755)
    targets = tmp_path / "usr/lib/systemd/system"
    targets.mkdir(parents=True)
    for name in ("multi-user", "timers", "network-online", "basic", "sysinit", "shutdown"):
        (targets / f"{name}.target").write_text(f"[Unit]\nDescription={name}\n")
    return tmp_path


def verify(host: Path) -> "subprocess.CompletedProcess[str]":
    need("systemd-analyze")
    names = [unit.name for unit in UNITS.iterdir()]
    command = ["systemd-analyze", f"--root={host}", "--man=no", "verify", *names]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_systemd_accepts_the_units(host: Path):
    done = verify(host)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_reports_an_invalid_directive(host: Path):
    unit = host / "etc/systemd/system/vulcan-web.service"
    unit.write_text(unit.read_text().replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"))
    assert "NoNewPrivilege" in verify(host).stderr


@pytest.mark.parametrize(
    ("name", "max_exposure"), [("vulcan-web", 2.7), ("vulcan-worker", 2.7), ("vulcan-prune", 1.8)]
)
def test_the_exposure_level_is_low(name: str, max_exposure: float):
    need("systemd-analyze")
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", f"{UNITS}/{name}.service"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    [level] = re.findall(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert float(level) <= max_exposure


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_the_started_commands_exist(unit: Path):
    assert values(unit, "WorkingDirectory") == [HOME]
    for command in values(unit, "ExecStart") + values(unit, "ExecStartPre"):
        program, *words = command.split()
        if program == f"{HOME}/.venv/bin/python":
            script, name, *options = words
            assert script == "manage.py"
            parser = load_command_class(get_commands()[name], name).create_parser(script, name)
            parser.parse_args(options)  # exits on an unknown option
        else:
            assert program == f"{HOME}/.venv/bin/gunicorn"
            assert Config().parser().parse_args(words).args == ["vulcan_site.wsgi"]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_every_variable_is_read_by_the_settings(unit: Path):
    pairs = [pair for line in values(unit, "Environment") for pair in line.split()]
    assert pairs
    for pair in pairs:
        name, _, value = pair.partition("=")
        assert is_setting(name)
        assert not re.search("KEY|PASSWORD|TOKEN|SECRET|URL", name), (
            "secrets belong into the environment file"
        )
        if value.startswith("/"):
            folders = ("/run/vulcan", "/var/lib/vulcan", f"{HOME}/static")
            assert value.startswith(folders)


@pytest.mark.parametrize("name", RUN_WORKLOADS)
def test_the_units_allow_what_the_sandbox_needs(name: str):
    """Each of these would disable a sandbox layer, break a backend, or hide a file it reads."""
    unit = UNITS / f"{name}.service"
    keys = {key for key, _ in directives(unit)}
    forbidden = {"ProtectHostname", "MemoryDenyWriteExecute", "PrivateDevices", "ProcSubset"}
    assert not keys & forbidden
    [namespaces] = values(unit, "RestrictNamespaces")
    assert {*namespaces.split()} == {"user", "mnt", "uts", "ipc", "net"}
    calls = " ".join(values(unit, "SystemCallFilter")).split()
    landlock = {"landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"}
    assert {"@mount", "sethostname", "seccomp", *landlock} <= {*calls}


def test_server_and_workers_are_hardened_alike():
    [web, worker] = [(UNITS / f"{name}.service").read_text() for name in RUN_WORKLOADS]
    begin, end = "# Shared by the server", "[Install]"
    assert web[web.index(begin) : web.index(end)] == worker[worker.index(begin) : worker.index(end)]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.stem)
def test_no_unit_runs_as_root_or_can_become_root(unit: Path):
    assert values(unit, "User") == values(unit, "Group") == ["vulcan"]
    assert values(unit, "NoNewPrivileges") == ["yes"]
    assert values(unit, "CapabilityBoundingSet") == [""]


def test_the_stop_timeout_exceeds_the_grace_periods():
    """It covers the executor's grace period, the kills after it, and gunicorn's own timeout."""
    from backends_app.executors import get_executor
    from backends_app.executors.base import KILL_TIMEOUT_S

    file = ROOT / "gunicorn.conf.py"
    config = {"__file__": str(file)}
    exec(file.read_text(), config)
    for name in RUN_WORKLOADS:
        [stop] = values(UNITS / f"{name}.service", "TimeoutStopSec")
        assert int(stop) > get_executor()._grace_s + 2 * KILL_TIMEOUT_S
        assert int(stop) > config["graceful_timeout"]
