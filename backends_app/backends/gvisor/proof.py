"""The proof that an engine's runtime is gVisor: a program has asked the kernel in a container."""

import platform
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ...confinement.streams import Capture
from ...exceptions import BackendUnavailable, short_repr
from . import smoke
from .container import Container, ContainerLimits, Plan
from .engine import Engine, EngineError, is_podman

TIMEOUT_S = 8.0
MEM_MB = 64
OUTPUT_BYTES = 8192


class RuntimeVerifier:
    """Holds for as long as the engine and its runtime stay what they are.

    `plan` is what the program's container is made of, but for the image. `start` makes a container
    of a plan that lives so many seconds, and `remove` ends it; neither leaves one behind.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        start: Callable[[Plan, float], Container],
        remove: Callable[[Container], None],
    ) -> None:
        self._engine = engine
        self._plan = replace(plan, cpus=1, mem_mb=MEM_MB, command=smoke.COMMAND)
        self._start = start
        self._remove = remove
        self._verified_identity: tuple[object, ...] | None = None

    def require_verified(self) -> Mapping[str, Any]:
        """Nothing is run on an engine or a runtime that is not the one that was proven.

        Gives the engine's `info`.
        """
        engine = self._engine.info()
        if missing := self.problem(engine):
            raise BackendUnavailable(missing)
        if self._identity(engine) != self._verified_identity:
            self.verify(engine)
        return engine

    def problem(self, engine: Mapping[str, Any]) -> str | None:
        """Why the engine, as its `info` says, cannot run anything with our runtime."""
        name = self._plan.runtime
        if name not in (engine.get("Runtimes") or {}):
            return (
                f"Docker Engine has no runtime {short_repr(name)}; apt-get install runsc and name"
                " it in the engine's configuration, or: manage.py setup_backend gvisor"
            )
        if is_podman(engine) and engine.get("DefaultRuntime") != name:
            return (
                f"Podman would run everything with {short_repr(engine.get('DefaultRuntime'))},"
                f" whatever it is asked for; start its service with --runtime {name}"
            )
        return None

    def verify(self, engine: Mapping[str, Any]) -> None:
        """Run the smoke program, and raise unless gVisor's kernel answers it."""
        self._verified_identity = None
        runtime = short_repr(self._plan.runtime)
        plan = replace(self._plan, image=self._image(engine))
        said = Capture(OUTPUT_BYTES)
        try:
            container = self._start(plan, TIMEOUT_S)
        except EngineError as error:
            raise BackendUnavailable(
                f"Docker Engine does not start a container with runtime {runtime}"
            ) from error
        try:
            limits = ContainerLimits(timeout_s=TIMEOUT_S, output_bytes=OUTPUT_BYTES)
            exit = container.run(b"", said, Capture(OUTPUT_BYTES), limits)
        finally:
            self._remove(container)
        if exit.kill_reason is not None:
            raise BackendUnavailable(f"the smoke program ended with {exit.kill_reason}")
        if smoke.SAID_BY_GVISOR not in said.text():
            raise BackendUnavailable(
                f"what runs as runtime {runtime} is not gVisor: its kernel does not say so"
            )
        self._verified_identity = self._identity(engine)

    def _image(self, engine: Mapping[str, Any]) -> str:
        """The id of the smoke program's image, which the engine is given where it lacks it."""
        machine = str(engine.get("Architecture", platform.machine()))
        if machine not in smoke.MACHINES:
            raise BackendUnavailable(f"there is no smoke program for {short_repr(machine)}")
        name = f"{smoke.REPOSITORY}:{smoke.TAG}"
        if self._engine.image(name) is None:
            self._engine.import_image(smoke.layer(), smoke.REPOSITORY, smoke.TAG)
        if image := self._engine.image(name):
            return image.id
        raise BackendUnavailable("Docker Engine has lost an image that it was just given")

    def _identity(self, engine: Mapping[str, Any]) -> tuple[object, ...]:
        """What a proof holds for. Podman answers with another ID each time it is asked."""
        return (
            None if is_podman(engine) else engine.get("ID"),
            engine.get("ServerVersion"),
            engine.get("DefaultRuntime") if is_podman(engine) else None,
            repr((engine.get("Runtimes") or {}).get(self._plan.runtime)),
        )
