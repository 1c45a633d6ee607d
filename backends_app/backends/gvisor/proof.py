"""Verify that an engine's runtime is gVisor, by a program that queries the container's kernel."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...exceptions import BackendUnavailable
from ...sandbox.streams import Capture
from ...utils.text import short_repr
from . import smoke
from .container import Container, ContainerLimits, ContainerPlan
from .engine import Engine, EngineError, is_podman

TIMEOUT_S = 8.0
MEM_MB = 64
OUTPUT_BYTES = 8192


class RuntimeVerifier:
    """Verifies the runtime again whenever the engine or its runtime has changed.

    `plan` is the plan of the program's container, except for the image. `start` takes a plan and a
    lifetime in seconds, `remove` ends a container; neither leaves one behind.
    """

    def __init__(
        self,
        engine: Engine,
        plan: ContainerPlan,
        start: Callable[[ContainerPlan, float], Container],
        remove: Callable[[Container], None],
    ) -> None:
        self._engine = engine
        self._plan = replace(plan, cpus=1, mem_mb=MEM_MB, command=smoke.COMMAND)
        self._start = start
        self._remove = remove
        self._verified_identity: tuple[object, ...] | None = None

    def require_verified(self) -> Mapping[str, Any]:
        """Raise unless the engine and the runtime are verified, and return the engine's `info`."""
        engine = self._engine.info()
        if problem := self.problem(engine):
            raise BackendUnavailable(problem)
        if self._identity(engine) != self._verified_identity:
            self.verify(engine)
        return engine

    def problem(self, engine: Mapping[str, Any]) -> str | None:
        """Return why an engine with this `info` cannot use our runtime, or None if it can."""
        name = self._plan.runtime
        if name not in (engine.get("Runtimes") or {}):
            return (
                f"Docker Engine has no runtime {short_repr(name)}; apt-get install runsc and add"
                " it to the engine's configuration, or run: manage.py setup_backend gvisor"
            )
        if is_podman(engine) and engine.get("DefaultRuntime") != name:
            return (
                f"Podman would run everything with {short_repr(engine.get('DefaultRuntime'))},"
                f" whatever a request names; start its service with --runtime {name}"
            )
        return None

    def verify(self, engine: Mapping[str, Any]) -> None:
        """Run the smoke program, and raise unless its kernel is gVisor's."""
        self._verified_identity = None
        runtime = short_repr(self._plan.runtime)
        plan = replace(self._plan, image=self._image(engine))
        stdout = Capture(OUTPUT_BYTES)
        try:
            container = self._start(plan, TIMEOUT_S)
        except EngineError as error:
            raise BackendUnavailable(
                f"Docker Engine could not start a container with runtime {runtime}"
            ) from error
        try:
            limits = ContainerLimits(timeout_s=TIMEOUT_S, output_bytes=OUTPUT_BYTES)
            exit = container.run(b"", stdout, Capture(OUTPUT_BYTES), limits)
        finally:
            self._remove(container)
        if exit.kill_reason is not None:
            raise BackendUnavailable(f"the smoke program ended with {exit.kill_reason}")
        if smoke.GVISOR_LOG_MARKER not in stdout.text():
            raise BackendUnavailable(
                f"the runtime {runtime} is not gVisor: its kernel log does not begin like gVisor's"
            )
        self._verified_identity = self._identity(engine)

    def _image(self, engine: Mapping[str, Any]) -> str:
        """Return the id of the smoke program's image, importing it if the engine lacks it."""
        machine = str(engine.get("Architecture", platform.machine()))
        if machine not in smoke.MACHINES:
            raise BackendUnavailable(f"no smoke program exists for {short_repr(machine)}")
        name = f"{smoke.REPOSITORY}:{smoke.TAG}"
        if self._engine.image(name) is None:
            self._engine.import_image(smoke.layer(), smoke.REPOSITORY, smoke.TAG)
        if image := self._engine.image(name):
            return image.id
        raise BackendUnavailable("Docker Engine lost an image that was just imported")

    def _identity(self, engine: Mapping[str, Any]) -> tuple[object, ...]:
        """Return what a verification holds for; without Podman's ID, which is never the same."""
        return (
            None if is_podman(engine) else engine.get("ID"),
            engine.get("ServerVersion"),
            engine.get("DefaultRuntime") if is_podman(engine) else None,
            repr((engine.get("Runtimes") or {}).get(self._plan.runtime)),
        )
