"""Container labels that record owner and deadline, with a signature.

Labels can also come from an image. So ours carry a signature, made with the project's SECRET_KEY,
over the container's name, which no image chooses.
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
    """Verified labels of a container that this project created."""

    owner: str
    deadline: int  # seconds since 1970, after which the container is not needed

    def is_orphaned(self) -> bool:
        """Return whether no process is left that will remove it."""
        return self.deadline < time.time() or _is_dead(self.owner)


def labels(name: str, lifetime_s: float) -> dict[str, str]:
    """Return the labels of this process's container `name` that is needed for `lifetime_s`."""
    owner, deadline = this_process(), str(int(time.time() + lifetime_s) + 1)
    seal = signing.Signer(salt=SALT).signature(_seal_text(name, owner, deadline))
    return {OWNER: owner, DEADLINE: deadline, SEAL: seal}


def verify_labels(name: str, found: Mapping[str, str]) -> ContainerLabels | None:
    """Return the labels if their signature is valid, else None: the container is not ours."""
    owner, deadline = found.get(OWNER, ""), found.get(DEADLINE, "")
    try:
        signing.Signer(salt=SALT).unsign(
            f"{_seal_text(name, owner, deadline)}:{found.get(SEAL, '')}"
        )
    except signing.BadSignature:
        return None
    return ContainerLabels(owner, int(deadline))


def this_process() -> str:
    """Return a name for this process that is unique since the host was booted."""
    return f"{_scope()}.{os.getpid()}.{_start_time('self')}"


def _seal_text(name: str, owner: str, deadline: str) -> str:
    return f"{name} {owner} {deadline}"


def _is_dead(owner: str) -> bool:
    """Return whether the owner has ended; False for one that is not visible from here."""
    scope, pid, started = owner.rsplit(".", 2)
    return scope == _scope() and _start_time(pid) != started


def _scope() -> str:
    """Return the scope of process ids: this boot of this host and this PID namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{os.stat('/proc/self/ns/pid').st_ino}"


def _start_time(pid: str) -> str:
    """Return a process's start time in ticks since boot; empty if there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
