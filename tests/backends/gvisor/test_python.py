"""A real Python behind the gvisor backend, in an image made of the interpreter that runs the tests.

What other tests map to a runtime is busybox; this one shows what a user of the runtime sees.
"""

import io
import re
import subprocess
import sys
import sysconfig
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from backends_app.backends.gvisor import GVisorBackend
from backends_app.workloads import ExitReason, Resources, Status, WorkloadSpec
from tests.backends.gvisor.engines import APPLETS, TestEngine, layer

IMAGE = "python:test"
LEFT_OUT = re.compile(
    r"/(site-packages|dist-packages|test|tests|idlelib|tkinter|__pycache__|config-)"
)


def python_layer() -> bytes:
    """Return busybox's layer with the interpreter at its path here, its libraries and modules."""
    program = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_paths()["stdlib"])
    modules = (standard / "lib-dynload").glob("_sqlite3*.so")
    ldd = ["ldd", program, *modules]
    needed = subprocess.run(ldd, capture_output=True, text=True, check=True).stdout
    packed = io.BytesIO(layer(APPLETS))
    with tarfile.open(fileobj=packed, mode="a", dereference=True) as tar:
        libraries = dict.fromkeys(re.findall(r"=> (/\S+)|^\s+(/\S+) \(", needed, re.MULTILINE))
        for file in (program, *(Path(found or loader) for found, loader in libraries)):
            tar.add(file, str(file))
        tar.add(standard, str(standard), filter=lambda one: _kept(one))
        link = tarfile.TarInfo("bin/python3")
        link.type, link.linkname = tarfile.SYMTYPE, str(program)
        tar.addfile(link)
    return packed.getvalue()


def _kept(one: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if LEFT_OUT.search(f"/{one.name}") else one


@pytest.fixture
def backend(engine: TestEngine, make) -> GVisorBackend:
    with closing(engine.client()) as client:
        if not client.images(IMAGE):
            client.import_image_from_data(python_layer(), *IMAGE.split(":"))
    return make(runtimes={"python": IMAGE}, pool={IMAGE: 1})


@pytest.fixture
def run(backend: GVisorBackend):
    def run(code: str, input=None, **resources):
        bounds = Resources(**{"timeout_s": 30, **resources})
        return backend.run(WorkloadSpec(runtime="python", code=code, input=input, resources=bounds))

    return run


def test_program_gets_its_input_and_modules_and_returns_output(run):
    code = """
import json, sys, hashlib, platform, os
given = json.load(sys.stdin)
print("working", file=sys.stderr)
print(json.dumps({"sum": sum(given), "hash": hashlib.sha256(b"x").hexdigest()[:8],
                  "kernel": platform.release(), "user": os.getuid()}))
"""
    for _ in range(2):  # without and with the pool
        result = run(code, input=[1, 2, 39])
        assert (result.status, result.stderr) == (Status.COMPLETED, "working\n"), result
        assert result.output == {"sum": 42, "hash": "2d711642", "kernel": "4.4.0", "user": 65534}


def test_failure_of_a_program_is_described(run):
    result = run("def f(x):\n    return 1 / x\n\nf(0)\n")
    assert (result.status, result.exit_reason, result.exit_code) == (
        Status.FAILED,
        ExitReason.EXITED,
        1,
    )
    assert 'File "/tmp/main.py", line 2, in f' in result.stderr
    assert result.stderr.endswith("ZeroDivisionError: division by zero\n")
    assert run("import sys; sys.exit(7)").exit_code == 7
    assert run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)").signal == "SIGKILL"
    assert "SyntaxError" in run("def").stderr
    assert result.error == "ZeroDivisionError: division by zero"
    assert run("def").error == "SyntaxError: invalid syntax"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('so far', end='')\nwhile True: pass", ExitReason.TIMEOUT),
        ("import os; print('so far', end=''); os._exit(3)", ExitReason.EXITED),
        ("import os; print('so far', end=''); os.abort()", ExitReason.SIGNAL),
    ],
)
def test_printed_output_is_not_lost(run, code: str, reason: ExitReason):
    for _ in range(2):  # without and with the pool
        result = run(code, timeout_s=5)
        assert (result.exit_reason, result.stdout) == (reason, "so far")


@pytest.mark.parametrize(
    ("code", "mem_mb", "reason"),
    [
        ("while True: pass", 128, ExitReason.TIMEOUT),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", 128, ExitReason.MEMORY_LIMIT),
        ("while True: print('x' * 1000)", 128, ExitReason.OUTPUT_LIMIT),
        ("import os\nwhile True: os.fork()", 1024, ExitReason.PROCESS_LIMIT),
    ],
    ids=["time", "memory", "output", "processes"],
)
def test_unbounded_programs_are_killed(run, code: str, mem_mb: int, reason: ExitReason):
    assert run(code, timeout_s=6, mem_mb=mem_mb).exit_reason is reason


def test_large_allocation_is_a_memory_limit(run):
    result = run("bytearray(1500 * 1000 * 1000)", mem_mb=256)
    assert (result.exit_reason, result.error) == (
        ExitReason.MEMORY_LIMIT,
        "exceeded the memory limit of 256 MB",
    )
