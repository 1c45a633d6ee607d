"""Setup steps of the gVisor backend on Debian: packages, a runtime entry, a running engine."""

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...exceptions import BackendUnavailable
from ..setup import SetupError, Step, packages, run_command
from .engine import Engine, EngineError

PACKAGES = ("docker.io", "runsc")
CONFIGURATION = Path("/etc/docker/daemon.json")
LOG = Path("/var/log/docker.log")
PID_FILE = Path("/var/run/docker.pid")
SYSTEMD = Path("/run/systemd/system")
# Without it runsc refuses a container that has no network.
ENTRY = {"path": "/usr/bin/runsc", "runtimeArgs": ["--network=none"]}
START_S = 60.0


def steps(engine: Engine, runtime: str, configuration: Path = CONFIGURATION) -> Sequence[Step]:
    """Return the steps in order, for the engine of this host, whatever its address."""
    return (
        packages(*PACKAGES),
        Step(
            what=f"runtime {runtime!r} in {configuration}",
            action=f"add to its runtimes: {json.dumps({runtime: ENTRY})}",
            is_done=lambda: merge_runtime(_text(configuration), runtime) is None,
            apply=lambda: _configure(configuration, runtime),
        ),
        Step(
            what=f"an engine at {engine.address} that has it",
            action="start the engine, or have it reload its configuration",
            is_done=lambda: _has_runtime(engine, runtime),
            apply=lambda: _start(engine, runtime),
        ),
    )


def merge_runtime(configuration: str, runtime: str) -> str | None:
    """Return the engine's configuration with the runtime added; None if it has one by that name."""
    try:
        found: Any = json.loads(configuration or "{}")
    except ValueError as error:
        raise SetupError(f"the engine's configuration is not valid JSON: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("runtimes", {}), dict):
        raise SetupError("the engine's configuration must be an object, and its runtimes too")
    runtimes = found.setdefault("runtimes", {})
    if runtime in runtimes:
        return None
    runtimes[runtime] = ENTRY
    return json.dumps(found, indent=2) + "\n"


def _configure(path: Path, runtime: str) -> None:
    text = merge_runtime(_text(path), runtime)
    if text is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as new:
            new.write(text)
        os.chmod(new.name, mode)
        os.replace(new.name, path)  # atomically
    except OSError as error:
        raise SetupError(f"{path} cannot be written: {error.strerror}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SetupError(f"{path} cannot be read: {error.strerror}") from error


def _has_runtime(engine: Engine, runtime: str) -> bool:
    try:
        return runtime in (engine.info().get("Runtimes") or {})
    except (BackendUnavailable, EngineError):
        return False


def _is_running(engine: Engine) -> bool:
    try:
        engine.info()
    except (BackendUnavailable, EngineError):
        return False
    return True


def _start(engine: Engine, runtime: str) -> None:
    if not _is_running(engine):
        _start_engine()
    elif SYSTEMD.is_dir():
        run_command(["systemctl", "reload", "docker"])  # containers keep running
    else:
        try:
            os.kill(int(PID_FILE.read_text()), signal.SIGHUP)
        except (OSError, ValueError) as error:
            raise SetupError("the engine cannot be signalled: restart it by hand") from error
    _wait(
        lambda: _has_runtime(engine, runtime),
        f"the engine did not load the runtime {runtime!r}; see its log",
    )


def _start_engine() -> None:
    if SYSTEMD.is_dir():
        run_command(["systemctl", "start", "docker"])
        return
    try:
        run_command(["service", "docker", "start"])
    except SetupError as error:  # as in most containers, which have no service manager
        try:
            with LOG.open("ab") as log:
                subprocess.Popen(
                    ["dockerd"],  # noqa: S607
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
        except OSError:
            raise error from None


def _wait(is_done: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + START_S
    while not is_done():
        if time.monotonic() > deadline:
            raise SetupError(otherwise)
        time.sleep(0.2)
