"""Define the artifacts of machines: the kernel, and the root and the snapshot of each runtime."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from . import machine
from .images import Artifact
from .machine import MachineSize
from .runtimes import ENVIRONMENT, RUNTIMES

FORMAT = 1  # of the artifacts; incremented when the code that builds them changes its output
SUITE = "bookworm"
KERNEL_PACKAGES = ("linux-image-cloud-amd64", "busybox-static")
MODULES = ("virtio_mmio", "virtio_blk", "virtio_console", "squashfs", "overlay")
# Read once, so that a server is not affected when its files are replaced.
_GUEST = Path(__file__).parent / "guest"
GUEST = {name: (_GUEST / name).read_bytes() for name in ("init", "agent.py")}
WARM_RUNS = 2
MAPPED = ("ram",)  # files of a snapshot that restored machines map

# Commands run in every root, with the root as `$1`.
CUSTOMIZE: Sequence[str] = (
    'chroot "$1" useradd --uid 1000 --home-dir /work --no-create-home --shell /bin/sh workload',
    'rm -rf "$1"/usr/share/doc "$1"/usr/share/man "$1"/usr/share/locale "$1"/var/lib/apt/lists',
    'rm -f "$1"/etc/python3*/sitecustomize.py "$1"/usr/lib/python3*/sitecustomize.py',
    'rm -f "$1"/etc/machine-id "$1"/etc/resolv.conf "$1"/etc/hostname "$1"/var/log/*.log',
    "printf '127.0.0.1 localhost workload\\n' > \"$1/etc/hosts\"",
)


def kernel() -> Artifact:
    """Return the kernel and its initramfs; `proof` is a firmware that writes one byte."""
    return Artifact(
        name="kernel",
        files=("kernel", "initramfs", "proof"),
        made_from={
            "format": FORMAT,
            "suite": SUITE,
            "packages": KERNEL_PACKAGES,
            "modules": MODULES,
            "guest": {name: hashlib.sha256(data).hexdigest() for name, data in GUEST.items()},
        },
    )


def root(runtime: str) -> Artifact:
    """Return the root file system, with the packages and the user of workloads."""
    row = RUNTIMES[runtime]
    return Artifact(
        name=runtime,
        files=("root",),
        made_from={
            "format": FORMAT,
            "suite": SUITE,
            "packages": row.packages,
            "wheel": asdict(row.wheel) if row.wheel else {},
            "customize": [*CUSTOMIZE, *row.customize],
        },
    )


def snapshot(runtime: str, qemu_version: str, accelerator: str, size: MachineSize) -> Artifact:
    """Return the snapshot of a machine that has run a program.

    It is valid only for this QEMU, accelerator, processor and size.
    """
    row = RUNTIMES[runtime]
    nowhere = {name: Path(name) for name in ("kernel", "initramfs", "root", "ram")}
    return Artifact(
        name=f"{runtime}-snapshot",
        files=("ram", "state"),
        made_from={
            "kernel": kernel().key,
            "root": root(runtime).key,
            "qemu": qemu_version,
            "machine": machine.snapshot_args(accelerator, size, nowhere, "agent", None),
            "size": asdict(size),
            "processor": _processor() if accelerator == "kvm" else {},
            "warm": [row.warm, row.compile, row.command, WARM_RUNS],
            "environment": {**ENVIRONMENT, **row.environment},
        },
    )


def _processor() -> Mapping[str, str]:
    """Return what `-cpu host` would expose to a guest."""
    with open("/proc/cpuinfo") as file:
        text = file.read()
    found = {}
    for name in ("vendor_id", "cpu family", "model", "stepping", "flags"):
        match = re.search(rf"^{name}\s*: (.*)$", text, re.MULTILINE)
        found[name] = match[1] if match else ""
    return found
