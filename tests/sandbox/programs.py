"""Python as the sandboxed program."""

import sys
import sysconfig

from backends_app.sandbox.client import Command, ConfinedProcess, Exit, Launcher, ProcessLimits
from backends_app.sandbox.streams import Capture

MB = 1024 * 1024
# Waits for the request, as a warm process does: one that ended before it got one would be an error.
READY = "import os, select, sys; os.write(1, b'!'); select.select([0], [], [])\n"


def launcher() -> Launcher:
    return Launcher(sys.executable, name="python", readable_files=[sysconfig.get_path("stdlib")])


def command(code: str, *, memory_mb: int = 1000, before: str = "") -> Command:
    """Return a command that runs `before`, reports that it is ready, and then runs the code."""
    return Command(
        arguments=["-I", "-S", "-c", f"{before}\n{READY}{code}"],
        environment={"PYTHONHOME": sys.base_prefix},
        memory_bytes=memory_mb * MB,
    )


def process(launcher: Launcher, command: Command, warm: int = 0, **given) -> ConfinedProcess:
    limits = {"timeout_s": 60, "memory_bytes": 500 * MB, "threads": 60, "output_bytes": MB}
    return launcher.process(command, ProcessLimits(**{**limits, **given}), warm)


def run(
    launcher: Launcher, code: str, stdin: bytes = b"", warm: int = 0, **given
) -> tuple[Exit, str, str]:
    """Run the code; return its exit and its two streams."""
    stdout, stderr = Capture(10_000), Capture(10_000)
    exit = process(launcher, command(code), warm, **given).run(stdin, stdout, stderr)
    return exit, stdout.text(), stderr.text()
