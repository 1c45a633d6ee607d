"""Locate QEMU, query its version and files, and verify that KVM works."""

import functools
import glob
import os
import re
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...exceptions import BackendUnavailable
from ...sandbox.client import Command, Launcher, LaunchError, ProcessLimits
from ...sandbox.streams import Capture
from . import machine

INSTALL = "install it with: manage.py setup_backend microvm"
KVM = "/dev/kvm"
ANSWER_S = 5.0
PROOF_S = 3.0  # a working processor needs a few hundredths of it
FAILURE_VALID_S = 600.0  # how long a failure of KVM is cached
MB = 1024 * 1024

# The firmware that tests an accelerator: 64 kB that end at the reset vector, with a program that
# writes one byte to the port of isa-debugcon and halts.
FIRMWARE_BYTES, RESET_AT = 64 * 1024, 64 * 1024 - 16
PROOF_PROGRAM = bytes.fromhex(
    "b021"  # mov al, '!'
    "e6e9"  # out 0xe9, al
    "f4"  # hlt
    "ebfd"  # jmp to the hlt
)


def firmware() -> bytes:
    return bytes(RESET_AT) + PROOF_PROGRAM.ljust(FIRMWARE_BYTES - RESET_AT, b"\xf4")


class NotInstalled(BackendUnavailable):
    """QEMU is missing, or lacks the required machine type."""


@dataclass(frozen=True)
class Qemu:
    """A QEMU program of this host, by its real path."""

    path: str
    version: str
    data_folders: tuple[str, ...]  # search path of its firmware

    @property
    def readable_files(self) -> Sequence[str]:
        """Its firmware files, and the accelerator module that some builds load at start."""
        files = []
        for name in machine.FIRMWARE:
            paths = (f"{folder}/{name}" for folder in self.data_folders)
            files += list(filter(os.path.exists, paths))[:1]
        prefix = glob.escape(str(Path(self.path).parent.parent))
        return [*files, *glob.glob(f"{prefix}/lib/*/qemu/accel-tcg-x86_64.so")]

    def launcher(
        self, accelerator: str, readable_files: Sequence[Path], mapped_files: Sequence[Path] = ()
    ) -> Launcher:
        """Return a launcher of this program, without starting anything."""
        return Launcher(
            self.path,
            name=self.path.lstrip("/"),  # it locates its other files relative to its path
            readable_files=[*self.readable_files, *map(str, readable_files)],
            mapped_files=[str(path) for path in mapped_files],
            devices=[KVM] if accelerator == "kvm" else [],
        )


def find(program: str) -> Qemu:
    """Return this host's QEMU; raise `NotInstalled`, or `BackendUnavailable` if it is broken."""
    found = shutil.which(program)
    if found is None:
        raise NotInstalled(f"QEMU is not installed; {INSTALL}")
    path = os.path.realpath(found)
    status = os.stat(path)
    return _query(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=8)
def _query(path: str, mtime_ns: int, size: int) -> Qemu:
    """Return the program's own data; cached until its file changes."""
    version, machines = _run_query(path, "--version"), _run_query(path, "-machine", "help")
    if not re.search(r"^microvm\b", machines, re.MULTILINE):
        raise NotInstalled(f"this QEMU has no machine type `microvm`; {INSTALL}")
    found = re.search(r"version (\S+)(?: \((\S+)\))?", version)
    folders = tuple(map(os.path.normpath, _run_query(path, "-L", "help").splitlines()))
    return Qemu(path, (found[2] or found[1]) if found else "unknown", folders)


def _run_query(path: str, *arguments: str) -> str:
    try:
        completed = subprocess.run(  # noqa: S603 - the operator named the program
            [path, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ANSWER_S,
            check=True,
            env={},
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BackendUnavailable("QEMU is installed but does not start") from error
    return completed.stdout


_proofs: dict[tuple[object, ...], tuple[float, str]] = {}  # expiry, and the fault, if any
_proving = threading.Lock()


def _after_fork() -> None:
    """Replace the lock in a forked child; a thread that held it was not copied."""
    global _proving
    _proving = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Accelerators:
    """Choice of the accelerator: KVM if it runs code on this host, TCG only if that is allowed.

    `setting` is `kvm`, `tcg`, or `any`: KVM if it works, otherwise TCG.
    """

    setting: str

    def choose(self, qemu: Qemu, proof: Path) -> str:
        """Return `kvm` or `tcg`; raise `BackendUnavailable` if KVM is required and fails."""
        if self.setting == "tcg":
            return "tcg"
        fault = self._fault(qemu, proof)
        if not fault:
            return "kvm"
        if self.setting == "any":
            return "tcg"
        raise BackendUnavailable(
            f"{fault}; the option 'accelerator' may allow TCG, which is not a security boundary"
        )

    def _fault(self, qemu: Qemu, proof: Path) -> str:
        """Return why KVM does not work, or nothing.

        It has to run a program, because an existing device proves nothing.
        """
        try:
            device = os.stat(KVM)
        except OSError:
            return f"there is no {KVM}"
        if not stat.S_ISCHR(device.st_mode):
            return f"{KVM} is not a device"
        identity = (qemu, device.st_rdev, device.st_mode, device.st_uid, device.st_gid)
        with _proving:  # one thread tests while the others wait for its result
            until, fault = _proofs.get(identity, (0.0, ""))
            if time.monotonic() >= until:
                fault = _run_proof(qemu, proof)
                until = time.monotonic() + FAILURE_VALID_S if fault else float("inf")
                _proofs[identity] = (until, fault)
        return fault


def _run_proof(qemu: Qemu, proof: Path, accelerator: str = "kvm") -> str:
    """Start a processor whose first instruction writes a byte; return why it failed, or nothing."""
    command = Command(
        arguments=[
            *machine.base_args(),
            *machine.accelerator_args(accelerator),
            *("-sandbox", machine.SANDBOX_OPTIONS, "-m", "16M", "-bios", str(proof)),
            *("-chardev", "stdio,id=proof,signal=off"),
            *("-device", "isa-debugcon,iobase=0xe9,chardev=proof"),
        ],
        environment={},
        memory_bytes=1024 * MB,
        start_s=PROOF_S,
    )
    limits = ProcessLimits(timeout_s=0.01, memory_bytes=256 * MB, threads=80, output_bytes=4096)
    launcher = qemu.launcher(accelerator, [proof])
    try:
        launcher.process(command, limits).run(b"", Capture(1), Capture(1), hold_stdin=True)
    except LaunchError as error:
        reason = str(error).replace(str(proof), proof.name)[:200]
        return f"KVM does not run anything here: {reason}"
    finally:
        launcher.close()
    return ""
