"""Whose a container is, and until when: what its labels say, and whether they may be believed.

A label can come from anywhere, also from an image. So ours bear a seal over the container's name,
which no image chooses, made with the project's SECRET_KEY.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from django.core import signing

OWNER, DEADLINE, SEAL = "vulcan.owner", "vulcan.deadline", "vulcan.seal"
NAME_PREFIX = "vulcan-"
SALT = "backends_app.gvisor.container"


@dataclass(frozen=True, slots=True)
class ContainerLabels:
    """What the labels of a container of ours say."""

    owner: str
    deadline: int  # seconds since 1970: nobody needs the container after that

    def is_orphaned(self) -> bool:
        """Is nobody left who will remove it?"""
        return self.deadline < time.time() or _is_dead(self.owner)


def labels(name: str, lifetime_s: float) -> dict[str, str]:
    """The labels of a container `name` of this process that is needed for `lives_s`."""
    owner, deadline = this_process(), str(int(time.time() + lifetime_s) + 1)
    seal = signing.Signer(salt=SALT).signature(_seal_text(name, owner, deadline))
    return {OWNER: owner, DEADLINE: deadline, SEAL: seal}


def verify_labels(name: str, found: Mapping[str, str]) -> ContainerLabels | None:
    """What the labels say, when the seal is ours; else None: it is somebody else's container."""
    owner, deadline = found.get(OWNER, ""), found.get(DEADLINE, "")
    try:
        signing.Signer(salt=SALT).unsign(
            f"{_seal_text(name, owner, deadline)}:{found.get(SEAL, '')}"
        )
    except signing.BadSignature:
        return None
    return ContainerLabels(owner, int(deadline))


def this_process() -> str:
    """A name for the process that no other has had since the machine was started."""
    return f"{_scope()}.{os.getpid()}.{_start_time('self')}"


def _seal_text(name: str, owner: str, deadline: str) -> str:
    return f"{name} {owner} {deadline}"


def _is_dead(owner: str) -> bool:
    """Only a process that would be seen from here can be missing."""
    scope, pid, started = owner.rsplit(".", 2)
    return scope == _scope() and _start_time(pid) != started


def _scope() -> str:
    """Where process ids mean the same: this boot of this machine, this namespace of processes."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def _start_time(pid: str) -> str:
    """When the process was started, in ticks since boot; empty when there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
