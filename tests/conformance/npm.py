"""Compare npm packages, bundled as usual, on `isolate`, `microvm` and plain Node.js."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from backends_app.backends.base import Backend
from backends_app.workloads import Resources, WorkloadSpec
from tests.conformance import tools
from tests.conformance.cases import LIMIT_S, Case, outcome, run, run_plainly

# Needed by bundles of CommonJS packages in an ES module, according to esbuild's documentation.
BANNER = (
    "--banner:js=import { createRequire } from 'module';"
    "const require = createRequire(import.meta.url);"
)
_TEXT = (Path(__file__).parent / "uses.js").read_text()
USES = dict(part.split("\n", 1) for part in _TEXT.split("\n//: ")[1:])


def cases(backends: dict[str, Backend], names: list[str]) -> Iterator[Case]:
    """Bundle each package, and run the bundle everywhere."""
    folder = tools.npm("npm", [tools.ESBUILD, *names])
    esbuild = folder / "node_modules" / "esbuild" / "bin" / "esbuild"
    with tempfile.TemporaryDirectory() as empty:
        for name in names:
            entry = folder / f"use-{name}.mjs"
            entry.write_text(USES[name])
            options = ("--bundle", "--platform=node", "--format=esm", "--log-level=error", BANNER)
            bundle = run(tools.node(), esbuild, *options, entry, cwd=folder)
            file = Path(empty) / "main.mjs"
            file.write_text(bundle)
            plain = run_plainly([tools.node(), file], Path(empty))
            for backend, used in backends.items():
                resources = Resources(timeout_s=LIMIT_S, mem_mb=512)
                spec = WorkloadSpec(runtime="node", code=bundle, resources=resources)
                result = used.run(spec)
                ours = outcome(result.exit_code, result.stdout)
                yield Case(backend=backend, name=name, ours=ours, plain=plain)


def names() -> list[str]:
    return list(USES)
