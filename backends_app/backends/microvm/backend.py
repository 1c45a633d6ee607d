"""The microVM backend: finds QEMU and its microvm machine; running workloads is still to come."""

import re
import shutil
import subprocess

from ...exceptions import BackendUnavailable
from ...workloads import WorkloadResult, WorkloadSpec
from .. import options
from ..base import Backend, BackendCapabilities, Health

INSTALL = (
    "install it with: apt-get install qemu-system-x86 linux-image-cloud-amd64 mmdebstrap "
    "squashfs-tools"
)
NOT_YET = "running workloads on microVMs is not built yet"
QEMU_TIMEOUT_S = 5


class MicroVMBackend(Backend):
    """OPTIONS: `qemu`, the program (default: `qemu-system-x86_64` on the path);
    `max_concurrency`.
    """

    def __init__(self, *, qemu: str = "qemu-system-x86_64", max_concurrency: int = 2) -> None:
        self._qemu = options.text("qemu", qemu, "the name or path of the program")
        self.capabilities = BackendCapabilities(
            name="microVM (QEMU)",
            supported_runtimes=("python", "node", "go"),
            supported_isolations=("microvm",),
            supported_source_formats=("code", "archive"),
            max_concurrency=options.whole_number("max_concurrency", max_concurrency),
        )

    def probe(self) -> Health:
        program = shutil.which(self._qemu)
        if program is None:
            return Health.undetected(f"QEMU is not installed; {INSTALL}")
        try:
            version = self._ask(program, "--version")
            machines = self._ask(program, "-machine", "help")
        except (OSError, subprocess.SubprocessError):
            return Health.unhealthy("QEMU is installed and does not start")
        found = re.search(r"version (\S+)", version)
        attributes = {"qemu_version": found.group(1) if found else "unknown"}
        if not re.search(r"^microvm\b", machines, re.MULTILINE):
            return Health.undetected(f"this QEMU has no machine `microvm`; {INSTALL}", attributes)
        return Health.unhealthy(NOT_YET, attributes)

    def execute(self, workload: WorkloadSpec) -> WorkloadResult:
        raise BackendUnavailable(NOT_YET)

    def _ask(self, program: str, *arguments: str) -> str:
        answer = subprocess.run(  # noqa: S603 - the operator named the program
            [program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=QEMU_TIMEOUT_S,
            check=True,
            env={},
        )
        return answer.stdout
