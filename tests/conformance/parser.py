"""Compare the parser tests of test262 on `isolate` and plain Deno: does the source parse?

No registry has a package of all of test262, but of these tests.
"""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from deno import find_deno_bin

from backends_app.backends.base import Backend
from backends_app.workloads import Resources, WorkloadSpec
from tests.conformance import tools
from tests.conformance.cases import Case

FOLDERS = ("pass", "pass-explicit", "fail", "early")
# Other ways to interpret the source, by the name of a file for Deno, with the reason.
OTHERWISE = {
    "main.cjs": "a script in sloppy mode, which is taken for CommonJS as by Node.js",
    "main.mts": "valid TypeScript, for which it is taken where it is no JavaScript",
}


def cases(backends: dict[str, Backend], names: list[str]) -> Iterator[Case]:
    """Run each source as a module; report only whether it started."""
    tests = _folder()
    backend = backends["isolate"]
    with tempfile.TemporaryDirectory() as empty:
        for test in names:
            source = (tests / test).read_text()
            result = backend.run(
                WorkloadSpec(runtime="node", code=source, resources=Resources(timeout_s=5))
            )
            ours = _parses(result.error + result.stderr)
            plain = _deno(Path(empty, "main.mjs"), source)
            others = (
                why for name, why in OTHERWISE.items() if _deno(Path(empty, name), source) == ours
            )
            why = next(others, "") if ours != plain else ""
            yield Case(backend="isolate", name=test, ours=ours, plain=plain, why=why)


def names() -> list[str]:
    tests = _folder()
    return [
        f"{folder}/{file.name}" for folder in FOLDERS for file in sorted((tests / folder).iterdir())
    ]


def _folder() -> Path:
    return tools.npm("test262", [tools.PARSER_TESTS]) / "node_modules" / "test262-parser-tests"


def _deno(file: Path, source: str) -> str:
    file.write_text(source)
    options = ("--no-config", "--no-lock", "--no-remote", "--no-prompt", "--no-check")
    try:
        done = subprocess.run(
            [find_deno_bin(), "run", *options, file],
            cwd=file.parent,
            env={"NO_COLOR": "1", "DENO_DIR": str(file.parent)},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "parses"
    return _parses(done.stderr)


def _parses(words: str) -> str:
    wrong = "SyntaxError" in words or "could not be parsed" in words or "Expected" in words
    return "does not parse" if wrong else "parses"
