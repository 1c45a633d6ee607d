"""One container from creation to removal: its limits, its streams and its end."""

import logging
import secrets
import selectors
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...exceptions import BackendUnavailable
from ...sandbox.streams import Sink
from ...workloads import ExitReason
from . import ownership
from .engine import Attachment, Engine, EngineError
from .usage import Meter, Usage

logger = logging.getLogger(__name__)

MB = 1024 * 1024
MARGIN_S = 60.0  # added to a container's lifetime before others may remove it
GRACE_S = 10.0  # for the engine to kill a container
METER_S = 0.02
KILLED = 137  # exit code with which an engine reports SIGKILL
WRITABLE = "/tmp"  # noqa: S108 - inside the container


class ContainerNotStarted(EngineError):
    """The engine has created a container but cannot start it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerPlan:
    """The image, command and limits of a container.

    `image` is an id, not a name, so that the image that was checked is the one that runs.
    `entrypoint` and `command` are None to use the image's own. `volumes` are folders that the image
    declares as writable; `environment` is added to the image's.
    """

    image: str
    runtime: str
    network: str
    user: str
    cpus: float
    mem_mb: int
    disk_mb: int
    pids: int
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    volumes: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def host(self) -> Mapping[str, Any]:
        """Return the limits in the engine's format."""
        space = f"size={self.disk_mb}m,mode=1777,exec"
        return {
            "runtime": self.runtime,
            "network_mode": self.network,
            "ipc_mode": "private",
            "shm_size": self.disk_mb * MB,
            "read_only": True,
            # The engine's init: runsc cannot clean up a sandbox whose first program does not start.
            "init": True,
            "tmpfs": dict.fromkeys((WRITABLE, *self.volumes), space),
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges"],
            "mem_limit": self.mem_mb * MB,
            "memswap_limit": self.mem_mb * MB,  # memory and swap together: no swap
            "nano_cpus": round(self.cpus * 1e9),
            "pids_limit": self.pids,
            "oom_score_adj": 500,
            "dns": ["127.0.0.1"],  # otherwise it would get the host's
            "dns_search": ["."],
            "log_config": {"Type": "none"},  # the attached streams are the only copy
        }

    def config(self) -> Mapping[str, Any]:
        """Return the rest of the container's configuration."""
        config: dict[str, Any] = {
            "user": self.user,
            "hostname": "workload",
            "stdin_open": True,
            "environment": {"HOME": WRITABLE, **dict(self.environment)},
            "healthcheck": {"test": ["NONE"]},  # the image's would be a second program
        }
        if self.entrypoint is not None:
            config["entrypoint"] = list(self.entrypoint)
        if self.command is not None:
            config["command"] = list(self.command)
        return config


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerLimits:
    """Limits on a run; `output_bytes` counts stdout and stderr together."""

    timeout_s: float
    output_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ContainerExit:
    """Record the end of a container; `kill_reason` is set if a limit or `kill` ended it."""

    kill_reason: ExitReason | None
    code: int
    duration_ms: int
    usage: Usage


class Container:
    """One container. `kill` may be called from any thread; `remove` must be called at the end."""

    def __init__(self, engine: Engine, plan: ContainerPlan, lifetime_s: float) -> None:
        """Create it with its streams attached; `start` starts it."""
        self.name = f"{ownership.NAME_PREFIX}{secrets.token_hex(16)}"
        self.created_at = time.monotonic()
        self._engine = engine
        self._kill_reason: ExitReason | None = None
        self._lock = threading.Lock()
        labels = ownership.labels(self.name, lifetime_s + MARGIN_S)
        self.id = engine.create(self.name, plan.image, plan.host(), labels=labels, **plan.config())
        try:
            self._streams: Attachment = engine.attach(self.id)
        except BaseException:
            engine.remove(self.id)
            raise

    def start(self) -> None:
        try:
            self._engine.start(self.id)
        except EngineError as error:
            raise ContainerNotStarted(error.status, error.reason) from error

    @property
    def is_idle(self) -> bool:
        """Return whether it is still running and has printed nothing."""
        with selectors.PollSelector() as events:
            events.register(self._streams, selectors.EVENT_READ)
            return not events.select(0)

    def kill(self) -> None:
        """Kill it on request, with the reason `killed`."""
        self._request_kill(ExitReason.KILLED)

    def run(
        self, stdin: bytes, stdout: Sink, stderr: Sink, limits: ContainerLimits
    ) -> ContainerExit:
        """Feed and read a started container until it exits or is killed by a limit."""
        started = time.monotonic()
        meter = Meter(self.id)
        self._pump(memoryview(stdin), {1: stdout, 2: stderr}, limits, started, meter)
        duration_ms = round((time.monotonic() - started) * 1000)
        # It may close its streams and go on.
        while (code := self._engine.wait(self.id)) is None:
            meter.read()
            self._hold_to(limits, started)
        kill_reason = None
        # Podman does not report who killed it. When the kernel kills gVisor's, `runsc` of 2022
        # reports a kill, and that of 2024 exits with 1.
        if code and (meter.usage.oom_kills or self._engine.ran_out_of_memory(self.id)):
            kill_reason = ExitReason.MEMORY_LIMIT
        elif code and meter.usage.pids_denied:  # gVisor's kernel exits when a thread is denied
            kill_reason = ExitReason.PROCESS_LIMIT
        elif code == KILLED:
            kill_reason = self._kill_reason
        return ContainerExit(
            kill_reason=kill_reason, code=code, duration_ms=duration_ms, usage=meter.usage
        )

    def remove(self) -> None:
        self._streams.close()
        self._engine.remove(self.id)

    def reset_after_fork(self) -> None:
        """Close the streams in a forked child; the container belongs to the parent."""
        self._streams.close()

    def _pump(
        self,
        unsent: memoryview,
        sinks: Mapping[int, Sink],
        limits: ContainerLimits,
        started: float,
        meter: Meter,
    ) -> None:
        """Feed and read it until its streams are closed."""
        received = 0

        def deliver(stream: int, data: bytes) -> None:
            nonlocal received
            received += len(data)
            if received > limits.output_bytes:
                self._request_kill(ExitReason.OUTPUT_LIMIT)
            elif stream in sinks:
                sinks[stream].write(data)

        with selectors.PollSelector() as events:
            events.register(self._streams, selectors.EVENT_READ | selectors.EVENT_WRITE)
            if not unsent:
                self._streams.close_stdin()
                events.modify(self._streams, selectors.EVENT_READ)
            measured = 0.0
            while True:
                for _, ready in events.select(METER_S):
                    if ready & selectors.EVENT_WRITE:
                        unsent = unsent[self._streams.write(unsent[:65536]) :]
                        if not unsent:
                            self._streams.close_stdin()
                            events.modify(self._streams, selectors.EVENT_READ)
                    if ready & selectors.EVENT_READ and not self._streams.read(deliver):
                        meter.read()
                        return
                now = time.monotonic()
                if now >= measured + METER_S:
                    measured = now
                    meter.read()
                self._hold_to(limits, started)

    def _request_kill(self, reason: ExitReason) -> None:
        """Kill once; keep the first reason.

        Runs in a thread because the engine blocks until its streams are read.
        """
        with self._lock:
            if self._kill_reason is not None:
                return
            self._kill_reason = reason
        threading.Thread(target=self._kill, name="vulcan-gvisor-kill", daemon=True).start()

    def _kill(self) -> None:
        try:
            self._engine.kill(self.id)
        except (BackendUnavailable, EngineError) as error:  # `run` raises after GRACE_S
            logger.warning("a container could not be killed: %s", error)

    def _hold_to(self, limits: ContainerLimits, started: float) -> None:
        """Enforce the time limit, and after it the engine's grace period for the kill."""
        late = time.monotonic() - started - limits.timeout_s
        if late > 0:
            self._request_kill(ExitReason.TIMEOUT)
        if late > GRACE_S:
            raise BackendUnavailable("Docker Engine did not kill a container in time")


def shell_line(arguments: Sequence[str]) -> str:
    """Return one line that a POSIX shell parses into these arguments, including their newlines."""
    return " ".join(f"'{_quoted(argument)}'" for argument in arguments)


def _quoted(argument: str) -> str:
    return argument.replace("'", "'\\''").replace("\n", "'\"$n\"'")
