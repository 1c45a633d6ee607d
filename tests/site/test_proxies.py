"""The warning about a missing proxy, in `check --deploy` and in gunicorn's log."""

import json
import sys
from pathlib import Path

import pytest

from tests.faults.site import Site
from tests.support.programs import manage

# As in the production section of docs/operations.md.
PRODUCTION = {
    "SECRET_KEY": "0123456789" * 3 + "abcdefghijklmnopqrstuvwxyz",
    "ALLOWED_HOSTS": "vulcan.example.org",
    "CSRF_TRUSTED_ORIGINS": "https://vulcan.example.org",
    "HTTPS": "1",
    "DEBUG": "0",
}
ID = "vulcan_site.W001"


def check_deploy(folder: Path, **env: str) -> tuple[int, str]:
    command = ("check", "--deploy", "--fail-level", "WARNING")
    done = manage(*command, folder=folder, **{**PRODUCTION, **env})
    return done.returncode, done.stdout + done.stderr


def test_production_settings_pass_the_check(tmp_path: Path):
    static = str(tmp_path / "static")
    assert check_deploy(tmp_path, STATIC_ROOT=static) == (
        0,
        "System check identified no issues (0 silenced).\n",
    )


def test_check_deploy_warns_about_a_missing_proxy(tmp_path: Path):
    code, printed = check_deploy(tmp_path, PROXIES="0")
    assert (code, printed.count("vulcan_site.W001)")) == (1, 1)
    assert "ops/nginx/vulcan.conf" in printed
    code, printed = check_deploy(tmp_path, PROXIES="0", SILENCED_SYSTEM_CHECKS=ID)
    assert (code, printed) == (0, "System check identified no issues (1 silenced).\n")


@pytest.mark.parametrize(
    ("env", "warnings"),
    [
        ({}, 1),
        ({"PROXIES": "0", "HTTPS": "1"}, 1),
        ({"HTTPS": "1"}, 0),
        ({"PROXIES": "1"}, 0),
        ({"SILENCED_SYSTEM_CHECKS": f"backends_app.W001,{ID}"}, 0),
    ],
)
def test_gunicorn_logs_the_warning_once_at_the_start(
    tmp_path: Path, env: dict[str, str], warnings: int
):
    site = Site(tmp_path, **env)
    gunicorn = [sys.executable, "-m", "gunicorn", "--bind=127.0.0.1:0", "--workers=2"]
    try:
        server = site.program([*gunicorn, "--no-control-socket", "vulcan_site.wsgi"], "web")
        server.wait_for_output("(?s)Booting worker.*Booting worker")
        assert server.terminate() == 0
    finally:
        site.close()
    # A worker that is ended while it starts may print a line of Python's own.
    lines = server.printed.splitlines()
    events = [json.loads(line) for line in lines if line.startswith("{")]
    found = [one for one in events if ID in one["event"]]
    assert len(found) == warnings
    for one in found:
        assert (one["level"], one["logger"]) == ("warning", "gunicorn.error")
        assert f"SILENCED_SYSTEM_CHECKS={ID}" in one["event"]
