"""The task of every benchmark, and the program that performs it in each runtime."""

from dataclasses import dataclass

from ..backends.base import BackendCapabilities
from ..routing import RUNTIME_OF_IMAGES

TASK = "read one JSON document and return it"
"""Next to no work, so that the benchmark measures the cost of the isolation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """The program for the task in one runtime: code, or a command in an image."""

    runtime: str
    code: str | None = None
    command: tuple[str, ...] = ()

    @property
    def source_format(self) -> str:
        return "image" if self.code is None else "code"


# A WASI command that copies stdin to stdout; its source is in tests/backends/wasm.py.
_WASM = (
    "AGFzbQEAAAABDAJgBH9/f38Bf2AAAAJEAhZ3YXNpX3NuYXBzaG90X3ByZXZpZXcxB2ZkX3JlYWQAABZ3YXNpX3NuYXBz"
    "aG90X3ByZXZpZXcxCGZkX3dyaXRlAAADAgEBBQMBAAEHEwIGbWVtb3J5AgAGX3N0YXJ0AAIKQQE/AANAQQBBwAA2AgBB"
    "BEGAIDYCAEEAQQBBAUEIEAAaQQgoAgAEQEEEQQgoAgA2AgBBAUEAQQFBDBABGgwBCwsL"
)
_GO = """package main

import (
	"encoding/json"
	"os"
)

func main() {
	var given any
	if json.NewDecoder(os.Stdin).Decode(&given) != nil {
		os.Exit(1)
	}
	json.NewEncoder(os.Stdout).Encode(given)
}
"""

PROGRAMS = (
    Program(runtime="node", code="export default (given) => given"),
    Program(runtime="python", code="import json, sys\nprint(json.dumps(json.load(sys.stdin)))"),
    Program(runtime="go", code=_GO),
    Program(runtime="wasm", code=_WASM),
    Program(runtime=RUNTIME_OF_IMAGES, command=("cat",)),
)
"""In order of preference: the runtime that most backends support comes first."""


def program_for(
    capabilities: BackendCapabilities, *, runtime: str | None = None, image: str | None = None
) -> Program | None:
    """Return the program to measure such a backend with, or None."""
    for program in PROGRAMS:
        if (
            runtime in (None, program.runtime)
            and program.runtime in capabilities.supported_runtimes
            and program.source_format in capabilities.supported_source_formats
            and (program.source_format != "image" or image is not None)
        ):
            return program
    return None
