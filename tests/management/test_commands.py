"""The management commands: output and exit codes."""

import json
from base64 import b64decode
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from backends_app.backends.base import Health
from backends_app.backends.fake import FakeBackend
from backends_app.management.commands import probe_backends
from backends_app.management.commands.run_workload import exit_code
from backends_app.models import Workload
from backends_app.registry import Registry
from backends_app.workloads import ExitReason, Status
from tests.backends import wasm
from tests.backends.wasi import program
from tests.support.programs import manage

SUM = "export default (x: {a: number, b: number}) => ({sum: x.a + x.b})"
ESCAPES = "\x1b["


def test_list_backends_prints_a_table(tmp_path: Path):
    done = manage("list_backends", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for word in ("isolate", "healthy", "gvisor", "microvm", "node", "4 at once"):
        assert word in done.stdout
    assert ESCAPES not in done.stdout


def test_list_backends_as_json_matches_the_api(tmp_path: Path):
    done = manage("list_backends", "--format", "json", folder=tmp_path)
    backends = json.loads(done.stdout)
    assert [one["name"] for one in backends] == ["gvisor", "isolate", "microvm"]
    assert backends[1]["healthy"] is True


@pytest.mark.parametrize(
    ("found", "code"),
    [(Health.ok(), 0), (Health.undetected("not here"), 0), (Health.unhealthy("broken"), 1)],
)
def test_probe_backends_fails_if_a_backend_is_unhealthy(monkeypatch, capsys, found, code):
    """A backend that is not installed is not an error unless it is required."""
    filled = Registry()
    filled.register("well", FakeBackend())
    filled.register("other", FakeBackend(health=found))
    monkeypatch.setattr(probe_backends, "registry", filled)
    returncode = 0
    try:
        call_command("probe_backends", "--format", "json")
    except CommandError as error:
        returncode = error.returncode
    assert returncode == code
    states = {one["name"]: one["healthy"] for one in json.loads(capsys.readouterr().out)}
    assert states == {"well": True, "other": found.healthy}


def test_probe_backends_fails_if_a_required_backend_is_missing(tmp_path: Path):
    nowhere = str(tmp_path / "nowhere")
    done = manage("probe_backends", "--require", "microvm", folder=tmp_path, MICROVM_FOLDER=nowhere)
    assert done.returncode == 1
    assert "Not healthy: microvm" in done.stderr
    done = manage("probe_backends", "--require", "nobody", folder=tmp_path)
    assert done.returncode == 1
    assert "gvisor, isolate, microvm" in done.stderr


def test_resolve_backend_prints_the_backend_and_the_reasons(tmp_path: Path):
    done = manage("resolve_backend", "typescript", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "isolate  (runtime node → isolate)" in done.stdout
    assert "runs oci only" in done.stdout


def test_resolve_backend_fails_without_an_eligible_backend(tmp_path: Path):
    options = ["--isolation", "gvisor,nobody", "--format", "json"]
    done = manage("resolve_backend", "node", *options, folder=tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["backend"] is None
    assert "CommandError" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_workload_prints_the_output_and_the_backend(migrated: Path):
    done = manage("run_workload", "--code", SUM, "--input", '{"a": 1, "b": 2}', folder=migrated)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"sum": 3}
    assert "completed on isolate" in done.stderr
    assert "runtime node → isolate" in done.stderr


def test_run_workload_exits_with_the_programs_exit_code(migrated: Path):
    file = migrated / "program.ts"
    file.write_text("const n: number = 7; console.log('out'); console.error('err'); Deno.exit(n)")
    done = manage("run_workload", str(file), folder=migrated)
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert done.stderr.startswith("err\n")


def test_run_workload_runs_a_wasm_file(migrated: Path):
    file = migrated / "program.wasm"
    file.write_bytes(b64decode(wasm.ECHO))
    done = manage("run_workload", str(file), "--input", '{"a": 1}', folder=migrated)
    assert (done.returncode, json.loads(done.stdout)) == (0, {"a": 1})
    assert "runtime wasm → isolate" in done.stderr


def test_run_workload_passes_arguments_to_a_module(migrated: Path):
    file = migrated / "program.wasm"
    file.write_bytes(program([("args_get", 0, 64)], shown=128))
    done = manage("run_workload", str(file), "--", "one", "--two", folder=migrated)
    assert "workload.wasm\0one\0--two\0" in done.stdout


def test_run_workload_reads_stdin(migrated: Path):
    done = manage("run_workload", "-", folder=migrated, stdin="console.log(6 * 7)")
    assert (done.returncode, done.stdout) == (0, "42\n")


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--code", "for (;;);", "--timeout", "0.3"], 124),
        (["--code", "const a = []; for (;;) a.push(new Uint8Array(1e7).fill(1))"], 137),
        (["--code", "process.abort()"], 134),
        (["--code", "export default () => 10n"], 1),
        (["--code", "print(1)", "--runtime", "cobol"], 125),
        (["--code", "1", "--isolation", "nobody"], 125),
        (["--code", "1", "--timeout", "1e9"], 125),
        (["--code", "1", "--input", "{"], 125),
        (["/nowhere/program.js"], 125),
        ([], 125),
        (["file.js", "--code", "1"], 125),
    ],
)
def test_exit_codes_of_run_workload(migrated: Path, arguments: list[str], code: int):
    done = manage("run_workload", *arguments, folder=migrated)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_run_workload_as_json_prints_the_whole_record(migrated: Path):
    done = manage("run_workload", "--code", "console.log(1)", "--format", "json", folder=migrated)
    report = json.loads(done.stdout)
    assert (report["status"], report["stdout"], report["output"]) == ("completed", "1\n", 1)


def test_force_color_prints_escapes_without_a_terminal(tmp_path: Path):
    assert ESCAPES in manage("list_backends", "--force-color", folder=tmp_path).stdout


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", 137), ("SIGRTMIN", 162), ("SIG40", 168)])
def test_a_signal_has_the_exit_code_of_a_shell(name, code):
    ended = Workload(status=Status.FAILED, exit_reason=ExitReason.SIGNAL, signal=name)
    assert exit_code(ended) == code
