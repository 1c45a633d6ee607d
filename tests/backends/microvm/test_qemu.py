"""Which accelerator is used, and by what proof; how fast a processor counts."""

import os
import time
from pathlib import Path

import pytest

from backends_app.backends.microvm import clock, qemu
from backends_app.backends.microvm.qemu import Accelerators
from backends_app.exceptions import BackendUnavailable
from backends_app.sandbox.client import LaunchError
from tests.support.needs import need


@pytest.fixture(scope="module")
def found() -> qemu.Qemu:
    need("qemu-system-x86_64")
    return qemu.find("qemu-system-x86_64")


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    path = tmp_path / "proof"
    path.write_bytes(qemu.firmware())
    return path


def test_proof_runs_on_a_working_processor(found, proof: Path):
    """TCG runs anywhere, so here it stands for an accelerator that works."""
    assert qemu._run_proof(found, proof, "tcg") == ""


def test_silent_processor_is_rejected(found, proof: Path, monkeypatch):
    monkeypatch.setattr(qemu, "PROOF_S", 0.5)
    proof.write_bytes(qemu.firmware().replace(b"\xe6\xe9", b"\x90\x90"))  # the same, mute
    assert "KVM does not run anything here" in qemu._run_proof(found, proof, "tcg")


def test_kvm_is_used_only_where_it_runs_code(found, proof: Path):
    works = qemu._run_proof(found, proof, "kvm") == "" if os.path.exists(qemu.KVM) else False
    assert Accelerators("tcg").choose(found, proof) == "tcg"
    assert Accelerators("any").choose(found, proof) == ("kvm" if works else "tcg")
    if works:
        assert Accelerators("kvm").choose(found, proof) == "kvm"
    else:
        with pytest.raises(BackendUnavailable, match="'accelerator' may allow TCG"):
            Accelerators("kvm").choose(found, proof)


def test_kvm_result_is_cached_for_a_while(found, proof: Path, monkeypatch):
    asked: list[str] = []

    def mute(*given) -> str:
        asked.append("once")
        return "KVM does not run anything here"

    monkeypatch.setattr(qemu, "_run_proof", mute)
    monkeypatch.setattr(qemu, "_proofs", {})
    monkeypatch.setattr(qemu, "KVM", "/dev/null")
    for _ in range(3):
        assert Accelerators("any").choose(found, proof) == "tcg"
    assert asked == ["once"]
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + qemu.FAILURE_VALID_S + 1)
    assert Accelerators("any").choose(found, proof) == "tcg"
    assert asked == ["once", "once"]


@pytest.mark.parametrize("device", ["/no/kvm", "/etc/passwd"])
def test_host_without_kvm_reports_why(found, proof: Path, monkeypatch, device: str):
    monkeypatch.setattr(qemu, "KVM", device)
    with pytest.raises(BackendUnavailable, match=r"there is no|is not a device"):
        Accelerators("kvm").choose(found, proof)


def test_fake_kvm_device_is_rejected(found, proof: Path, monkeypatch):
    """It is there, it can be opened: and it runs nothing."""
    monkeypatch.setattr(qemu, "KVM", "/dev/null")
    monkeypatch.setattr(qemu, "_proofs", {})
    with pytest.raises(BackendUnavailable, match="KVM does not run anything here"):
        Accelerators("kvm").choose(found, proof)


def test_tsc_frequency_is_measured():
    khz = clock.tsc_khz()
    assert 100_000 < khz < 10_000_000
    clock.tsc_khz.cache_clear()
    assert abs(clock.tsc_khz() - khz) < khz * 0.005
    assert clock.matches(str(khz), "tcg")
    assert not clock.matches(str(khz * 2), "tcg")
    assert not clock.matches("None", "tcg")
    assert clock.matches("None", "kvm")
    assert not clock.matches(str(khz), "kvm")


def test_command_that_cannot_run_reports_why(found, tmp_path: Path):
    with pytest.raises(LaunchError):
        _ = found.launcher("tcg", [tmp_path / "nothing"]).layers
