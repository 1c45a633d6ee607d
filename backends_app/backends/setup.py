"""Setup of a backend's host, as steps that can be listed before they are applied."""

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

MAX_OUTPUT_CHARS = 1000


class SetupError(Exception):
    """A step failed; the message gives the reason and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One change of the host. `is_done` changes nothing; `apply` is called if it returns False.

    `what` names the result in a few words, `action` describes what `apply` does.
    """

    what: str
    action: str
    is_done: Callable[[], bool]
    apply: Callable[[], None]


def packages(*names: str) -> Step:
    """Return the step that installs these Debian packages."""
    command = ("apt-get", "install", "--yes", "--no-install-recommends", *names)

    def apply() -> None:
        run_command(("apt-get", "update"))
        run_command(command, DEBIAN_FRONTEND="noninteractive")

    return Step(
        what=f"packages {', '.join(names)}",
        action=f"apt-get update, and {shlex.join(command)}",
        is_done=lambda: all(_installed(name) for name in names),
        apply=apply,
    )


def run_command(
    command: Sequence[str],
    on_line: Callable[[str], None] | None = None,
    stdin: IO[bytes] | None = None,
    **environment: str,
) -> None:
    """Run a program of the host; raise `SetupError` with the end of its output if it fails.

    `on_line` receives each line of its output as it is printed.
    """
    output = ""
    try:
        with subprocess.Popen(  # noqa: S603 - the commands are this package's own
            command,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                output = (output + line)[-MAX_OUTPUT_CHARS:]
                if on_line is not None:
                    on_line(line.rstrip())
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be run: {error.strerror}") from error
    if process.returncode:
        root = "" if os.geteuid() == 0 else " (this user is not root: try with sudo)"
        raise SetupError(f"{shlex.join(command)} failed{root}:\n{output.strip()}")


def _installed(package: str) -> bool:
    try:
        found = subprocess.run(  # noqa: S603
            ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise SetupError("dpkg-query is missing: this host is not Debian") from error
    return found.stdout == "installed"
