"""Compare the tests of CPython and Go's standard library on `microvm` and in its plain roots."""

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

from backends_app.backends.base import Backend
from backends_app.backends.microvm import parts
from backends_app.workloads import ExitReason, Resources, WorkloadSpec
from tests.backends.microvm.archives import packed
from tests.backends.microvm.conftest import images
from tests.conformance import tools
from tests.conformance.cases import LIMIT_S, Case
from tests.conformance.guest import GuestRoot, guest_root

MEM_MB = 512
MODULES = (
    *("base64", "binascii", "bisect", "bytes", "calendar", "cmath", "colorsys", "configparser"),
    *("copy", "csv", "dataclasses", "datetime", "difflib", "enum", "fnmatch", "fractions"),
    *("functools", "glob", "hashlib", "heapq", "hmac", "html", "operator", "pathlib", "pprint"),
    *("queue", "re", "sched", "shelve", "shlex", "shutil", "string", "struct", "tempfile"),
    *("textwrap", "types", "urlparse", "uuid", "weakref", "zlib"),
)
GO_PACKAGES = (
    *("bytes", "container/heap", "encoding/base64", "encoding/json", "errors", "path/filepath"),
    *("slices", "sort", "strconv", "strings", "text/template", "unicode/utf8"),
)
RUNNER = """
import json, os, sys, unittest
suite = unittest.defaultTestLoader.loadTestsFromName(sys.argv[1])
done = unittest.TextTestRunner(stream=open(os.devnull, "w")).run(suite)
failed = sorted(test.id() for test, _ in done.failures + done.errors)
sys.stdout = sys.__stdout__
print(json.dumps({"ran": done.testsRun, "skipped": len(done.skipped), "failed": failed}))
"""


def cpython(backends: dict[str, Backend], names: list[str]) -> Iterator[Case]:
    """Run each module of CPython's tests with unittest."""
    tests = tools.debian(tools.CPYTHON_TESTS, parts.SUITE) / "usr/lib/python3.11/test"
    with guest_root(images(), "python") as root:
        for name in names:
            archive = _with_tests(tests, name)
            command = ("python3", "run.py", f"test.test_{name}")
            yield _compare(backends["microvm"], root, "python", name, archive, command)


def go(backends: dict[str, Backend], names: list[str]) -> Iterator[Case]:
    """Run the tests of each package with `go test`."""
    archive = packed({"go.mod": "module workload\n\ngo 1.27\n"})
    with guest_root(images(), "go") as root:
        for name in names:
            command = ("go", "test", "-short", "-vet=off", name)
            yield _compare(backends["microvm"], root, "go", name, archive, command)


def _compare(
    backend: Backend,
    root: GuestRoot,
    runtime: str,
    name: str,
    archive: bytes,
    command: tuple[str, ...],
) -> Case:
    """Run a command with an archive in a machine, and in the root without one."""
    resources = Resources(timeout_s=LIMIT_S, mem_mb=MEM_MB)
    result = backend.run(
        WorkloadSpec(runtime=runtime, archive=archive, command=command, resources=resources)
    )
    code, stdout = root.run(archive, command, MEM_MB)
    is_slow = result.exit_reason is ExitReason.TIMEOUT and not Path("/dev/kvm").exists()
    return Case(
        backend="microvm",
        name=name,
        ours=_outcome(result.exit_code, result.stdout) or f"{result.exit_reason}",
        plain=_outcome(code, stdout),
        why=f"it takes longer than {LIMIT_S:g} s without KVM" if is_slow else "",
    )


def _outcome(code: int | None, stdout: str) -> str:
    """Return the outcome of a run without its duration."""
    if code is None:
        return ""
    last = stdout.strip().rpartition("\n")[2]
    try:
        return json.dumps(json.loads(last))
    except ValueError:
        return f"exit code {code}: {last.partition(chr(9))[0]}"


def _with_tests(tests: Path, name: str) -> bytes:
    """Return an archive of one test module and the shared test files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        runner = tarfile.TarInfo("run.py")
        runner.size = len(RUNNER.encode())
        archive.addfile(runner, io.BytesIO(RUNNER.encode()))
        wanted = [tests / "__init__.py", *sorted((tests / "support").rglob("*.py"))]
        wanted += sorted(tests.glob("*tester.py")) + sorted(tests.glob("list_tests.py"))
        for module in ("string_tests", "seq_tests", "mapping_tests", "audiotests", "pickletester"):
            wanted += tests.glob(f"{module}.py")
        wanted += sorted(tests.glob(f"test_{name}*"))
        for path in dict.fromkeys(wanted):
            archive.add(path, f"test/{path.relative_to(tests)}")
    return data.getvalue()
