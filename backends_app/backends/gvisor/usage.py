"""What a container has used, as the kernel counts it for the container's control group.

The engine's own figures come once in a second at best, which most workloads do not last.
"""

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
CONTROLLERS = ("cpuacct", "memory", "pids")  # of version 1
PLACES = (  # by who drives them: the engine, systemd for it, systemd for Podman, Podman
    "docker/{}",
    "system.slice/docker-{}.scope",
    "machine.slice/libpod-{}.scope",
    "libpod_parent/libpod-{}",
)


@dataclass(slots=True)
class Usage:
    """Figures of the sandbox, gVisor's kernel included; None where they are not to be had.

    `refused` counts the processes and threads that the kernel did not let it have, `starved` those
    that it ended because there was no memory.
    """

    cpu_time_ms: int | None = None
    memory_bytes: int | None = None
    refused: int = 0
    starved: int = 0


class Meter:
    """Reads the control groups of a container until they are gone.

    For an engine of another host, or control groups that are hidden, it reads nothing.
    """

    def __init__(self, container: str) -> None:
        self.usage = Usage()
        self._folders = _folders(container)

    def read(self) -> None:
        usage = self.usage
        if (cpu := self._number("cpuacct", "cpuacct.usage")) is not None:
            usage.cpu_time_ms = cpu // 1_000_000
        elif (cpu := self._counter("", "cpu.stat", "usage_usec")) is not None:
            usage.cpu_time_ms = cpu // 1000
        for controller, file in (
            ("memory", "memory.max_usage_in_bytes"),
            ("", "memory.peak"),
            ("", "memory.current"),
        ):
            if (memory := self._number(controller, file)) is not None:
                usage.memory_bytes = max(memory, usage.memory_bytes or 0)
                break
        for controller in ("pids", ""):
            if (refused := self._counter(controller, "pids.events", "max")) is not None:
                usage.refused = max(refused, usage.refused)
        for controller, file in (("memory", "memory.oom_control"), ("", "memory.events")):
            if (starved := self._counter(controller, file, "oom_kill")) is not None:
                usage.starved = max(starved, usage.starved)

    def _number(self, controller: str, file: str) -> int | None:
        text = self._text(controller, file)
        return int(text) if text.strip().isdigit() else None

    def _counter(self, controller: str, file: str, key: str) -> int | None:
        for line in self._text(controller, file).splitlines():
            name, _, value = line.partition(" ")
            if name == key and value.isdigit():
                return int(value)
        return None

    def _text(self, controller: str, file: str) -> str:
        try:
            return (self._folders[controller] / file).read_text()
        except (KeyError, OSError):
            return ""


def _folders(container: str) -> dict[str, Path]:
    """Where each controller counts; "" stands for version 2, which has one place for all."""
    found = {}
    for controller in (*CONTROLLERS, ""):
        for place in PLACES:
            folder = CGROUPS / controller / place.format(container)
            if folder.is_dir():
                found[controller] = folder
                break
    return found
