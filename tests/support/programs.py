"""Start real programs for tests: manage.py and servers, each with its own database."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.needs import need, without

ROOT = Path(__file__).parents[2]
# Arguments of pytest for files elsewhere, with this project's configuration.
ELSEWHERE = ("--rootdir", str(ROOT), "-c", str(ROOT / "pyproject.toml"), ".")
DATABASE = "test.sqlite3"
PATIENCE_S = 120  # an upper bound for a machine under load; not a measurement
POLL_INTERVAL_S = 0.02


def environment(folder: Path, **extra: str) -> dict[str, str]:
    """Return this process's environment with a database in `folder` and without any `.env`."""
    return {
        **os.environ,
        "DATABASE_URL": f"sqlite:///{folder}/{DATABASE}",
        "SECRET_KEY": "of a test",
        "MICROVM_ACCELERATOR": "kvm",
        "SILENCED_SYSTEM_CHECKS": "",
        "SOURCE_DAYS": "0",
        "EXECUTOR": "local",
        "METRICS_ACCESS": "token",
        "METRICS_TOKEN": "",
        "REQUIRED_BACKENDS": "",
        "TMPDIR": str(folder),  # slots and working folders
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "error",  # deprecation warnings are errors here, as in the tests
        "DJANGO_SETTINGS_MODULE": "vulcan_site.settings",
        **extra,
    }


def manage(
    *arguments: str, folder: Path, stdin: str = "", **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run manage.py to its end and return the completed process."""
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=environment(folder, **extra),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )


def wait_until(condition: Callable[[], Any], what: str = "") -> Any:
    """Return what `condition` returns as soon as that is true; fail after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(POLL_INTERVAL_S)
    return found


def tracked_files() -> list[str]:
    """Return the relative paths of the project's files under version control."""
    need("git")
    command = ["git", "-c", f"safe.directory={ROOT}", "ls-files"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        without("no git checkout: get the project with `git clone`")
    return listed.stdout.splitlines()


@contextmanager
def running(
    command: Sequence[str],
    ready: str,
    folder: Path,
    *,
    python: str = sys.executable,
    cwd: Path = ROOT,
    **extra: str,
) -> Iterator[tuple[str, str]]:
    """Start a server, wait for the line that matches `ready`, and end it with SIGTERM.

    Yield the match of the first group, and everything printed until then.
    """
    process = subprocess.Popen(
        [python, *command],
        cwd=cwd,
        env=environment(folder, **extra),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    printed: list[str] = []
    reader: threading.Thread | None = None
    try:
        found = None
        while found is None:
            line = process.stdout.readline()
            assert line, f"the server ended early:\n{''.join(printed)}"
            printed.append(line)
            found = re.search(ready, line)
        # It continues to print, and would block if nothing read that.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        reader.start()
        yield found.group(1), "".join(printed)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            if reader is not None:
                reader.join(PATIENCE_S)
            process.stdout.close()
