"""The gVisor backend: OCI images, and runtimes mapped to images, in containers run by runsc.

Before an engine gets a workload, a program inside one of its containers verifies that the kernel is
gVisor's. The verification holds as long as the engine and its runtime do not change.
"""

import atexit
import functools
import logging
import posixpath
import re
import subprocess
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from django.core import checks

from ...exceptions import BackendUnavailable, InvalidOption, InvalidRequest
from ...sandbox.streams import Capture
from ...utils.text import short_repr
from ...workloads import STREAMS, ExitReason, Resources, WorkloadResult, WorkloadSpec
from .. import options, progress
from ..base import Backend, BackendCapabilities, Health
from ..setup import Step
from . import configuration, host, images, ownership
from .configuration import RuntimeImage
from .container import (
    WRITABLE,
    Container,
    ContainerLimits,
    ContainerNotStarted,
    ContainerPlan,
    shell_line,
)
from .engine import Engine, EngineError, EngineMissing, Image, SDKMissing, platform_of
from .pool import SHELL, Pool, waiting_plan
from .proof import RuntimeVerifier
from .results import result_of
from .users import NOBODY, resolve_user

logger = logging.getLogger(__name__)

INSTALL = "install them with: manage.py setup_backend gvisor"
MAX_OUTPUT_FACTOR = 16  # in units of the output cap: a program that prints more is killed
LONGEST_PULL_S = 600.0
UNSTARTABLE_S, MAX_UNSTARTABLE = 60.0, 256
MAX_USERS = 256
MIN_MB = 64  # for a container that never runs: engines reject less than a few MB
NOT_STARTED = WorkloadResult(
    exit_reason=ExitReason.EXITED,
    exit_code=126,
    error="the image cannot be started, or has no command",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class GVisorPlan:
    """A workload with its image and stdin; code comes first in stdin, for `shell_command`."""

    workload: WorkloadSpec
    reference: images.Reference
    stdin: bytes
    runtime_image: RuntimeImage | None = None
    shell_command: str | None = None


class GVisorBackend(Backend):
    """Backend that runs OCI images, and code in the images of OPTIONS, on Docker Engine with runsc.

    OPTIONS, with their defaults in parentheses:

    - `engine`: address of the Docker Engine, unix:// or tcp:// (`unix:///var/run/docker.sock`)
    - `runtime`: name of runsc in the engine's configuration (`runsc`)
    - `runtimes`: images for runtimes, `{"python": "python:3.11-slim"}`, or
      `{"python": {"image": …, "command": ["python3", "{file}"]}}`; such an image needs /bin/sh
    - `allow`: images that may run, as a list of `registry/path`, with `*` as a wildcard after the
      registry; None allows all that the engine has (None)
    - `pull`: `never`, or `missing` to fetch allowed images that the engine lacks (`never`)
    - `root_images`: images, as in `allow`, that may run as root in their container ([])
    - `pool`: number of warm sandboxes by image, `{"busybox:1.36": 2}`; such an image needs
      /bin/sh ({})
    - `network`: the engine's network for workloads (`none`)
    - `disk_mb`: size of each writable folder, which counts as the workload's memory (64)
    - `pids`: threads of the sandbox; a guest process takes about seven (512)
    - `max_concurrency`: workloads that may run at once (4)
    """

    def __init__(
        self,
        *,
        engine: str = "unix:///var/run/docker.sock",
        runtime: str = "runsc",
        runtimes: Mapping[str, object] | None = None,
        allow: Sequence[str] | None = None,
        pull: str = "never",
        root_images: Sequence[str] = (),
        pool: Mapping[str, int] | None = None,
        network: str = "none",
        disk_mb: int = 64,
        pids: int = 512,
        max_concurrency: int = 4,
    ) -> None:
        self._engine = Engine(options.text("engine", engine, "the address of the Docker Engine"))
        self._runtime_images = configuration.runtime_images(runtimes or {})
        self._allow = None if allow is None else configuration.patterns("allow", allow)
        if pull not in ("never", "missing"):
            raise InvalidOption("pull", pull, "must be 'never' or 'missing'")
        if pull == "missing" and not self._allow:
            raise InvalidOption("pull", pull, "needs 'allow': the images that may be fetched")
        self._pull = pull
        self._root_images = configuration.patterns("root_images", root_images)
        self._pool_sizes = configuration.pool_sizes(pool or {})
        self._base_plan = ContainerPlan(  # common to all workloads
            image="",
            runtime=options.text("runtime", runtime, "the name of a runtime of the engine"),
            network=options.text("network", network, "the name of a network of the engine"),
            user=NOBODY,
            cpus=1,
            mem_mb=1,
            disk_mb=options.integer("disk_mb", disk_mb),
            pids=options.integer("pids", pids, least=128),
        )
        self.capabilities = BackendCapabilities(
            name="gVisor (runsc)",
            supported_runtimes=("oci", *self._runtime_images),
            supported_isolations=("gvisor",),
            supported_source_formats=("image", "code") if self._runtime_images else ("image",),
            max_concurrency=options.integer("max_concurrency", max_concurrency),
        )
        self._pool = Pool(self._start, self._remove)
        self._running: dict[str, Container] = {}
        self._unremoved: set[str] = set()  # ids of containers that could not be removed yet
        self._unstartable: dict[str, float] = {}  # image id: time of the next attempt
        self._users: dict[str, str] = {}  # by image id
        self._verifier = RuntimeVerifier(self._engine, self._base_plan, self._start, self._remove)
        self._closed = False
        atexit.register(_close, weakref.ref(self))

    def probe(self) -> Health:
        attributes: dict[str, str] = {}
        try:
            engine = self._engine.info()
            attributes = self._attributes(engine)
            if missing := self._verifier.problem(engine):
                return Health.undetected(missing, attributes)
            self._verifier.verify(engine)
            self._sweep()
        except SDKMissing as missing:
            return Health.undetected(missing.reason)
        except EngineMissing as missing:
            return Health.undetected(f"{missing.reason}, so there is no runsc; {INSTALL}")
        except BackendUnavailable as fault:
            return Health.unhealthy(fault.reason, attributes)
        except EngineError:
            return Health.unhealthy("Docker Engine rejected the request", attributes)
        return Health.ok("a program ran on gVisor's kernel", attributes)

    def prepare(self, workload: WorkloadSpec) -> GVisorPlan:
        stdin = workload.input_json()
        if workload.image is not None:
            reference = images.parse(workload.image)
            if self._allow is not None and not images.is_allowed(reference, self._allow):
                raise InvalidRequest(
                    "image", f"{short_repr(str(reference))} is not among the allowed images."
                )
            workload.argv()
            return GVisorPlan(workload=workload, reference=reference, stdin=stdin)
        if workload.command:
            raise InvalidRequest(
                "command", "Only images take a command; code is run by its runtime. Leave it out."
            )
        runtime_image = self._runtime_images.get(workload.runtime or "")
        if runtime_image is None:
            raise InvalidRequest(
                "image", f"Runtime {short_repr(workload.runtime)} requires an image."
            )
        code = workload.code_utf8()
        return GVisorPlan(
            workload=workload,
            reference=runtime_image.image,
            stdin=code + stdin,
            runtime_image=runtime_image,
            shell_command=_code_command(runtime_image, len(code)),
        )

    def execute(self, plan: GVisorPlan) -> WorkloadResult:
        if self._closed:
            raise BackendUnavailable("it has been closed")
        resources = plan.workload.resources
        try:
            engine = self._verifier.require_verified()
            image = self._image(plan.reference)
            _require_platform(image, plan.reference, engine)
            container_plan = self._container_plan(image, plan.reference, resources, engine)
            if plan.runtime_image is not None:
                own = plan.runtime_image.environment_for(resources.mem_mb)
                variables = {name: own[name] for name in own if name not in image.variables}
                container_plan = replace(container_plan, environment=tuple(variables.items()))
            return self._run(plan, container_plan, image)
        except EngineError as error:
            raise BackendUnavailable("Docker Engine rejected the request") from error

    def kill(self, workload_id: str) -> None:
        if container := self._running.get(workload_id):
            with suppress(BackendUnavailable, EngineError):
                container.kill()

    def close(self) -> None:
        self._closed = True
        for workload_id in list(self._running):
            self.kill(workload_id)
        self._pool.close()
        self._engine.close()

    def warm_count(self) -> int:
        return len(self._pool.container_ids())

    def warm_container_ids(self) -> set[str]:
        """Return the ids of the containers that wait for a workload."""
        return self._pool.container_ids()

    def setup(self, runtimes: Sequence[str] = ()) -> Sequence[Step]:
        return host.steps(self._engine, self._base_plan.runtime)

    def check(self) -> Sequence[checks.CheckMessage]:
        found: list[checks.CheckMessage] = []
        if not self._engine.local:
            found.append(
                checks.Warning(
                    f"The connection to the Docker Engine at {self._engine.address} is plain TCP:"
                    " anyone who can reach that address is root there.",
                    hint="Use its unix socket, or forward it through an encrypted tunnel.",
                    id="backends_app.gvisor.W001",
                )
            )
        if self._base_plan.network != "none":
            found.append(
                checks.Warning(
                    "Workloads on gVisor are connected to the engine's network"
                    f" {short_repr(self._base_plan.network)}.",
                    hint="Remove the option 'network', or check what can be reached from there.",
                    id="backends_app.gvisor.W002",
                )
            )
        return found

    # The image and the container of a workload

    def _image(self, reference: images.Reference) -> Image:
        """Return the engine's data on an image, fetching it first if OPTIONS allow that."""
        try:
            if found := self._engine.image(str(reference)):
                return found
        except EngineError as error:
            if not error.is_client_error:
                raise
            raise InvalidRequest(
                "image", f"The engine does not accept the name {short_repr(str(reference))}."
            ) from error
        if self._pull == "missing" and images.is_allowed(reference, self._allow or ()):
            title = f"Fetching {reference}"
            try:
                with progress.task(title) as task:
                    layers: dict[str, tuple[int, int]] = {}
                    deadline = time.monotonic() + LONGEST_PULL_S
                    for event in self._engine.pull(
                        reference.repository, reference.digest or reference.tag or "latest"
                    ):
                        if time.monotonic() > deadline:
                            raise EngineError(408, f"not fetched in {LONGEST_PULL_S:g} s")
                        detail = event.get("progressDetail") or {}
                        if "total" in detail:
                            now = (int(detail.get("current", 0)), int(detail["total"]))
                            layers[str(event.get("id"))] = now
                            done, total = map(sum, zip(*layers.values(), strict=True))
                            task(done, total)
            except EngineError as error:
                raise InvalidRequest(
                    "image", f"{short_repr(str(reference))} could not be fetched from its registry."
                ) from error
            if found := self._engine.image(str(reference)):
                return found
        policy = (
            "this server fetches only the images on its list"
            if self._pull == "missing"
            else ("this server never fetches images (pull: never)")
        )
        raise InvalidRequest(
            "image",
            f"{short_repr(str(reference))} is not on this host, and {policy}. Its operator can"
            " pull or load it into the engine.",
        )

    def _container_plan(
        self,
        image: Image,
        reference: images.Reference,
        resources: Resources,
        engine: Mapping[str, Any],
    ) -> ContainerPlan:
        root = images.is_allowed(reference, self._root_images)
        return replace(
            self._base_plan,
            image=image.id,
            user=(image.user or "0:0") if root else self._user(image),
            # An engine rejects a limit above what its host has.
            cpus=min(resources.cpus, float(engine.get("NCPU") or resources.cpus)),
            mem_mb=resources.mem_mb,
            volumes=_volumes(image.volumes),
        )

    def _user(self, image: Image) -> str:
        """Return the image's user, resolved by the image's own files without running it."""
        if found := self._users.get(image.id):
            return found
        plan = replace(
            self._base_plan,
            image=image.id,
            command=("none",),
            mem_mb=MIN_MB,
            volumes=_volumes(image.volumes),
        )
        containers: list[Container] = []

        def read(path: str) -> str:
            if not containers:
                containers.append(Container(self._engine, plan, 0))
            return self._engine.read_text(containers[0].id, path)

        try:
            user = resolve_user(image.user, read)
        finally:
            for container in containers:
                self._remove(container)
        self._users[image.id] = user
        while len(self._users) > MAX_USERS:
            self._users.pop(next(iter(self._users)), None)
        return user

    # Execution

    def _run(self, plan: GVisorPlan, container_plan: ContainerPlan, image: Image) -> WorkloadResult:
        workload, stdin, line = plan.workload, plan.stdin, plan.shell_command
        if self._unstartable.get(image.id, 0) > time.monotonic():
            return NOT_STARTED
        argv = _argv(image, workload.command)
        size = self._pool_sizes.get(str(plan.reference), 0) if line or argv else 0
        lifetime_s = workload.resources.timeout_s
        container = None
        if size:
            container = self._pool.acquire(waiting_plan(container_plan), size, lifetime_s)
        if container is not None:
            stdin = (line or f"exec {shell_line(argv)}").encode() + b"\n" + stdin
        else:
            own_plan = _with_command(container_plan, workload.command, line)
            try:
                container = self._start(own_plan, lifetime_s)
            except EngineError as error:
                return self._not_started(error, image.id)
        cap = workload.output_bytes
        stdout, stderr = (Capture(cap, workload.output_callback(stream)) for stream in STREAMS)
        limits = ContainerLimits(
            timeout_s=workload.resources.timeout_s, output_bytes=MAX_OUTPUT_FACTOR * cap
        )
        self._running[workload.id] = container
        try:
            exit = container.run(stdin, stdout, stderr, limits)
        finally:
            del self._running[workload.id]
            self._remove(container)
        return result_of(exit, stdout, stderr, workload, plan.runtime_image)

    def _start(self, plan: ContainerPlan, lifetime_s: float) -> Container:
        container = Container(self._engine, plan, lifetime_s)
        try:
            container.start()
        except BaseException:
            self._remove(container)
            raise
        return container

    def _not_started(self, error: EngineError, image: str) -> WorkloadResult:
        """Return the result for a container that did not start.

        Verify the runtime first, which raises if the engine is at fault; otherwise the image or
        the workload is. The engine leaves a sandbox behind that it could not start, so the image is
        not tried again for a while.
        """
        self._verifier.verify(self._engine.info())
        logger.info("image %s cannot be started: %s", image, error.reason)
        if isinstance(error, ContainerNotStarted):
            self._unstartable[image] = time.monotonic() + UNSTARTABLE_S
        while len(self._unstartable) > MAX_UNSTARTABLE:
            self._unstartable.pop(next(iter(self._unstartable)), None)
        return NOT_STARTED

    def _remove(self, container: Container) -> None:
        try:
            container.remove()
        except (BackendUnavailable, EngineError) as error:
            logger.info("a container could not be removed yet: %s", error)
            self._unremoved.add(container.id)  # for the next sweep

    def _sweep(self) -> None:
        """Remove containers of killed servers, and those that could not be removed before."""
        for container in list(self._unremoved):
            self._engine.remove(container)
            self._unremoved.discard(container)
        for found in self._engine.containers(ownership.SEAL):
            names = [str(name).lstrip("/") for name in found.get("Names") or ()]
            labels = [ownership.verify_labels(name, found.get("Labels") or {}) for name in names]
            if any(one is not None and one.is_orphaned() for one in labels):
                self._engine.remove(str(found["Id"]))

    def _attributes(self, engine: Mapping[str, Any]) -> dict[str, str]:
        runtime = (engine.get("Runtimes") or {}).get(self._base_plan.runtime) or {}
        found = {
            "engine_version": str(engine.get("ServerVersion", "unknown")),
            "isolation": "gVisor: a kernel of its own in user space",
            "network": self._base_plan.network,
            "pull": self._pull,
        }
        if runtime:
            found["runsc_platform"] = _platform(runtime)
            if self._engine.local:
                found["runsc_version"] = _runsc_version(str(runtime.get("path", "")))
        return found


def _close(backend: "weakref.ref[GVisorBackend]") -> None:
    if found := backend():
        found.close()


def _with_command(plan: ContainerPlan, command: tuple[str, ...], line: str | None) -> ContainerPlan:
    if line is not None:
        return replace(plan, entrypoint=(SHELL,), command=("-c", f'n="\n"; {line}'))
    return replace(plan, command=command or None)


def _argv(image: Image, command: tuple[str, ...]) -> list[str]:
    """Return what the engine would run: the image's entry point, and the command or the image's."""
    return [*image.entrypoint, *(command or image.command)]


def _code_command(runtime_image: RuntimeImage, length: int) -> str:
    """Return a shell command that reads `length` bytes of stdin into a file and runs that."""
    file = f"{WRITABLE}/{runtime_image.file}"
    take = (
        f"dd bs={length} count=1 iflag=fullblock of={file} 2>/dev/null" if length else f": >{file}"
    )
    command = [part.replace("{file}", file) for part in runtime_image.command]
    return f"{take} && cd {WRITABLE} && exec {shell_line(command)}"


def _require_platform(image: Image, reference: images.Reference, engine: Mapping[str, Any]) -> None:
    """Raise `InvalidRequest` for an image of another processor or system, before it is started."""
    here = platform_of(engine)
    if not image.platform.endswith("/") and not here.endswith("/") and image.platform != here:
        raise InvalidRequest(
            "image",
            f"{short_repr(str(reference))} is for {image.platform}, but this server runs {here}.",
        )


def _volumes(configured: Sequence[str]) -> tuple[str, ...]:
    """Return the folders that an image declares as volumes, to be bounded as `WRITABLE` is.

    They are normalised as the engine compares them: for any other spelling it would create a volume
    on the host.
    """
    clean = {"/" + posixpath.normpath(f"/{folder}").lstrip("/") for folder in configured}
    return tuple(sorted(clean - {WRITABLE}))


def _platform(runtime: Mapping[str, Any]) -> str:
    """Return how runsc intercepts system calls, according to the engine's configuration."""
    for argument in runtime.get("runtimeArgs") or ():
        name, _, value = str(argument).lstrip("-").partition("=")
        if name == "platform" and re.fullmatch(r"[a-z]{1,16}", value):
            return value
    return "runsc's default"


@functools.cache
def _runsc_version(path: str) -> str:
    """Return the version of the runtime's program, which the engine's operator chose."""
    try:
        completed = subprocess.run(  # noqa: S603
            [path, "--version"], env={}, capture_output=True, timeout=5, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.match(rb"runsc version (\S{1,60})", completed.stdout)
    return found[1].decode(errors="replace") if found else "unknown"
