"""The program QEMU: where it is, which version, what it needs behind the walls, and KVM's proof."""

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

from ...confinement.client import Command, Launcher, LaunchError, ProcessLimits
from ...confinement.streams import Capture
from ...exceptions import BackendUnavailable
from . import machine

INSTALL = "install it with: manage.py setup_backend microvm"
KVM = "/dev/kvm"
ANSWER_S = 5.0
PROOF_S = 3.0  # a processor that runs gets there in a few hundredths of it
FAILURE_VALID_S = 600.0  # how long a host without KVM is not asked again
MB = 1024 * 1024

# The firmware that proves an accelerator: 64 kB that end where a processor begins, with a program
# that says a byte to the port of isa-debugcon and halts.
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
    """There is no QEMU, or one without the machine that is needed."""


@dataclass(frozen=True)
class Qemu:
    """A program of this host, by its real path."""

    path: str
    version: str
    data_folders: tuple[str, ...]  # where it looks for its firmware, in this order

    @property
    def readable_files(self) -> Sequence[str]:
        """Its firmware, and the accelerator that some builds load when they start."""
        files = []
        for name in machine.FIRMWARE:
            places = (f"{folder}/{name}" for folder in self.data_folders)
            files += list(filter(os.path.exists, places))[:1]
        prefix = glob.escape(str(Path(self.path).parent.parent))
        return [*files, *glob.glob(f"{prefix}/lib/*/qemu/accel-tcg-x86_64.so")]

    def launcher(
        self, accelerator: str, readable_files: Sequence[Path], mapped_files: Sequence[Path] = ()
    ) -> Launcher:
        """Nothing is started by this, only by what it is asked for."""
        return Launcher(
            self.path,
            name=self.path.lstrip("/"),  # where it looks for the rest from
            readable_files=[*self.readable_files, *map(str, readable_files)],
            mapped_files=[str(path) for path in mapped_files],
            devices=[KVM] if accelerator == "kvm" else [],
        )


def find(program: str) -> Qemu:
    """The QEMU of this host; raises `NotInstalled`, or `BackendUnavailable` when it is broken."""
    found = shutil.which(program)
    if found is None:
        raise NotInstalled(f"QEMU is not installed; {INSTALL}")
    path = os.path.realpath(found)
    touched = os.stat(path)
    return _query(path, touched.st_mtime_ns, touched.st_size)


@functools.lru_cache(maxsize=8)
def _query(path: str, mtime_ns: int, size: int) -> Qemu:
    """What the program says of itself, for as long as the file stays as it is."""
    version, machines = _run_query(path, "--version"), _run_query(path, "-machine", "help")
    if not re.search(r"^microvm\b", machines, re.MULTILINE):
        raise NotInstalled(f"this QEMU has no machine `microvm`; {INSTALL}")
    found = re.search(r"version (\S+)(?: \((\S+)\))?", version)
    folders = tuple(map(os.path.normpath, _run_query(path, "-L", "help").splitlines()))
    return Qemu(path, (found[2] or found[1]) if found else "unknown", folders)


def _run_query(path: str, *arguments: str) -> str:
    try:
        answer = subprocess.run(  # noqa: S603 - the operator named the program
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
        raise BackendUnavailable("QEMU is installed and does not start") from error
    return answer.stdout


_proofs: dict[tuple[object, ...], tuple[float, str]] = {}  # until when, and the fault, if any
_proving = threading.Lock()


def _after_fork() -> None:
    """The thread that held the lock, if any, was not copied."""
    global _proving
    _proving = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Accelerators:
    """Which accelerator to use: KVM where it has run something here; TCG where that may be.

    `wanted` is `kvm`, `tcg`, or `any`: KVM if it works, and TCG if not.
    """

    setting: str

    def choose(self, qemu: Qemu, proof: Path) -> str:
        """`kvm` or `tcg`; `BackendUnavailable` where KVM is wanted and does not run anything."""
        if self.setting == "tcg":
            return "tcg"
        fault = self._fault(qemu, proof)
        if not fault:
            return "kvm"
        if self.setting == "any":
            return "tcg"
        raise BackendUnavailable(
            f"{fault}; the option 'accelerator' may allow TCG, which is no security boundary"
        )

    def _fault(self, qemu: Qemu, proof: Path) -> str:
        """Why KVM does not work, or nothing. It has to run a program: to be there is no proof."""
        try:
            device = os.stat(KVM)
        except OSError:
            return f"there is no {KVM}"
        if not stat.S_ISCHR(device.st_mode):
            return f"{KVM} is no device"
        identity = (qemu, device.st_rdev, device.st_mode, device.st_uid, device.st_gid)
        with _proving:  # once, not once for each thread
            until, fault = _proofs.get(identity, (0.0, ""))
            if time.monotonic() >= until:
                fault = _run_proof(qemu, proof)
                until = time.monotonic() + FAILURE_VALID_S if fault else float("inf")
                _proofs[identity] = (until, fault)
        return fault


def _run_proof(qemu: Qemu, proof: Path, accelerator: str = "kvm") -> str:
    """Start a processor whose first instruction says a byte; why it did not, or nothing."""
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
        said = str(error).replace(str(proof), proof.name)[:200]
        return f"KVM does not run anything here: {said}"
    finally:
        launcher.close()
    return ""
