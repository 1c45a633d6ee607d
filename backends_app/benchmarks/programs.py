"""The task of every benchmark, and the program that does it in each runtime: one row for each."""

from dataclasses import dataclass

from ..backends.base import BackendCapabilities
from ..routing import RUNTIME_OF_IMAGES

TASK = "read one JSON document and give it back"
"""Next to no work, so that what is measured is what the isolation costs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """How the task is done in one runtime: by code, or by a command in an image."""

    runtime: str
    code: str | None = None
    command: tuple[str, ...] = ()

    @property
    def source_format(self) -> str:
        return "image" if self.code is None else "code"


# A WASI command that copies stdin to stdout; what it was made of stands in tests/backends/wasm.py.
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
"""In the order in which they are preferred: first what the most backends run."""


def program_for(
    can: BackendCapabilities, *, runtime: str | None = None, image: str | None = None
) -> Program | None:
    """What such a backend is measured with, of this runtime if one is named."""
    for program in PROGRAMS:
        if (
            runtime in (None, program.runtime)
            and program.runtime in can.supported_runtimes
            and program.source_format in can.supported_source_formats
            and (program.source_format != "image" or image is not None)
        ):
            return program
    return None
