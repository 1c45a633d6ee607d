"""The benchmark command as a process, on the real isolate backend."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.processes import children
from tests.support.programs import PATIENCE_S, ROOT, environment, manage


def test_the_isolate_backend_is_measured(migrated: Path):
    options = ["--rounds", "1", "--backend", "isolate"]
    done = manage("benchmark", *options, "--format", "json", "--keep", "real", folder=migrated)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    [isolate] = found["results"]["measured"]
    assert [one["runs"] for one in isolate["modes"].values()] == [1, 1, 4]
    assert [one["failures"] for one in isolate["modes"].values()] == [0, 0, 0]
    for figures in isolate["modes"].values():
        assert figures["p50_ms"] >= figures["own_p50_ms"] - 1 > 0  # own times are whole ms
    assert "deno_version" in found["versions"]["backends"]["isolate"]
    assert len(done.stderr.splitlines()) == 1
    listed = manage("benchmark", "--list", "--format", "json", folder=migrated)
    assert [one["name"] for one in json.loads(listed.stdout)] == ["real"]


def test_ctrl_c_kills_every_process_and_saves_nothing(migrated: Path):
    options = ["--rounds", "1000", "--backend", "isolate", "--keep", "half"]
    with subprocess.Popen(
        [sys.executable, "manage.py", "benchmark", *options],
        cwd=ROOT,
        env=environment(migrated),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert "Running" in process.stderr.readline()
            started = children(process.pid)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert (process.returncode, "Traceback" in stderr) == (130, False)
    assert "nothing was saved" in stderr
    assert started
    assert not [pid for pid in started if _is_alive(pid)]
    listed = manage("benchmark", "--list", "--format", "json", folder=migrated)
    assert json.loads(listed.stdout) == []


def _is_alive(pid: int) -> bool:
    """Return whether the process exists and is not a zombie."""
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_without_tables_the_command_suggests_migrate(tmp_path: Path):
    done = manage("benchmark", "--keep", "x", folder=tmp_path)
    assert done.returncode == 1
    assert "manage.py migrate" in done.stderr
    assert "Running" not in done.stderr
