"""The gVisor backend: OCI images, and runtimes that are mapped to images, in containers of runsc.

Before the engine is trusted with a workload, a program has asked the kernel inside one of its
containers who it is; that holds for as long as the engine and its runtime stay what they are.
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
from dataclasses import replace
from typing import Any

from django.core import checks

from ...confinement.streams import Capture
from ...exceptions import BackendUnavailable, InvalidOption, InvalidRequest, short_repr
from ...workloads import (
    STREAMS,
    ExitReason,
    Resources,
    WorkloadResult,
    WorkloadSpec,
)
from .. import options, progress
from ..base import Backend, BackendCapabilities, Health
from ..setup import Step
from . import configuration, host, images, ownership
from .configuration import RuntimeImage
from .container import WRITABLE, Container, ContainerLimits, ContainerNotStarted, Plan, shell_line
from .engine import Engine, EngineError, EngineMissing, Image, platform_of
from .pool import SHELL, Pool, waiting_plan
from .proof import RuntimeVerifier
from .results import result_of
from .users import NOBODY, resolve_user

logger = logging.getLogger(__name__)

INSTALL = "install them with: manage.py setup_backend gvisor"
MAX_OUTPUT_FACTOR = 16  # a program that prints more than this many caps is ended
LONGEST_PULL_S = 600.0
UNSTARTABLE_S, MAX_UNSTARTABLE = 60.0, 256
MAX_USERS = 256
MIN_MB = 64  # of a container that never runs: engines take none with less than a few
NOT_STARTED = WorkloadResult(
    exit_reason=ExitReason.EXITED,
    exit_code=126,
    error="the image cannot be started, or has no command",
)


class GVisorBackend(Backend):
    """Runs OCI images, and code in the images of OPTIONS, on the Docker Engine with runsc.

    OPTIONS:

    - `engine`: where the Docker Engine answers, unix:// or tcp:// (`unix:///var/run/docker.sock`)
    - `runtime`: the name of runsc in the engine's configuration (`runsc`)
    - `runtimes`: images for runtimes, `{"python": "python:3.11-slim"}`, or
      `{"python": {"image": …, "command": ["python3", "{file}"]}}`; such an image needs /bin/sh
    - `allow`: the images that may run, as a list of `registry/path`, `*` for anything behind the
      registry; None: all that the engine has (None)
    - `pull`: `never`, or `missing`: what is allowed and not there is fetched (`never`)
    - `root_images`: the images, as in `allow`, that may run as their container's root ([])
    - `pool`: sandboxes that wait ready, `{"busybox:1.36": 2}`; such an image needs /bin/sh ({})
    - `network`: the network of the engine that workloads are on (`none`)
    - `disk_mb`: the size of each writable folder, in the workload's memory (64)
    - `pids`: threads of the sandbox; a guest's process takes about seven (512)
    - `max_concurrency`: how many workloads may run at once (4)
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
        self._plan = Plan(  # what is the same for every workload
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
        self._unremoved: set[str] = set()  # containers that could not be removed yet
        self._unstartable: dict[str, float] = {}  # ids of images, and until when
        self._users: dict[str, str] = {}  # by ids of images
        self._verifier = RuntimeVerifier(self._engine, self._plan, self._start, self._remove)
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
        except EngineMissing as missing:
            return Health.undetected(f"{missing.reason} and so no runsc; {INSTALL}")
        except BackendUnavailable as fault:
            return Health.unhealthy(fault.reason, attributes)
        except EngineError:
            return Health.unhealthy("Docker Engine refuses what it is asked", attributes)
        return Health.ok("a program ran on gVisor's kernel", attributes)

    def validate(self, workload: WorkloadSpec) -> None:
        self._resolve_source(workload)

    def execute(self, workload: WorkloadSpec) -> WorkloadResult:
        if self._closed:
            raise BackendUnavailable("it has been closed")
        reference, code = self._resolve_source(workload)
        try:
            engine = self._verifier.require_verified()
            image = self._image(reference)
            _require_platform(image, reference, engine)
            plan = self._plan_for(image, reference, workload.resources, engine)
            if code is not None:
                own = code.environment_for(workload.resources.mem_mb)
                told = {name: own[name] for name in own if name not in image.variables}
                plan = replace(plan, environment=tuple(told.items()))
            return self._run(workload, plan, reference, code, image)
        except EngineError as error:
            raise BackendUnavailable("Docker Engine refuses what it is asked") from error

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
        """The ids of the containers that wait for a workload."""
        return self._pool.container_ids()

    def setup(self, runtimes: Sequence[str] = ()) -> Sequence[Step]:
        return host.steps(self._engine, self._plan.runtime)

    def check(self) -> Sequence[checks.CheckMessage]:
        found: list[checks.CheckMessage] = []
        if not self._engine.local:
            found.append(
                checks.Warning(
                    f"The Docker Engine at {self._engine.address} is spoken to over plain TCP:"
                    " whoever reaches that address is root there.",
                    hint="Use its unix socket, or forward it through an encrypted tunnel.",
                    id="backends_app.gvisor.W001",
                )
            )
        if self._plan.network != "none":
            found.append(
                checks.Warning(
                    "Workloads on gVisor are on the engine's network"
                    f" {short_repr(self._plan.network)}.",
                    hint="Leave out the option 'network', or see what can be reached from there.",
                    id="backends_app.gvisor.W002",
                )
            )
        return found

    # What a workload is made of

    def _resolve_source(
        self, workload: WorkloadSpec
    ) -> tuple[images.Reference, RuntimeImage | None]:
        """The image, and how code is run in it; all that can be said without the engine."""
        if workload.image is not None:
            reference = images.parse(workload.image)
            if self._allow is not None and not images.is_allowed(reference, self._allow):
                raise InvalidRequest(
                    "image", f"{short_repr(str(reference))} is not among those allowed."
                )
            workload.argv()
            return reference, None
        if workload.command:
            raise InvalidRequest(
                "command", "A command goes with an image; the code has one already: leave it out."
            )
        runtime_image = self._runtime_images.get(workload.runtime or "")
        if runtime_image is None:
            raise InvalidRequest("image", f"Runtime {short_repr(workload.runtime)} takes an image.")
        return runtime_image.image, runtime_image

    def _image(self, reference: images.Reference) -> Image:
        """What the engine knows of it; fetched before that where OPTIONS say so."""
        try:
            if found := self._engine.image(str(reference)):
                return found
        except EngineError as error:
            if not error.is_client_error:
                raise
            raise InvalidRequest(
                "image", f"{short_repr(str(reference))} is no name that this engine takes."
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
            "this server fetches only images on its list"
            if self._pull == "missing"
            else ("this server never fetches images (pull: never)")
        )
        raise InvalidRequest(
            "image",
            f"{short_repr(str(reference))} is not on this host, and {policy}. Its operator can"
            " pull or load it into the engine.",
        )

    def _plan_for(
        self,
        image: Image,
        reference: images.Reference,
        resources: Resources,
        engine: Mapping[str, Any],
    ) -> Plan:
        root = images.is_allowed(reference, self._root_images)
        return replace(
            self._plan,
            image=image.id,
            user=(image.user or "0:0") if root else self._user(image),
            # An engine takes no limit above what its host has.
            cpus=min(resources.cpus, float(engine.get("NCPU") or resources.cpus)),
            mem_mb=resources.mem_mb,
            volumes=_volumes(image.volumes),
        )

    def _user(self, image: Image) -> str:
        """Return whom the image names, by its own files, which are read without running it."""
        if found := self._users.get(image.id):
            return found
        plan = replace(
            self._plan,
            image=image.id,
            command=("none",),
            mem_mb=MIN_MB,
            volumes=_volumes(image.volumes),
        )
        asked: list[Container] = []

        def read(path: str) -> str:
            if not asked:
                asked.append(Container(self._engine, plan, 0))
            return self._engine.read_text(asked[0].id, path)

        try:
            user = resolve_user(image.user, read)
        finally:
            for container in asked:
                self._remove(container)
        self._users[image.id] = user
        while len(self._users) > MAX_USERS:
            self._users.pop(next(iter(self._users)), None)
        return user

    # Running it

    def _run(
        self,
        workload: WorkloadSpec,
        plan: Plan,
        reference: images.Reference,
        runtime_image: RuntimeImage | None,
        image: Image,
    ) -> WorkloadResult:
        stdin = workload.input_json()
        line = None
        if runtime_image is not None:
            code = workload.code_utf8()
            stdin, line = code + stdin, _code_command(runtime_image, len(code))
        if self._unstartable.get(plan.image, 0) > time.monotonic():
            return NOT_STARTED
        argv = _argv(image, workload.command)
        size = self._pool_sizes.get(str(reference), 0) if line or argv else 0
        lifetime_s = workload.resources.timeout_s
        container = self._pool.acquire(waiting_plan(plan), size, lifetime_s) if size else None
        if container is not None:
            stdin = (line or f"exec {shell_line(argv)}").encode() + b"\n" + stdin
        else:
            try:
                container = self._start(_with_command(plan, workload.command, line), lifetime_s)
            except EngineError as error:
                return self._not_started(error, plan.image)
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
        return result_of(exit, stdout, stderr, workload, runtime_image)

    def _start(self, plan: Plan, lifetime_s: float) -> Container:
        container = Container(self._engine, plan, lifetime_s)
        try:
            container.start()
        except BaseException:
            self._remove(container)
            raise
        return container

    def _not_started(self, error: EngineError, image: str) -> WorkloadResult:
        """Whose fault is it? Where the smoke program still runs, the image's, or the workload's.

        The engine leaves a sandbox behind that it could not start, so it is not tried again soon.
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
        """Remove what killed servers left, and what could not be removed before."""
        for container in list(self._unremoved):
            self._engine.remove(container)
            self._unremoved.discard(container)
        for found in self._engine.containers(ownership.SEAL):
            names = [str(name).lstrip("/") for name in found.get("Names") or ()]
            claims = [ownership.verify_labels(name, found.get("Labels") or {}) for name in names]
            if any(claim is not None and claim.is_orphaned() for claim in claims):
                self._engine.remove(str(found["Id"]))

    def _attributes(self, engine: Mapping[str, Any]) -> dict[str, str]:
        runtime = (engine.get("Runtimes") or {}).get(self._plan.runtime) or {}
        found = {
            "engine_version": str(engine.get("ServerVersion", "unknown")),
            "isolation": "gVisor: a kernel of its own in user space",
            "network": self._plan.network,
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


def _with_command(plan: Plan, command: tuple[str, ...], line: str | None) -> Plan:
    if line is not None:
        return replace(plan, entrypoint=(SHELL,), command=("-c", f'n="\n"; {line}'))
    return replace(plan, command=command or None)


def _argv(image: Image, command: tuple[str, ...]) -> list[str]:
    """What the engine would run: the image's entry point, and the command or the image's."""
    return [*image.entrypoint, *(command or image.command)]


def _code_command(runtime_image: RuntimeImage, length: int) -> str:
    """A shell's line that takes `length` bytes of its stdin as the program, and runs it there."""
    file = f"{WRITABLE}/{runtime_image.file}"
    take = (
        f"dd bs={length} count=1 iflag=fullblock of={file} 2>/dev/null" if length else f": >{file}"
    )
    command = [part.replace("{file}", file) for part in runtime_image.command]
    return f"{take} && cd {WRITABLE} && exec {shell_line(command)}"


def _require_platform(image: Image, reference: images.Reference, engine: Mapping[str, Any]) -> None:
    """Refuse an image of another processor or system, before anything of it is started."""
    here = platform_of(engine)
    if not image.platform.endswith("/") and not here.endswith("/") and image.platform != here:
        raise InvalidRequest(
            "image",
            f"{short_repr(str(reference))} is for {image.platform}, and this server runs {here}.",
        )


def _volumes(configured: Sequence[str]) -> tuple[str, ...]:
    """The folders that an image wants to be writable, bounded as `WRITABLE` is.

    In the form that the engine compares them in: to what is named otherwise it would give a volume
    of the host.
    """
    clean = {"/" + posixpath.normpath(f"/{folder}").lstrip("/") for folder in configured}
    return tuple(sorted(clean - {WRITABLE}))


def _platform(runtime: Mapping[str, Any]) -> str:
    """How runsc catches the guest's system calls, as the engine's configuration says."""
    for argument in runtime.get("runtimeArgs") or ():
        name, _, value = str(argument).lstrip("-").partition("=")
        if name == "platform" and re.fullmatch(r"[a-z]{1,16}", value):
            return value
    return "runsc's default"


@functools.cache
def _runsc_version(path: str) -> str:
    """What the engine's runtime says of itself; the engine's operator has chosen the program."""
    try:
        said = subprocess.run(  # noqa: S603
            [path, "--version"], env={}, capture_output=True, timeout=5, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return "unknown"
    found = re.match(rb"runsc version (\S{1,60})", said.stdout)
    return found[1].decode(errors="replace") if found else "unknown"
