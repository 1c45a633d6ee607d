"""Setup of the host: merged configuration, unchanged parts, and messages."""

import json
import os
import stat
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from backends_app.backends.fake import FakeBackend
from backends_app.backends.gvisor import host
from backends_app.backends.gvisor.engine import Engine
from backends_app.backends.setup import SetupError, Step
from backends_app.management.commands import setup_backend

EXISTING = {
    "log-driver": "journald",
    "runtimes": {"nvidia": {"path": "/usr/bin/nvidia", "runtimeArgs": ["a"]}},
}


def configuring(path: Path) -> Step:
    steps = host.steps(Engine("unix:///nowhere.sock"), "runsc", path)
    return next(step for step in steps if str(path) in step.what)


def test_existing_configuration_is_preserved(tmp_path: Path):
    path = tmp_path / "daemon.json"
    path.write_text(json.dumps(EXISTING))
    path.chmod(0o640)
    step = configuring(path)
    assert not step.is_done()
    step.apply()
    found = json.loads(path.read_text())
    assert found["runtimes"].pop("runsc")["path"] == "/usr/bin/runsc"
    assert found == EXISTING
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert step.is_done()
    assert os.listdir(tmp_path) == ["daemon.json"]


def test_existing_runtime_entry_is_unchanged(tmp_path: Path):
    path = tmp_path / "daemon.json"
    path.write_text('{"runtimes":  {"runsc": {"path": "/opt/runsc"}}}')
    step = configuring(path)
    assert step.is_done()
    step.apply()
    assert path.read_text() == '{"runtimes":  {"runsc": {"path": "/opt/runsc"}}}'


def test_missing_configuration_is_created(tmp_path: Path):
    path = tmp_path / "etc" / "daemon.json"
    configuring(path).apply()
    assert [*json.loads(path.read_text())] == ["runtimes"]


@pytest.mark.parametrize("text", ["{", "[]", '{"runtimes": []}'])
def test_unreadable_configuration_is_not_replaced(tmp_path: Path, text: str):
    path = tmp_path / "daemon.json"
    path.write_text(text)
    with pytest.raises(SetupError, match="configuration"):
        configuring(path).is_done()
    assert path.read_text() == text


class Prepared(FakeBackend):
    """Backend whose setup needs one file."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def setup(self, runtimes=()):
        return (
            Step(what="a file", action="touch", is_done=self.path.exists, apply=self.path.touch),
        )


@pytest.fixture
def prepared(monkeypatch, registry, tmp_path: Path) -> Path:
    registry.register("prepared", Prepared(tmp_path / "file"))
    monkeypatch.setattr(setup_backend, "registry", registry)
    return tmp_path / "file"


def test_dry_run_changes_nothing(prepared: Path, capsys):
    call_command("setup_backend", "prepared", "--dry-run")
    assert "would: touch" in capsys.readouterr().out
    assert not prepared.exists()


def test_setup_is_applied_once_and_verified(prepared: Path, capsys):
    call_command("setup_backend", "prepared")
    assert "now: touch" in capsys.readouterr().out
    assert prepared.exists()
    call_command("setup_backend", "prepared")
    printed = capsys.readouterr().out
    assert "now:" not in printed
    assert "present" in printed
    assert "healthy  prepared" in printed


def test_unregistered_name_is_reported(prepared: Path):
    with pytest.raises(CommandError, match="Registered: prepared"):
        call_command("setup_backend", "nobody")
