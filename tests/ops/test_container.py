"""The container file: its sources and command exist, and it contains no secrets."""

import json
import os
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from gunicorn.config import Config

from tests.ops.test_units import is_setting
from tests.support.programs import ROOT, tracked_files

TEXT = (ROOT / "ops" / "Containerfile").read_text()
# One instruction per line: without comments, and with continuations joined.
LINES = re.sub(r"\s*\\\n\s*", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
INSTRUCTIONS = [tuple(line.split(" ", 1)) for line in LINES if line.strip()]


def arguments(instruction: str) -> list[str]:
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def test_copied_sources_are_named_and_under_version_control():
    files = tracked_files()
    for rest in arguments("COPY"):
        if rest.startswith("--from=build"):
            continue
        for source in rest.split()[:-1]:
            assert source not in (".", "./")
            assert any(file == source or file.startswith(f"{source}/") for file in files)
    assert not arguments("ADD")


def test_variables_and_arguments_are_not_secrets():
    for rest in arguments("ENV") + arguments("ARG"):
        for pair in rest.split():
            assert not re.search("KEY|PASSWORD|SECRET|TOKEN|_URL", pair)


def test_every_variable_is_read_by_the_settings_or_python():
    for pair in arguments("ENV")[0].split():
        name = pair.split("=")[0]
        assert name == "PATH" or name.startswith("PYTHON") or is_setting(name)


def test_the_server_does_not_run_as_root():
    last = [name for name, _ in INSTRUCTIONS]
    [user] = arguments("USER")
    assert user == "vulcan"
    assert last.index("USER") > max(i for i, name in enumerate(last) if name in ("RUN", "COPY"))
    assert f"/usr/sbin/nologin {user}" in TEXT


def test_the_command_and_the_health_check_exist():
    program, *words = json.loads(arguments("CMD")[0])
    assert program == "gunicorn"
    assert Config().parser().parse_args(words).args == ["vulcan_site.wsgi"]
    assert "--bind=0.0.0.0:8000" in words
    assert arguments("EXPOSE") == ["8000"]
    assert arguments("HEALTHCHECK")[0].endswith('CMD ["python", "ops/healthcheck.py"]')


@pytest.mark.parametrize(
    ("status", "hosts", "host"),
    [
        (200, "", "localhost"),
        (200, "vulcan.example.org,other.example.org", "vulcan.example.org"),
        (200, ".example.org", "example.org"),
        (200, "*", "localhost"),
        (503, "", "localhost"),
    ],
)
def test_the_health_check_sends_the_headers_of_a_proxy(status: int, hosts: str, host: str):
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, self.headers["Host"], self.headers["X-Forwarded-Proto"]))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        environment = {"PORT": str(server.server_port), "ALLOWED_HOSTS": hosts}
        done = subprocess.run(
            [sys.executable, ROOT / "ops" / "healthcheck.py"],
            env={**os.environ, **environment},
            capture_output=True,
            timeout=60,
            check=False,
        )
    assert requests == [("/healthz", host, "https")]
    assert (done.returncode == 0) is (status == 200)
