"""The microVM backend: a new QEMU machine for each workload, discarded after it.

A machine resumes from a snapshot in which its runtime has already run, or boots if no snapshot
fits. QEMU itself runs inside the sandbox layers of `sandbox`.
"""

import math
import os
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from django.core import checks

from ...exceptions import BackendUnavailable, InvalidOption, InvalidRequest, comma_join
from ...sandbox.client import Command, ConfinedProcess, Launcher, LaunchError, ProcessLimits
from ...sandbox.streams import Capture
from ...utils.text import short_repr
from ...workloads import Resources, WorkloadResult, WorkloadSpec
from .. import options
from ..base import Backend, BackendCapabilities, Health
from ..setup import Step
from ..walls import describe_layers
from . import channel, clock, machine, parts, qemu
from .archive import inspect_archive
from .build import Builder
from .channel import AgentProtocol, GuestLimits, Program
from .images import ArtifactMissing, Images, VerifiedArtifact
from .machine import MB, MachineSize
from .qemu import Accelerators, NotInstalled, Qemu
from .results import Streams, result_of
from .runtimes import RUNTIMES

SETUP = "manage.py setup_backend microvm"
ACCELERATORS = ("kvm", "tcg", "any")
MAX_OUTPUT_FACTOR = 16  # in units of the output cap: a program that prints more is killed
MAX_THREADS = 100  # of QEMU: one for each processor, and some for the disk
HEADROOM_MB = 1024  # how much QEMU may map beyond what it has mapped when the machine is ready
BOOT_S = {"kvm": 20.0, "tcg": 90.0}
RESTORE_S = 15.0
LATE_CPU_S = 5.0
PROCESSES = 256
UPSTREAM = re.compile(r"(?:\d+:)?(\d[\d.]*)")
STATE = 3  # the descriptor of the first file of a command
PORT = "stdio,id=agent,signal=off"
NO_BOUNDARY = "not a security boundary by itself: QEMU guarantees one only with KVM"


_verified_identities: set[tuple[object, ...]] = (
    set()
)  # of starts that have run a program in this process


@dataclass(frozen=True, kw_only=True, slots=True)
class MicroVMPlan:
    """A workload as the agent in its machine reads it: the program, and its stdin."""

    workload: WorkloadSpec
    program: Program
    stdin: bytes


@dataclass(frozen=True)
class StartPlan:
    """The start of machines of one runtime and size; without a snapshot if `boot_reason` is set."""

    launcher: Launcher
    command: Command
    identity: tuple[object, ...]
    boot_reason: str = ""


class MicroVMBackend(Backend):
    """Backend that runs code and archives in Python, Node.js and Go.

    OPTIONS:

    - `folder`: the folder of the images (default: `vulcan/microvm` in the user's data folder)
    - `accelerator`: `kvm` (default), `tcg`, or `any` for TCG if KVM does not work
    - `qemu`: the program (default: `qemu-system-x86_64` on the path)
    - `snapshot_mem_mb`: maximum memory of a workload started from a snapshot (default: 512)
    - `disk_mb`: space for files (default: 128)
    - `pool_size`: warm machines of the most recently requested runtime (default: 0)
    - `max_concurrency`: workloads that may run at once (default: 2)
    - `require_walls`: as for isolates
    - `sources`: a file of apt's sources to build the images from
    """

    def __init__(
        self,
        *,
        folder: str | None = None,
        accelerator: str = "kvm",
        qemu: str = "qemu-system-x86_64",
        snapshot_mem_mb: int = 512,
        disk_mb: int = 128,
        pool_size: int = 0,
        max_concurrency: int = 2,
        require_walls: bool = False,
        sources: str | None = None,
    ) -> None:
        if accelerator not in ACCELERATORS:
            reason = f"must be one of {comma_join(ACCELERATORS)}"
            raise InvalidOption("accelerator", accelerator, reason)
        for name, value in (("folder", folder), ("sources", sources)):
            if value is not None and not os.path.isabs(options.text(name, value, "a path")):
                raise InvalidOption(name, value, "must be an absolute path")
        self._qemu = options.text("qemu", qemu, "the name or path of the program")
        self._size = MachineSize(
            mem_mb=options.integer("snapshot_mem_mb", snapshot_mem_mb, least=64), cpus=1
        )
        self._disk_mb = options.integer("disk_mb", disk_mb)
        self._pool_size = options.integer("pool_size", pool_size, least=0)
        self._require_full_sandbox = options.boolean("require_walls", require_walls)
        self._sources = sources
        self._accelerators = Accelerators(accelerator)
        self._images = Images(Path(folder) if folder else _data_folder())
        self.capabilities = BackendCapabilities(
            name="microVM (QEMU)",
            supported_runtimes=tuple(RUNTIMES),
            supported_isolations=("microvm",),
            supported_source_formats=("code", "archive"),
            max_concurrency=options.integer("max_concurrency", max_concurrency),
        )
        self._launchers: dict[str, tuple[tuple[object, ...], Launcher]] = {}
        self._running: dict[str, ConfinedProcess] = {}
        self._closed = False

    def probe(self) -> Health:
        try:
            found = qemu.find(self._qemu)
        except NotInstalled as missing:
            return Health.undetected(missing.reason)
        except BackendUnavailable as fault:
            return Health.unhealthy(fault.reason)
        attributes = {"qemu_version": found.version}
        try:
            return self._probe_images(found, attributes)
        except BackendUnavailable as fault:
            return Health.unhealthy(fault.reason, attributes)

    def prepare(self, workload: WorkloadSpec) -> MicroVMPlan:
        return MicroVMPlan(
            workload=workload, program=_program(workload), stdin=workload.input_json()
        )

    def execute(self, plan: MicroVMPlan) -> WorkloadResult:
        workload = plan.workload
        assert workload.runtime is not None
        try:
            start = self._start(workload.runtime, workload.resources)
        except ArtifactMissing as missing:
            raise InvalidRequest(
                "runtime",
                f"This server has no image of {short_repr(workload.runtime)}; its operator can"
                f" build it with: {SETUP} --runtime {workload.runtime}.",
            ) from missing
        if self._require_full_sandbox:
            self._describe_layers(start.launcher)
        return self._run(plan, start)

    def kill(self, workload_id: str) -> None:
        if process := self._running.get(workload_id):
            process.kill()

    def warm_count(self) -> int:
        return sum(launcher.warm_count() for _, launcher in list(self._launchers.values()))

    def close(self) -> None:
        self._closed = True
        for process in list(self._running.values()):
            process.kill()
        for _, launcher in list(self._launchers.values()):
            launcher.close()

    def setup(self, runtimes: Sequence[str] = ()) -> Sequence[Step]:
        builder = Builder(
            images=self._images,
            program=self._qemu,
            accelerators=self._accelerators,
            size=self._size,
            guest_limits=self._guest_limits(Resources()),
            sources=self._sources,
        )
        return builder.steps(tuple(runtimes) or tuple(RUNTIMES))

    def check(self) -> Sequence[checks.CheckMessage]:
        if self._accelerators.setting == "kvm":
            return ()
        return [
            checks.Warning(
                f"MicroVMs may run under TCG, QEMU's emulator: {NO_BOUNDARY}.",
                hint="Set the option 'accelerator' to 'kvm' if untrusted users post workloads.",
                id="backends_app.microvm.W001",
            )
        ]

    # Probing

    def _probe_images(self, found: Qemu, attributes: dict[str, str]) -> Health:
        """Verify every image, and run a program in one: the first that has run none, or the first.

        Only one per probe, because under TCG compiling Go alone takes longer than a probe should.
        """
        images = self._kernel()
        accelerator = self._accelerators.choose(found, images.files["proof"])
        attributes["accelerator"] = accelerator
        if accelerator == "tcg":
            attributes["accelerator_note"] = NO_BOUNDARY
        attributes["kernel_version"] = images.versions.get("linux", "unknown")
        starts: dict[str, StartPlan] = {}
        missing: list[str] = []
        layers: Mapping[str, str] = {}
        for runtime in RUNTIMES:
            try:
                start = self._start(runtime, Resources(mem_mb=self._size.mem_mb))
            except ArtifactMissing:
                missing.append(runtime)
                continue
            layers = self._describe_layers(start.launcher)
            starts[runtime] = start
            attributes[f"{runtime}_version"] = self._version(runtime)
            attributes[f"start_{runtime}"] = (
                start.boot_reason or f"snapshot of {self._size.mem_mb} MB"
            )
        if not starts:
            raise BackendUnavailable(f"no image has been built; build them with: {SETUP}")
        unproven = (
            name for name, start in starts.items() if start.identity not in _verified_identities
        )
        runtime = next(unproven, next(iter(starts)))
        self._smoke(runtime, starts[runtime])
        _verified_identities.add(starts[runtime].identity)
        attributes["confinement"] = "QEMU in sandbox layers, with its own sandbox"
        attributes.update({f"wall_{layer}": basis for layer, basis in layers.items()})
        description = f"{comma_join([*starts])} run in machines of their own"
        if missing:
            description += f"; no image of {comma_join(missing)}, build it with: {SETUP}"
        return Health.ok(description, attributes)

    def _version(self, runtime: str) -> str:
        """Return the version of the runtime, without Debian's additions."""
        versions = self._images.verify(parts.root(runtime)).versions
        found = UPSTREAM.match(versions.get(RUNTIMES[runtime].versioned, ""))
        return found[1] if found else "unknown"

    def _smoke(self, runtime: str, start: StartPlan) -> None:
        number = secrets.randbelow(2**31)
        row = RUNTIMES[runtime]
        resources = Resources(mem_mb=self._size.mem_mb, timeout_s=30.0)
        spec = WorkloadSpec(runtime=runtime, code=row.warm, input=number, resources=resources)
        result = self._run(self.prepare(spec), start)
        if result.output != number:
            raise BackendUnavailable(
                f"the smoke test of {runtime} returned an unexpected result"
                f" (exit reason: {result.exit_reason}){': ' if result.error else ''}{result.error}"
            )

    def _describe_layers(self, launcher: Launcher) -> Mapping[str, str]:
        """Return the sandbox layers around QEMU, or raise if nothing may run."""
        return describe_layers(launcher, what="QEMU", required=self._require_full_sandbox)

    # Starting machines

    def _kernel(self) -> VerifiedArtifact:
        try:
            return self._images.verify(parts.kernel())
        except ArtifactMissing as missing:
            why = "none exist" if not self._images.outdated(parts.kernel()) else "they are outdated"
            raise BackendUnavailable(
                f"images are missing: {why}; build them with: {SETUP}"
            ) from missing

    def _start(self, runtime: str, resources: Resources) -> StartPlan:
        """Return how to start: from the snapshot if the workload fits into it, else by booting."""
        if self._closed:
            raise BackendUnavailable("it has been closed")
        found = qemu.find(self._qemu)
        kernel, root = self._kernel(), self._images.verify(parts.root(runtime))
        accelerator = self._accelerators.choose(found, kernel.files["proof"])
        files = {**kernel.files, **root.files}
        base_identity = (found, accelerator, runtime, kernel.identity, root.identity)
        size = MachineSize(mem_mb=resources.mem_mb, cpus=math.ceil(resources.cpus))
        if size.mem_mb > self._size.mem_mb or size.cpus > self._size.cpus:
            boot_reason = f"boots: more than {self._size.mem_mb} MB or {self._size.cpus} processor"
        else:
            size = self._size
            boot_reason = "boots: there is no snapshot for this QEMU and processor"
            artifact = parts.snapshot(runtime, found.version, accelerator, size)
            try:
                snapshot = self._images.verify(artifact)
            except ArtifactMissing:
                pass
            else:
                recorded_khz = snapshot.versions.get("counter_khz", "")
                if not os.access(snapshot.files["ram"], os.R_OK | os.W_OK):
                    boot_reason = "boots: this user may not open the memory of the snapshot"
                elif not clock.matches(recorded_khz, accelerator):
                    boot_reason = "boots: the snapshot is from a processor with another clock rate"
                else:
                    return self._restore(
                        runtime, found, accelerator, files, base_identity, snapshot
                    )
        readable_files = [files[name] for name in ("kernel", "initramfs", "root")]
        command = Command(
            arguments=machine.boot_args(
                accelerator, size, files, PORT, clock.guest_tsc_khz(accelerator)
            ),
            environment={},
            memory_bytes=HEADROOM_MB * MB,
            start_s=BOOT_S[accelerator],
        )
        launcher = self._launcher(
            f"{runtime} booted", base_identity, lambda: found.launcher(accelerator, readable_files)
        )
        return StartPlan(launcher, command, base_identity, boot_reason)

    def _restore(
        self,
        runtime: str,
        found: Qemu,
        accelerator: str,
        files: Mapping[str, Path],
        base_identity: tuple[object, ...],
        snapshot: VerifiedArtifact,
    ) -> StartPlan:
        files = {**files, **snapshot.files}
        command = Command(
            arguments=machine.restore_args(accelerator, self._size, files, PORT, STATE),
            environment={},
            memory_bytes=HEADROOM_MB * MB,
            files=[str(files["state"])],
            start_s=RESTORE_S,
        )
        readable_files = [files[name] for name in ("root", "state")]
        identity = (*base_identity, snapshot.identity)
        launcher = self._launcher(
            f"{runtime} restored",
            identity,
            lambda: found.launcher(accelerator, readable_files, [files["ram"]]),
        )
        return StartPlan(launcher, command, identity)

    def _launcher(
        self, kind: str, identity: tuple[object, ...], make: Callable[[], Launcher]
    ) -> Launcher:
        """Return the launcher for a kind of start, a new one if the files in its root have changed.

        The replaced one ends with its last machine, when nothing refers to it. Uses no lock,
        because a fork could leave it locked for ever.
        """
        cached = self._launchers.get(kind)
        if cached is not None and cached[0] != identity:
            self._launchers.pop(kind, None)
            cached = None
        _, launcher = cached or self._launchers.setdefault(kind, (identity, make()))
        if self._closed:  # perhaps by another thread in the meantime
            launcher.close()
        return launcher

    # Execution

    def _run(self, plan: MicroVMPlan, start: StartPlan) -> WorkloadResult:
        workload, program = plan.workload, plan.program
        resources, cap = workload.resources, workload.output_bytes
        guest_limits = self._guest_limits(resources)
        processors = math.ceil(resources.cpus)
        largest = MachineSize(mem_mb=max(resources.mem_mb, self._size.mem_mb), cpus=processors)
        prepare_s = program.prepare_s
        limits = ProcessLimits(
            timeout_s=resources.timeout_s,
            memory_bytes=(largest.ram_mb + machine.TCG_BUFFER_MB + machine.QEMU_MB) * MB,
            threads=MAX_THREADS,
            output_bytes=MAX_OUTPUT_FACTOR * cap,
            prepare_s=prepare_s,
            cpu_s=(prepare_s + resources.timeout_s) * processors + LATE_CPU_S,
        )
        captures = Streams(
            stdout=Capture(cap, workload.output_callback("stdout")),
            stderr=Capture(cap, workload.output_callback("stderr")),
            returned=Capture(cap) if RUNTIMES[workload.runtime or ""].returns else None,
        )
        streams = {
            b"o": captures.stdout,
            b"e": captures.stderr,
            b"r": captures.returned or Capture(1),
        }
        qemu_stderr = Capture(2000)
        try:
            process = start.launcher.process(start.command, limits, self._pool_size)
            protocol = AgentProtocol(
                streams, process.stop, process.start_timer if program.prepares else None
            )
            self._running[workload.id] = process
            try:
                request = channel.request(program, guest_limits, plan.stdin)
                exit = process.run(request, protocol, qemu_stderr, hold_stdin=True)
            finally:
                del self._running[workload.id]
        except LaunchError as error:
            raise BackendUnavailable(f"QEMU could not be run: {self._hide_paths(error)}") from error
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise BackendUnavailable(f"QEMU could not be run: {reason}") from error
        return result_of(exit, protocol, captures, workload, program)

    def _guest_limits(self, resources: Resources) -> GuestLimits:
        return GuestLimits(
            cpus=resources.cpus,
            memory_bytes=resources.mem_mb * MB,
            disk_bytes=self._disk_mb * MB,
            processes=PROCESSES,
        )

    def _hide_paths(self, error: LaunchError) -> str:
        """Return the error without the path of the images, which QEMU's messages contain."""
        return str(error).replace(str(self._images.folder), "images")


def _data_folder() -> Path:
    """Return the default image folder by the XDG base directories, without creating it."""
    data = os.environ.get("XDG_DATA_HOME", "")
    base = Path(data) if os.path.isabs(data) else Path("~/.local/share").expanduser()
    return base / "vulcan" / "microvm"


def _program(workload: WorkloadSpec) -> Program:
    """Return the program for the agent; raise `InvalidRequest` if it could not be run."""
    row = RUNTIMES.get(workload.runtime or "")
    if row is None or workload.image is not None:
        raise InvalidRequest(
            "runtime", f"microVMs run code and archives of {comma_join(RUNTIMES)}."
        )
    environment = row.environment_for(workload.resources.mem_mb)
    if workload.archive is None:
        if workload.command:
            raise InvalidRequest(
                "command", "Code is run by its runtime. Leave it out, or send an archive."
            )
        source, file, entry = workload.code_utf8(), row.file, row.file
    else:
        found = inspect_archive(workload.archive, row.manifest)
        source, file = workload.archive, None
        if workload.command:
            return Program(source=source, file=None, argv=workload.argv(), environment=environment)
        entry = found.entry(row.entries)
    return Program(
        source=source,
        file=file,
        compile=row.compile,
        argv=[word.replace("{entry}", entry) for word in row.command],
        environment=environment,
        signals_start=row.returns,
    )
