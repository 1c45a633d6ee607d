"""What a backend needs on the host, as steps that can be looked at before they are taken."""

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import IO

MAX_WORDS = 1000


class SetupError(Exception):
    """A step could not be taken; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One change of the host. `done` looks and changes nothing; `take` is called when it is not.

    `needed` says in a word or two what there will be, `how` what `take` does.
    """

    what: str
    action: str
    is_done: Callable[[], bool]
    apply: Callable[[], None]


def packages(*names: str) -> Step:
    """Packages of Debian."""
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
    """Run a program of the host to its end; `SetupError` with its last words when it fails.

    `heard` gets each line that it says meanwhile; `given` is its stdin.
    """
    words = ""
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
                words = (words + line)[-MAX_WORDS:]
                if on_line is not None:
                    on_line(line.rstrip())
    except OSError as error:
        raise SetupError(f"{command[0]} cannot be run: {error.strerror}") from error
    if process.returncode:
        root = "" if os.geteuid() == 0 else " (this user is not root: try with sudo)"
        raise SetupError(f"{shlex.join(command)} failed{root}:\n{words.strip()}")


def _installed(package: str) -> bool:
    try:
        found = subprocess.run(  # noqa: S603
            ["dpkg-query", "--show", "--showformat=${db:Status-Status}", package],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        raise SetupError("dpkg-query is missing: this is no Debian") from error
    return found.stdout == "installed"
