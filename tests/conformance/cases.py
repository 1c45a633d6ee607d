"""The cases of a suite, and the folder for downloads."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import needs

CACHE = needs.CACHE / "conformance"
LIMIT_S = 1200.0  # two take several minutes without KVM


@dataclass(frozen=True, kw_only=True)
class Case:
    """The outcomes of a test on a backend and without one; `why` explains a difference."""

    backend: str
    name: str
    ours: str
    plain: str
    why: str = ""

    @property
    def same(self) -> bool:
        return self.ours == self.plain


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program of the host to its end and return what it printed; exit when it fails."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def run_plainly(command: Sequence[str | Path], cwd: Path) -> str:
    """Run a program without a backend, in an empty environment, and return its outcome."""
    try:
        done = subprocess.run(
            [*map(str, command)],
            cwd=cwd,
            env={"PATH": "/usr/bin:/bin", "HOME": str(cwd), "LANG": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return outcome(None, "")
    return outcome(done.returncode, done.stdout)


def outcome(exit_code: int | None, stdout: str) -> str:
    return f"exit code {exit_code}\n{stdout}"
