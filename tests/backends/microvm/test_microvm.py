"""Workloads in machines: their environment, their results, and their separation."""

import json
import os
import re
import threading
import time
from dataclasses import replace

import pytest

from backends_app.backends.microvm import MicroVMBackend
from backends_app.backends.microvm.runtimes import RUNTIMES
from backends_app.exceptions import BackendUnavailable, InvalidOption, InvalidRequest
from backends_app.workloads import ExitReason, Resources, Status, WorkloadSpec
from tests.backends.contract import BackendContract, Programs, kill_after_output
from tests.backends.microvm.archives import packed
from tests.backends.microvm.conftest import execute, machines
from tests.support.programs import PATIENCE_S

GO_ECHO = """package main
import ("io"; "os")
func main() { io.Copy(os.Stdout, os.Stdin) }
"""
GO_FAILS = """package main
import ("fmt"; "os")
func main() { fmt.Fprintln(os.Stderr, "boom"); os.Exit(3) }
"""


class TestPython(BackendContract):
    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="python",
            echo={"code": "import sys; print(sys.stdin.read())"},
            fails={"code": "raise ValueError('boom')"},
            nothing={"code": ""},
        )


class TestNode(BackendContract):
    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="node",
            echo={"code": "export default async (input) => input"},
            fails={"code": "throw new Error('boom')"},
            nothing={"code": "export const x = 1"},
        )


class TestArchives(BackendContract):
    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="python",
            echo={
                "archive": packed({"main.py": "import lib.echo", "lib/echo.py": "print(input())"})
            },
            fails={"archive": packed({"main.py": "import boom"})},
            nothing={"archive": packed({"main.py": ""})},
        )


def test_go_is_compiled_and_run(run):
    assert run(GO_ECHO, runtime="go", input={"a": [1, "ü"]}).output == {"a": [1, "ü"]}
    failed = run(GO_FAILS, runtime="go")
    assert (failed.status, failed.exit_code, failed.stderr) == (Status.FAILED, 3, "boom\n")


def test_compiler_error_is_a_failed_workload(run):
    result = run("package main\nfunc main() { x }", runtime="go")
    assert (result.status, result.exit_reason, result.exit_code) == ("failed", "exited", 1)
    assert "./main.go:2:15: undefined: x" in result.stderr
    assert result.error == "./main.go:2:15: undefined: x"
    assert "/root" not in result.stderr


@pytest.mark.parametrize(
    ("runtime", "files", "output"),
    [
        ("python", {"main.py": "import json; print(json.load(open('data.json'))['x'] + 1)"}, 42),
        ("node", {"index.js": "module.exports = (x) => x + require('./data.json').x"}, 42),
        ("node", {"index.mjs": "import fs from 'fs'; export default () => 42"}, 42),
        ("node", {"package.json": '{"main": "src/a.js"}', "src/a.js": "console.log(42)"}, 42),
        (
            "node",
            {
                "package.json": '{"type": "module", "main": "a.js"}',
                "a.js": "export default () => 42",
            },
            42,
        ),
        (
            "go",
            {
                "main.go": 'package main\nimport "workload/a"\nfunc main() { a.Say() }',
                "a/a.go": 'package a\nimport "fmt"\nfunc Say() { fmt.Println(42) }',
            },
            42,
        ),
        (
            "go",
            {
                "go.mod": "module example.org/x\n\ngo 1.19\n",
                "main.go": 'package main\nimport "fmt"\nfunc main() { fmt.Println(42) }',
            },
            42,
        ),
    ],
)
def test_archive_runs_its_entry_point(run, runtime, files, output):
    result = run(runtime=runtime, archive=packed({"data.json": '{"x": 41}', **files}), input=1)
    assert result.output == output, result.stderr


def test_archive_runs_a_command(run):
    archive = packed({"tool.sh": '#!/bin/sh\necho "$# $2"; cat; exit 4\n', "a/b": "x"})
    result = run(archive=archive, command=("./tool.sh", "a", "b 'c' $d"), input=[1])
    assert (result.exit_code, result.stdout) == (4, "2 b 'c' $d\n[1]\n")
    result = run(archive=archive, command=("python3", "-c", "import os; print(os.listdir('a'))"))
    assert result.stdout == "['b']\n"


def test_missing_command_is_reported(run):
    result = run(archive=packed({"x": ""}), command=("./nothing",))
    assert (result.status, result.exit_code) == (Status.FAILED, 126)
    assert "not started: there is no './nothing'" in result.stderr
    assert result.error == result.stderr.strip()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"code": "", "command": ("ls",)}, "command"),
        ({"archive": packed({"x": ""})}, "code_archive"),
        ({"archive": b"junk"}, "code_archive"),
        ({"archive": packed({"x": ""}), "command": ("a\0b",)}, "command"),
        ({"archive": packed({"x": ""}), "command": ("\ud800",)}, "command"),
        ({"archive": packed({"x": ""}), "command": ("x" * 200_000,)}, "command"),
        ({"code": "", "runtime": "cobol"}, "runtime"),
    ],
)
def test_invalid_workloads_are_rejected_before_anything_starts(backend, given, field):
    with pytest.raises(InvalidRequest) as caught:
        execute(backend, **given)
    assert caught.value.field == field
    assert machines() == set()


def test_successive_probes_run_a_program_in_each_image(backend, monkeypatch):
    fails = replace(RUNTIMES["node"], warm="throw new Error('boom')")
    monkeypatch.setitem(RUNTIMES, "node", fails)
    assert "unhealthy" in [backend.probe().state for _ in RUNTIMES]
    assert backend.probe().description.startswith("the smoke test of node returned an unexpected")


def test_workload_runs_on_the_guests_kernel(backend, run):
    release, user = run(
        "import json, os; print(json.dumps([os.uname().release, os.getuid()]))"
    ).output
    assert release.endswith("-cloud-amd64")
    assert release != os.uname().release
    assert user == 1000
    found = backend.probe()
    assert found.state == "healthy", found.description
    assert found.attributes["accelerator"] in ("kvm", "tcg")
    assert ("accelerator_note" in found.attributes) == (found.attributes["accelerator"] == "tcg")
    assert found.attributes["start_python"] == "snapshot of 512 MB"
    assert "QEMU" in found.attributes["confinement"]
    for runtime in ("python", "node", "go"):
        assert re.fullmatch(r"\d+(\.\d+)+", found.attributes[f"{runtime}_version"])
    assert {"wall_files", "wall_network", "wall_syscalls"} <= set(found.attributes)


OWN = """
import json, os, random, time, uuid
print(json.dumps({
    "urandom": os.urandom(16).hex(), "random": random.random(), "uuid": str(uuid.uuid4()),
    "hash": hash("a"), "address": id(object()),
    "boot": open("/proc/sys/kernel/random/boot_id").read(),
    "machine": open("/etc/machine-id").read(), "time": time.time(),
}))
"""


def test_restored_machines_share_no_random_number_or_id_and_have_the_time(run):
    before = time.time()
    one, two = run(OWN).output, run(OWN).output
    after = time.time()
    assert before - 1 <= one.pop("time") <= two.pop("time") <= after + 1
    assert [name for name in one if one[name] == two[name]] == []
    assert re.fullmatch("[0-9a-f]{32}\n", one["machine"])


def test_restored_node_machines_share_no_random_number(run):
    code = "import c from 'crypto'; export default () => [Math.random(), c.randomUUID()]"
    one, two = run(code, runtime="node").output, run(code, runtime="node").output
    assert not {*one} & {*two}


def test_program_leaves_nothing_for_the_next(run):
    leave = "open('/tmp/x', 'w').write('x'); open('/work/y', 'w').write('y')"
    look = "import os; print([*os.listdir('/tmp'), *os.listdir('/work'), *os.listdir('/dev/shm')])"
    assert run(leave).status is Status.COMPLETED
    assert run(look).stdout == "['main.py']\n"


def test_streams_are_separate_and_bounded(run):
    code = """
import sys
sys.stdout.write("o" * 50_000 + "END")
sys.stderr.write("e" * 50_000 + "END")
"""
    result = run(code)
    assert result.status is Status.COMPLETED
    assert (result.stdout_truncated, result.stderr_truncated) == (True, True)
    for text, letter in ((result.stdout, "o"), (result.stderr, "e")):
        assert text.startswith(letter * 1000)
        assert text.endswith("END")
        assert len(text) < 20_100


def test_input_of_any_size_is_delivered(run):
    assert run("import sys; print(len(sys.stdin.read()))", input="x" * 900_000).output == 900_003
    assert run("print(1)", input="x" * 900_000).output == 1  # without reading it


@pytest.mark.parametrize(
    ("code", "reason", "signal"),
    [
        ("import os; os.kill(os.getpid(), 11)", ExitReason.SIGNAL, "SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", ExitReason.SIGNAL, "SIGKILL"),
        ("while True: pass", ExitReason.TIMEOUT, None),
        ("a = []\nwhile True: a.append(bytearray(10 ** 6))", ExitReason.MEMORY_LIMIT, "SIGKILL"),
        (
            "import os, time\nwhile True:\n  if not os.fork(): time.sleep(99)",
            ExitReason.PROCESS_LIMIT,
            None,
        ),
        (
            "f = open('/tmp/x', 'wb')\nwhile True: f.write(bytes(10 ** 6))",
            ExitReason.DISK_LIMIT,
            None,
        ),
        ("import os\nwhile True: os.write(1, bytes(60_000))", ExitReason.OUTPUT_LIMIT, None),
    ],
)
def test_exit_reason_is_reported(run, code, reason, signal):
    result = run(code, timeout_s=2 if reason is ExitReason.TIMEOUT else 60)
    assert (result.status, result.exit_reason, result.signal) == (Status.FAILED, reason, signal)
    assert result.error


def test_output_survives_a_timeout(run):
    result = run("print('so far', flush=True)\nwhile True: pass", timeout_s=10)
    assert (result.exit_reason, result.stdout) == (ExitReason.TIMEOUT, "so far\n")


def test_figures_come_from_the_machine(run):
    result = run("import time\nx = bytearray(90_000_000)\nwhile time.process_time() < 1: pass")
    assert result.memory_bytes > 90_000_000
    assert result.cpu_time_ms >= 900
    assert result.duration_ms >= result.cpu_time_ms * 0.9


def test_workload_ends_with_its_program_not_with_its_children(run):
    code = "import subprocess; subprocess.Popen(['sleep', '999'], start_new_session=True); print(1)"
    assert run(code).output == 1


def test_machine_has_the_requested_memory(run):
    fill = "x = bytearray({} * 1000 * 1000); print(len(x))"
    assert run(fill.format(80), mem_mb=64).exit_reason is ExitReason.MEMORY_LIMIT
    assert run(fill.format(400), mem_mb=512).status is Status.COMPLETED


def test_large_machine_is_limited_too(run):
    """With too little overhead the kernel would reclaim memory until the time limit."""
    hog = "a = []\nwhile True: a.append(bytearray(b'x' * 10**7))"
    assert run(hog, mem_mb=1024, timeout_s=300).exit_reason is ExitReason.MEMORY_LIMIT


def test_streams_can_be_opened_by_name(run):
    script = "cat </dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr; ls /dev/fd >&2"
    result = run(archive=packed({"x": script}), command=("sh", "x"), input=1)
    assert (result.exit_code, result.stdout) == (0, "1\nout\n")
    assert result.stderr.startswith("err\n0\n1\n2\n")


def test_default_export_that_never_settles_is_a_failure(run):
    result = run("export default () => new Promise(() => {})", runtime="node")
    assert (result.status, result.exit_code) == (Status.FAILED, 13)
    assert "never returned" in result.stderr
    result = run("export default () => ({ toJSON() { throw null; } })", runtime="node")
    assert result.exit_reason is ExitReason.INVALID_OUTPUT


def test_workload_larger_than_the_snapshot_boots(run):
    result = run(
        "import os; x = bytearray(700_000_000); print(os.cpu_count())", mem_mb=1024, cpus=1.5
    )
    assert result.output == 2


def test_fraction_of_a_processor_is_a_fraction_of_its_time(run):
    code = "import time\nend = time.monotonic() + 2\nwhile time.monotonic() < end: pass"
    result = run(code, cpus=0.25)
    assert result.cpu_time_ms < 0.4 * result.duration_ms


def test_concurrent_machines_are_limited_only_by_slots(backend):
    results: dict[int, object] = {}

    def one(number: int) -> None:
        results[number] = execute(backend, "print(input())", input=number).output

    threads = [threading.Thread(target=one, args=[number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: number for number in range(6)}


def test_warm_machine_is_used_once(make):
    backend = make(pool_size=1)
    seen = set()
    for _ in range(3):
        seen.add(execute(backend, OWN).output["urandom"])
        end = time.monotonic() + PATIENCE_S
        while len(machines()) < 1:
            assert time.monotonic() < end
            time.sleep(0.01)
    assert len(seen) == 3


def test_running_workload_is_observed_and_killed(backend):
    code = "import os; os.write(1, b'begun\\n')\nwhile True: pass"
    spec = WorkloadSpec(runtime="python", code=code, resources=Resources(timeout_s=120))
    result = kill_after_output(backend, spec)
    assert (result.status, result.exit_reason) == (Status.KILLED, ExitReason.KILLED)
    assert result.stdout == "begun\n"


def test_runtime_without_an_image_is_an_invalid_request(folder, tmp_path):
    for part in folder.iterdir():
        if part.name.startswith(("kernel-", "python-")):
            (tmp_path / part.name).symlink_to(part)
    backend = MicroVMBackend(folder=str(tmp_path), accelerator="any")
    try:
        found = backend.probe()
        assert found.state == "healthy"
        assert "no image of node, go" in found.description
        with pytest.raises(InvalidRequest, match="--runtime go") as caught:
            execute(backend, GO_ECHO, runtime="go")
        assert caught.value.field == "runtime"
    finally:
        backend.close()


def test_missing_snapshot_is_reported_and_boots(folder, tmp_path):
    for part in folder.iterdir():
        if not part.name.startswith("python-snapshot"):
            (tmp_path / part.name).symlink_to(part)
    backend = MicroVMBackend(folder=str(tmp_path), accelerator="any")
    try:
        assert execute(backend, "print(1)").output == 1
        found = backend.probe()
        assert found.attributes["start_python"].startswith("boots: there is no snapshot")
        assert found.attributes["start_node"] == "snapshot of 512 MB"
    finally:
        backend.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("folder", "images"),
        ("folder", 1),
        ("sources", "sources.list"),
        ("accelerator", "hvf"),
        ("accelerator", None),
        ("qemu", ""),
        ("snapshot_mem_mb", 0),
        ("snapshot_mem_mb", True),
        ("disk_mb", 0),
        ("pool_size", -1),
        ("max_concurrency", 0),
        ("require_walls", "yes"),
    ],
)
def test_invalid_options_are_rejected(option: str, value: object):
    with pytest.raises(InvalidOption) as caught:
        MicroVMBackend(**{option: value})
    assert caught.value.option == option


def test_tcg_gives_a_warning_and_is_never_the_default():
    assert MicroVMBackend().check() == ()
    for accelerator in ("any", "tcg"):
        [warning] = MicroVMBackend(accelerator=accelerator).check()
        assert warning.id == "backends_app.microvm.W001"
        assert "not a security boundary" in warning.msg


def test_closed_backend_is_unavailable(make):
    backend = make()
    backend.close()
    assert backend.probe().state == "unhealthy"
    with pytest.raises(BackendUnavailable, match="closed"):
        execute(backend, "print(1)")


def test_request_contains_nothing_about_the_host(run):
    shown = json.dumps(
        run("import os; print(dict(os.environ), open('/proc/cmdline').read())").stdout
    )
    assert not re.search(r"/root|/home|\.local|HOST|python3\.11/site", shown)
