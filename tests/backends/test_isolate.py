"""The isolate backend with a real Deno: what programs get, and what they cannot do."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from backends_app.backends.isolate import IsolateBackend
from backends_app.exceptions import BackendUnavailable, InvalidOption, InvalidRequest
from backends_app.workloads import ExitReason, Resources, Status, WorkloadSpec
from tests.backends import wasm
from tests.backends.contract import BackendContract, Programs, kill_after_output
from tests.support.processes import children
from tests.support.programs import PATIENCE_S, ROOT


class TestIsolateBackend(BackendContract):
    @pytest.fixture
    def backend(self, backend: IsolateBackend) -> IsolateBackend:
        return backend

    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="node",
            echo={"code": "export default (input: unknown) => input"},
            fails={"code": "throw new Error('boom')"},
            nothing={"code": "const nothing: string = 'said'"},
        )


class TestWasmOnTheIsolateBackend(BackendContract):
    @pytest.fixture
    def backend(self, backend: IsolateBackend) -> IsolateBackend:
        return backend

    @pytest.fixture
    def programs(self) -> Programs:
        return Programs(
            runtime="wasm",
            echo={"code": wasm.ECHO},
            fails={"code": wasm.FAILS},
            nothing={"code": wasm.NOTHING},
        )


def test_warm_instances_are_counted(backend: IsolateBackend, run):
    assert backend.warm_count() == 0
    run("1")
    deadline = time.monotonic() + PATIENCE_S
    while backend.warm_count() < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    backend.close()
    assert backend.warm_count() == 0


# What a program gets and gives


def test_typescript_runs_and_returns_output(run):
    result = run(
        "export default (x: {a: number, b: number}) => ({sum: x.a + x.b})", {"a": 1, "b": 2}
    )
    assert (result.status, result.output) == (Status.COMPLETED, {"sum": 3})
    assert result.memory_bytes > 1024 * 1024
    assert result.cpu_time_ms > 0


def test_returned_promise_is_awaited(run):
    code = """export default async (ms: number) => {
        await new Promise((done) => setTimeout(done, ms));
        return "later";
    }"""
    assert run(code, 20).output == "later"


def test_module_without_default_export_is_run_for_its_stdout(run):
    result = run(
        "console.log('hello'); console.error('oops'); setTimeout(() => console.log('end'))"
    )
    assert (result.status, result.output) == (Status.COMPLETED, None)
    assert (result.stdout, result.stderr) == ("hello\nend\n", "oops\n")
    assert run("console.log(JSON.stringify({a: 1}))").output == {"a": 1}


def test_module_may_read_its_input_from_stdin(run):
    code = "console.log(await new Response(Deno.stdin.readable).text())"
    assert run(code, {"a": "ü"}).output == {"a": "ü"}


def test_printed_and_returned_values_are_separate(run):
    result = run("export default () => { console.log('{\"output\": 1}'); return 2 }")
    assert (result.stdout, result.output) == ('{"output": 1}\n', 2)


def test_undefined_is_returned_as_null(run):
    assert run("export default () => {}").output is None


def test_command_for_a_module_is_rejected(backend: IsolateBackend):
    with pytest.raises(InvalidRequest) as raised:
        backend.run(WorkloadSpec(runtime="node", code="1", command=("node", "x.js")))
    assert raised.value.field == "command"


def test_exit_code_is_the_programs(run):
    result = run("console.log('so far'); Deno.exit(7)")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert (result.exit_code, result.stdout) == (7, "so far\n")


# How a program fails


def test_uncaught_error_shows_a_stack_with_the_users_lines(run):
    code = "function f() { throw new TypeError('bad') }\nexport default () => {\n  f() }"
    result = run(code)
    assert (result.status, result.exit_code) == (Status.FAILED, 1)
    first, *frames = result.stderr.splitlines()
    assert first == "Uncaught TypeError: bad"
    assert [frame.partition("(")[2].rsplit(":", 1)[0] for frame in frames] == [
        "workload.ts:1",
        "workload.ts:3",
    ]
    assert result.error.startswith("TypeError: bad")


def test_stack_always_shows_the_users_file_name(run):
    code = """const shown: string[] = [];
    function f(): Error { return new Error('bad') }
    console.error(f());
    try { null.x } catch (error) { shown.push(error.stack) }
    export default () => [...shown, f().stack, new Error('a', {cause: f()}).cause.stack];"""
    result = run(code)
    for stack in [*result.output, result.stderr]:
        assert "workload.ts:" in stack
        assert "blob:" not in stack
        assert "data:" not in stack
    assert result.output[1].splitlines()[:2] == [
        "Error: bad",
        "    at f (workload.ts:2:34)",
    ]


@pytest.mark.parametrize(
    "code",
    [
        "export default () => ({ toJSON() { return new Error('x').stack } })",
        "let stack; addEventListener('unload', () => console.log(new Error('x').stack));",
        """let shown: string;
        Object.defineProperty(Promise.prototype, "constructor", {
            get() { shown ??= new Error("x").stack; return Promise },
        });
        export default async () => { await 1; return shown };""",
    ],
)
def test_stacks_have_no_frame_of_the_harness(run, code):
    result = run(code)
    shown = f"{result.output}{result.stdout}"
    assert "Error: x" in shown
    assert "data:" not in shown


def test_harness_and_host_are_not_visible(run):
    code = """import process from 'node:process';
    export default () => [Deno.mainModule, Deno.execPath(), Deno.cwd(), Deno.args,
      process.argv, process.execPath, process.cwd(), new Error().stack];"""
    output = run(code).output
    assert output[:4] == ["file:///workload.ts", "/deno", "/", []]
    assert output[5:7] == ["/deno", "/"]
    shown = str(output)
    for own in ("data:", "base64", str(Path.home()), str(Path(__file__).parents[2])):
        assert own not in shown


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("new Worker('data:text/javascript,throw new Error(7)', {type: 'module'})", "Error: 7"),
        ("let x = ;", "Expression expected"),
        ("throw new Error('at the top')", "at the top"),
        ("export default async () => { await 1; throw 'a string' }", "a string"),
        ("setTimeout(() => { throw new Error('later') }, 1)", "later"),
        ("Promise.reject(new Error('nobody caught it'))", "nobody caught it"),
        ("export default () => { throw null }", "null"),
        ("export default () => { throw {get message() { throw 1 }} }", "cannot be shown"),
        ("export default 42", "must be a function"),
        ("export default () => new Promise(() => {})", "never settled"),
        ("await new Promise(() => {})", "never resolved"),
        ("import './other.ts'", "a workload is one module"),
    ],
)
def test_failure_of_a_program_is_described(run, code, shown):
    result = run(code)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert result.exit_code == 1
    assert shown in result.stderr
    assert shown in result.error
    assert "Uncaught Uncaught" not in result.stderr
    assert "data:text/javascript;" not in result.stderr
    assert "blob:" not in result.stderr


@pytest.mark.parametrize(
    "value",
    [
        "(() => { const a = {}; a.a = a; return a })()",
        "10n",
        "({get a() { throw new Error('no') }})",
        "({toJSON() { throw 1 }})",
        "(() => { let a = []; for (let i = 0; i < 1e5; i++) a = [a]; return a })()",
        "(() => { let a = []; for (let i = 0; i < 100; i++) a = [a]; return a })()",
        "() => 1",
        "Symbol()",
        "'\\ud800'",
    ],
)
def test_output_that_is_not_json_is_invalid(run, value):
    result = run(f"export default () => ({value})")
    assert result.status is Status.FAILED
    assert result.output is None
    assert result.exit_reason in (ExitReason.INVALID_OUTPUT, ExitReason.OUTPUT_LIMIT)
    if "1e5" not in value:  # that one is too large before it is too deep
        assert result.exit_reason is ExitReason.INVALID_OUTPUT
    assert result.error


@pytest.mark.parametrize("nested", ["[]", "()"])
def test_source_that_is_nested_too_deeply_is_a_failure(run, nested):
    """Deno reads TypeScript on the stack of a thread, and is ended when that is full."""
    opening, closing = nested
    result = run(f"const x: any = {opening * 100_000}1{closing * 100_000}; export default () => x")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.SIGNAL)
    assert "nested too deeply" in result.error


def test_command_modules_exit_code_and_output_are_reported(run_wasm):
    result = run_wasm(wasm.FAILS)
    assert (result.exit_code, result.stderr, result.error) == (3, "boom\n", "")


def test_exit_cannot_be_caught_by_a_module(run_wasm):
    result = run_wasm(wasm.EXITS_IN_TRY)
    assert (result.status, result.exit_code) == (Status.FAILED, 3)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (wasm.TRAP, "RuntimeError: unreachable"),
        (wasm.NO_START, "no function _start"),
        (wasm.FOREIGN_IMPORT, 'Import #0 "env"'),
        (wasm.THREADS, "wants threads"),
        (wasm.COMPONENT, "is a component"),
        ("", "CompileError"),
        ("AAAA", "CompileError"),
        (wasm.ECHO[:200], "CompileError"),
    ],
)
def test_broken_module_is_a_failed_workload(run_wasm, code, shown):
    result = run_wasm(code)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert result.exit_code == 1
    assert shown in result.error
    assert shown in result.stderr


def test_base64_may_contain_line_breaks(run_wasm):
    wrapped = "\n".join(wasm.FAILS[start : start + 76] for start in range(0, 300, 76))
    assert run_wasm(wrapped).exit_code == 3


@pytest.mark.parametrize("code", ["no base64!", "AAA", "ä"])
def test_invalid_base64_is_an_invalid_request(run_wasm, code):
    with pytest.raises(InvalidRequest) as raised:
        run_wasm(code)
    assert raised.value.field == "code"


def test_module_is_limited_in_time_and_memory(run_wasm):
    assert run_wasm(wasm.SPIN, timeout_s=0.5).exit_reason is ExitReason.TIMEOUT
    assert run_wasm(wasm.GROW, mem_mb=128).exit_reason is ExitReason.MEMORY_LIMIT


# What the host does


def test_running_workload_is_observed_and_killed(backend: IsolateBackend):
    code = "console.log('begun'); for (;;);"
    spec = WorkloadSpec(runtime="node", code=code, resources=Resources(timeout_s=60))
    result = kill_after_output(backend, spec)
    assert (result.status, result.exit_reason) == (Status.KILLED, ExitReason.KILLED)
    assert result.stdout == "begun\n"


def test_delivered_stderr_is_cleaned_like_the_result(backend: IsolateBackend):
    """Names of modules come in parts, and are shown as a person is to see them."""
    heard = b""

    def hear(stream: str, data: bytes) -> None:
        nonlocal heard
        heard += data

    code = "console.error('x'.repeat(70_000)); null.y"
    result = backend.run(WorkloadSpec(runtime="node", code=code, on_output=hear))
    assert heard.decode() == result.stderr
    assert b"data:" not in heard
    assert b"blob:" not in heard


def test_missing_deno_is_undetected_with_instructions():
    backend = IsolateBackend(deno="/nowhere/deno")
    found = backend.probe()
    assert found.state == "undetected"
    assert "pip install deno" in found.description
    assert "/nowhere" not in found.description
    with pytest.raises(BackendUnavailable):
        backend.run(WorkloadSpec(runtime="node", code=""))


def test_broken_deno_is_unhealthy():
    backend = IsolateBackend(deno="/bin/false")
    found = backend.probe()
    backend.close()
    assert (found.state, found.detected) == ("unhealthy", True)


def test_probe_reports_deno_and_its_sandbox(backend: IsolateBackend):
    attributes = backend.probe().attributes
    assert {key for key in attributes if key.startswith("wall_")} == {
        "wall_files",
        "wall_network",
        "wall_processes",
        "wall_syscalls",
        "wall_user",
    }
    assert backend.check() == []
    assert "without permissions" in attributes["isolation"]
    assert attributes["deno_version"].startswith("2.")


WITHOUT_WALLS = """
import errno, json, sys
from tests.sandbox.escaped import COLUMN, be_somebody_else, without
from backends_app.sandbox import seccomp
from backends_app.sandbox.landlock import CREATE_RULESET
from backends_app.backends.isolate import IsolateBackend
from backends_app.workloads import WorkloadSpec
be_somebody_else()
without(
    {seccomp.DENIED_SYSCALLS["unshare"][COLUMN]: errno.EPERM, CREATE_RULESET: errno.ENOSYS},
    prctl_seccomp=True,
)
told = {}
for required in (False, True):
    backend = IsolateBackend(require_walls=required)
    found = backend.probe()
    told[str(required)] = [
        found.state,
        found.description,
        dict(found.attributes),
        [(message.id, message.msg) for message in backend.check()],
    ]
    backend.close()
print(json.dumps(told))
"""


def test_host_without_sandbox_layers_is_warned_about_or_unavailable():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_WALLS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    state, _, attributes, warnings = told["False"]
    assert state == "healthy"
    assert {wall for wall, by in attributes.items() if by.startswith("missing")} == {
        "wall_files",
        "wall_network",
        "wall_processes",
        "wall_syscalls",
    }
    assert {id for id, _ in warnings} == {"backends_app.isolate.W001"}
    assert sorted(message.split("'")[1] for _, message in warnings) == [
        "files",
        "network",
        "processes",
        "syscalls",
    ]
    state, description, _, _ = told["True"]
    assert state == "unhealthy"
    assert "required sandbox layers are missing: files: " in description


def test_closed_backend_starts_nothing():
    closed = IsolateBackend()
    closed.close()
    assert closed.probe().state == "unhealthy"
    assert closed.check() == ()
    assert children(os.getpid()) == set()


def test_error_text_fits_a_small_output_cap(backend: IsolateBackend):
    code = "export default () => { throw new Error('é\\u0001'.repeat(3000)) }"
    result = backend.run(WorkloadSpec(runtime="node", code=code, output_bytes=1000))
    assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, 1)
    assert result.error.startswith("Error: é")
    large = WorkloadSpec(
        runtime="node", code="export default () => 'x'.repeat(1200)", output_bytes=1000
    )
    assert backend.run(large).exit_reason is ExitReason.OUTPUT_LIMIT


@pytest.mark.parametrize(
    ("option", "value"),
    [("pool_size", -1), ("pool_size", True), ("require_walls", "yes"), ("max_concurrency", 0)],
)
def test_invalid_options_are_rejected(option, value):
    with pytest.raises(InvalidOption) as raised:
        IsolateBackend(**{option: value})
    assert raised.value.option == option
