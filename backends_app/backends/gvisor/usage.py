"""Read a container's resource usage from its control group.

The engine's own figures come once a second at best, and most workloads are shorter.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_PATHS = (  # by who drives them: the engine, systemd for it, systemd for Podman, Podman
    "docker/{}",
    "system.slice/docker-{}.scope",
    "machine.slice/libpod-{}.scope",
    "libpod_parent/libpod-{}",
)
# Sources of each figure, best first: the controller of version 1, or "" for version 2, which has
# one hierarchy; the file; the key before the number, if there is one.
CPU_NS = ("cpuacct", "cpuacct.usage", "")
CPU_US = ("", "cpu.stat", "usage_usec")
MEMORY = (
    ("memory", "memory.max_usage_in_bytes", ""),
    ("", "memory.peak", ""),
    ("", "memory.current", ""),
)
PIDS_DENIED = (("pids", "pids.events", "max"), ("", "pids.events", "max"))
OOM_KILLS = (("memory", "memory.oom_control", "oom_kill"), ("", "memory.events", "oom_kill"))
MAX_BYTES = 4096


@dataclass(slots=True)
class Usage:
    """Figures of the sandbox, gVisor's kernel included; None if not available.

    `pids_denied` counts the processes and threads that the kernel denied, `oom_kills` those that it
    killed for lack of memory.
    """

    cpu_time_ms: int | None = None
    memory_bytes: int | None = None
    pids_denied: int = 0
    oom_kills: int = 0


class Meter:
    """Reads the control groups of a started container until they are gone.

    It reads nothing for an engine on another host, or if the control groups are hidden.
    """

    def __init__(self, container: str) -> None:
        self.usage = Usage()
        places = [place.format(container) for place in CGROUP_PATHS]
        self._cpu_ns = _Figure(places, CPU_NS)
        self._cpu_us = _Figure(places, CPU_US)
        self._memory = _Figure(places, *MEMORY)
        self._refused = _Figure(places, *PIDS_DENIED)
        self._starved = _Figure(places, *OOM_KILLS)

    def read(self) -> None:
        usage = self.usage
        if (cpu := self._cpu_ns.read()) is not None:
            usage.cpu_time_ms = cpu // 1_000_000
        elif (cpu := self._cpu_us.read()) is not None:
            usage.cpu_time_ms = cpu // 1000
        if (memory := self._memory.read()) is not None:
            usage.memory_bytes = max(memory, usage.memory_bytes or 0)
        usage.pids_denied = max(usage.pids_denied, self._refused.read() or 0)
        usage.oom_kills = max(usage.oom_kills, self._starved.read() or 0)


class _Figure:
    """One number of a container, from the first of its `sources` that exists."""

    def __init__(self, places: Sequence[str], *sources: tuple[str, str, str]) -> None:
        self._path: str | None = None
        self._word = b""
        for controller, file, word in sources:
            for place in places:
                path = CGROUPS / controller / place / file
                if path.exists():
                    self._path, self._word = str(path), word.encode()
                    return

    def read(self) -> int | None:
        if self._path is None:
            return None
        try:
            # Without the layers of `open`, as this runs fifty times a second for each workload.
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                text = os.read(file, MAX_BYTES)
            finally:
                os.close(file)
        except OSError:
            return None
        for line in text.splitlines():
            word, _, number = line.rpartition(b" ")
            if word == self._word and number.isdigit():
                return int(number)
        return None
