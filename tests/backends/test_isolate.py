"""The isolate backend with a real Deno: what programs get, and what they cannot do."""

import os
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from backends_app.backends.isolate import IsolateBackend
from backends_app.exceptions import BackendUnavailable, InvalidRequest
from backends_app.workloads import ExitReason, Resources, Status, WorkloadResult, WorkloadSpec
from tests.backends import wasm
from tests.contract import BackendContract, Programs

CAP = 20_000


@pytest.fixture
def backend():
    """An isolate backend, and a look for what it left: processes, descriptors."""
    descriptors = len(os.listdir("/proc/self/fd"))
    backend = IsolateBackend()
    yield backend
    backend.close()
    assert children(os.getpid()) == set()
    assert len(os.listdir("/proc/self/fd")) == descriptors


def children(parent: int) -> set[int]:
    """The processes that one has started and not buried."""
    found: set[int] = set()
    with suppress(FileNotFoundError):
        for task in Path(f"/proc/{parent}/task").iterdir():
            with suppress(FileNotFoundError):  # of a thread that has just ended
                found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


def workers() -> set[int]:
    """The processes of Deno that this process's launchers have started."""
    return {pid for launcher in children(os.getpid()) for pid in children(launcher)}


@pytest.fixture
def run(backend: IsolateBackend):
    def run(code: str, input=None, **resources) -> WorkloadResult:
        spec = WorkloadSpec(
            runtime="node",
            code=code,
            input=input,
            resources=Resources(**{"timeout_s": 30, **resources}),
            output_bytes=CAP,
        )
        return backend.execute(spec)

    return run


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


# What a program gets and gives


def test_typescript_runs_and_its_return_value_is_the_output(run):
    result = run(
        "export default (x: {a: number, b: number}) => ({sum: x.a + x.b})", {"a": 1, "b": 2}
    )
    assert (result.status, result.output) == (Status.COMPLETED, {"sum": 3})
    assert result.memory_bytes > 1024 * 1024
    assert result.cpu_time_ms > 0


def test_a_promise_is_awaited(run):
    code = """export default async (ms: number) => {
        await new Promise((done) => setTimeout(done, ms));
        return "later";
    }"""
    assert run(code, 20).output == "later"


def test_a_module_without_default_export_is_run_for_its_stdout(run):
    result = run(
        "console.log('hello'); console.error('oops'); setTimeout(() => console.log('end'))"
    )
    assert (result.status, result.output) == (Status.COMPLETED, None)
    assert (result.stdout, result.stderr) == ("hello\nend\n", "oops\n")
    assert run("console.log(JSON.stringify({a: 1}))").output == {"a": 1}


def test_a_module_may_read_its_input_from_stdin(run):
    code = "console.log(await new Response(Deno.stdin.readable).text())"
    assert run(code, {"a": "ü"}).output == {"a": "ü"}


def test_what_is_printed_and_what_is_returned_are_kept_apart(run):
    result = run("export default () => { console.log('{\"output\": 1}'); return 2 }")
    assert (result.stdout, result.output) == ('{"output": 1}\n', 2)


def test_undefined_is_null(run):
    assert run("export default () => {}").output is None


def test_a_command_is_refused_rather_than_ignored(backend: IsolateBackend):
    with pytest.raises(InvalidRequest) as raised:
        backend.execute(WorkloadSpec(runtime="node", code="1", command=("node", "x.js")))
    assert raised.value.field == "command"


def test_the_exit_code_is_the_programs(run):
    result = run("console.log('so far'); Deno.exit(7)")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert (result.exit_code, result.stdout) == (7, "so far\n")


# How a program fails


def test_an_uncaught_error_comes_with_its_stack_in_the_users_own_lines(run):
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


def test_a_stack_has_the_users_file_name_wherever_it_is_shown(run):
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


def test_nothing_of_the_harness_or_the_host_is_to_be_seen(run):
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
        ("import './other.ts'", "relative URL"),
    ],
)
def test_how_a_program_fails_is_shown(run, code, shown):
    result = run(code)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert result.exit_code == 1
    assert shown in result.stderr
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
def test_output_that_is_no_json_is_invalid(run, value):
    result = run(f"export default () => ({value})")
    assert result.status is Status.FAILED
    assert result.output is None
    assert result.exit_reason in (ExitReason.INVALID_OUTPUT, ExitReason.OUTPUT_LIMIT)
    if "1e5" not in value:  # that one is too large before it is too deep
        assert result.exit_reason is ExitReason.INVALID_OUTPUT
    assert result.error


@pytest.fixture
def run_wasm(backend: IsolateBackend):
    def run_wasm(code: str, **resources) -> WorkloadResult:
        limits = Resources(**{"timeout_s": 30, **resources})
        return backend.execute(WorkloadSpec(runtime="wasm", code=code, resources=limits))

    return run_wasm


def test_a_command_modules_exit_code_and_words_are_its_own(run_wasm):
    result = run_wasm(wasm.FAILS)
    assert (result.exit_code, result.stderr, result.error) == (3, "boom\n", "")


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        (wasm.TRAP, "RuntimeError: unreachable"),
        (wasm.NO_START, "no function _start"),
        (wasm.FOREIGN_IMPORT, 'Import #0 "env"'),
        ("", "CompileError"),
        ("AAAA", "CompileError"),
        (wasm.ECHO[:200], "CompileError"),
    ],
)
def test_a_module_that_is_broken_is_the_callers_failure(run_wasm, code, shown):
    result = run_wasm(code)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert result.exit_code == 1
    assert shown in result.error
    assert shown in result.stderr


def test_a_module_may_be_wrapped_as_base64_tools_wrap_it(run_wasm):
    wrapped = "\n".join(wasm.FAILS[start : start + 76] for start in range(0, 300, 76))
    assert run_wasm(wrapped).exit_code == 3


@pytest.mark.parametrize("code", ["no base64!", "AAA", "ä"])
def test_what_is_no_base64_is_an_invalid_request(run_wasm, code):
    with pytest.raises(InvalidRequest) as raised:
        run_wasm(code)
    assert raised.value.field == "code"


def test_a_module_is_bounded_in_time_and_memory(run_wasm):
    assert run_wasm(wasm.SPIN, timeout_s=0.5).exit_reason is ExitReason.TIMEOUT
    assert run_wasm(wasm.GROW, mem_mb=128).exit_reason is ExitReason.MEMORY_LIMIT


# What bounds it


@pytest.mark.parametrize(
    "code",
    [
        "for (;;) {}",
        "setInterval(() => {}, 1)",
        "export default async () => { for (;;) await null }",
        "export default () => { for (;;); }",
        "await new Promise((done) => setTimeout(done, 1e9))",
        "for (;;) try { throw 1 } catch {}",
    ],
)
def test_time_is_bounded(run, code):
    result = run(f"console.log('so far');\n{code}", timeout_s=0.5)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.TIMEOUT)
    assert result.exit_code is None
    assert result.stdout == "so far\n"
    assert "0.5 s" in result.error


@pytest.mark.parametrize(
    "code",
    [
        "const a = []; for (;;) a.push(new Array(1e6).fill(0))",
        "const a = []; for (;;) a.push(new Uint8Array(1e7).fill(1))",
        "let a = 'x'; for (;;) a = [a + a, ...a].join('')",
    ],
)
def test_memory_is_bounded(run, code):
    result = run(code, mem_mb=128)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.MEMORY_LIMIT)


@pytest.mark.parametrize("stream", ["log", "error"])
def test_endless_output_is_ended_and_its_head_and_tail_kept(run, stream):
    result = run(f"console.{stream}('head'); for (;;) console.{stream}('x'.repeat(1e4))")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.OUTPUT_LIMIT)
    text = result.stdout if stream == "log" else result.stderr
    assert (result.stdout_truncated, result.stderr_truncated) == (stream == "log", stream != "log")
    assert text.startswith("head\n")
    assert len(text) < CAP + 100


def test_long_output_is_cut_in_the_middle_and_the_program_goes_on(run):
    code = "console.log('head'); console.log('x'.repeat(1e5)); console.log('tail');"
    result = run(f"{code} export default () => 'done'")
    assert (result.status, result.output) == (Status.COMPLETED, "done")
    assert result.stdout_truncated
    assert result.stdout.startswith("head\n")
    assert result.stdout.endswith("tail\n")
    assert "bytes cut" in result.stdout


def test_output_over_its_cap_is_refused(run):
    result = run(f"export default () => 'x'.repeat({CAP + 100})")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.OUTPUT_LIMIT)
    assert run(f"export default () => 'x'.repeat({CAP - 100})").status is Status.COMPLETED


# What it cannot do


@pytest.mark.parametrize(
    "code",
    [
        "Deno.readTextFileSync('/etc/passwd')",
        "(await import('node:fs')).readFileSync('/proc/self/environ')",
        "Deno.writeTextFileSync('x', '')",
        "Deno.env.toObject()",
        "process.env.PATH",
        "new Deno.Command('id').outputSync()",
        "(await import('node:child_process')).execSync('id')",
        "Deno.dlopen('libc.so.6', {})",
        "await fetch('http://127.0.0.1:9/')",
        "await Deno.connect({hostname: '127.0.0.1', port: 9})",
        "Deno.listen({port: 0})",
        "Deno.hostname()",
        "Deno.kill(Deno.ppid, 'SIGKILL')",
        "await import('file:///etc/hostname')",
        "await import('https://example.org/x.js')",
        "await import('npm:left-pad')",
        "await import('jsr:@std/path')",
    ],
)
def test_nothing_outside_is_reached(run, code):
    result = run(f"export default async () => {{ {code} }}")
    assert (result.status, result.exit_code) == (Status.FAILED, 1)
    assert "root:" not in result.stderr


def test_static_imports_reach_nothing_either(run):
    for source in ("file:///etc/hostname", "https://example.org/x.js", "npm:left-pad"):
        assert run(f"import x from '{source}'; export default () => 1").status is Status.FAILED


def test_the_process_gets_nothing_of_the_servers_environment(backend: IsolateBackend):
    spec = WorkloadSpec(runtime="node", code="for (;;);", resources=Resources(timeout_s=60))
    thread = threading.Thread(target=backend.execute, args=[spec])
    thread.start()
    names: set[str] = set()
    while not names and thread.is_alive():
        for child in workers():
            with suppress(FileNotFoundError, ProcessLookupError):
                process = Path(f"/proc/{child}")
                if b"max-old-space-size" in (process / "cmdline").read_bytes():
                    pairs = (process / "environ").read_bytes().split(b"\0")
                    names = {pair.partition(b"=")[0].decode() for pair in pairs if pair}
    backend.cleanup(spec.id)
    thread.join()
    assert names == {"DENO_DIR", "DENO_EMIT_CACHE_MODE", "NO_COLOR"}


@pytest.mark.parametrize(
    "code",
    [
        'JSON.stringify = () => \'{"output":"FORGED"}\'',
        "JSON.parse = () => 'FORGED'",
        "Deno.stdout.writeSync = () => 0",
        "Promise.prototype.then = function () { return 'FORGED' }",
        "Object.prototype.toJSON = undefined; String.prototype.slice = () => 'FORGED'",
        "TextEncoder.prototype.encode = () => new Uint8Array()",
        'console.log(\'{"output": "FORGED"}\')',
    ],
)
def test_patching_the_realm_forges_nothing(run, code):
    result = run(f"{code};\nexport default () => 'true'")
    assert (result.status, result.output) == (Status.COMPLETED, "true")


def test_no_patched_function_ever_sees_the_marker(run):
    """Whoever knew it could write a frame: everything that can be patched looks for it."""
    code = """const seen: string[] = [];
    const { Uint8Array: Bytes, ArrayBuffer: Buffer, TextDecoder: Decoder } = globalThis;
    const decode = Decoder.prototype.decode, test = RegExp.prototype.test;
    const { apply, ownKeys, getOwnPropertyDescriptor, defineProperty } = Reflect;
    const push = Array.prototype.push, write = Deno.stderr.writeSync.bind(Deno.stderr);
    const encode = TextEncoder.prototype.encode.bind(new TextEncoder());
    let looking = false;
    function look(values) {
      if (looking) return;
      looking = true;
      try {
        for (let at = 0; at < values.length; at++) {
          let value = values[at];
          if (value instanceof Buffer) value = new Bytes(value);
          if (value instanceof Bytes) value = apply(decode, new Decoder(), [value]);
          if (typeof value === "string" && apply(test, /[0-9a-f]{32}/, [value])) {
            apply(push, seen, [value]);
          }
        }
      } finally {
        looking = false;
      }
    }
    const { construct } = Reflect;
    const wrap = (f) => function () {
      look({ length: 1, 0: this });
      look(arguments);
      const result = new.target ? construct(f, arguments, new.target) : apply(f, this, arguments);
      look({ length: 1, 0: result });
      return result;
    };
    let patched = 0;
    const typed = Object.getPrototypeOf(Bytes.prototype);
    for (const home of [
      Array.prototype, String.prototype, Number.prototype, Bytes.prototype, typed, Promise.prototype,
      Buffer.prototype, TextEncoder.prototype, TextDecoder.prototype, JSON, Deno, Deno.stdout,
      Object.getPrototypeOf(Deno.stdout), Blob.prototype, RegExp.prototype, Promise, Buffer, Object,
    ]) {
      for (const key of ownKeys(home)) {
        const found = getOwnPropertyDescriptor(home, key);
        if (!found?.configurable || key === "constructor") continue;
        if (typeof found.value === "function") found.value = wrap(found.value);
        else if (found.get) found.get = wrap(found.get);
        else continue;
        defineProperty(home, key, found);
        patched += 1;
      }
    }
    defineProperty(typed, Symbol.species, { get() { return Bytes } });
    addEventListener("unload", () => {
      looking = true;
      write(encode(`${seen.length} seen, ${patched > 150}`));
    });
    export default (x) => { "ab".padStart(40, "0123456789abcdef"); return x }"""
    result = run(code, {"a": 1})
    assert (result.status, result.output) == (Status.COMPLETED, {"a": 1})
    assert result.stderr == "1 seen, true"  # its own: so it does see what there is to see


def test_what_is_printed_after_the_result_is_printed(run):
    code = "addEventListener('unload', () => console.log('{\"output\": \"FORGED\"}'));"
    result = run(f"{code} export default () => 'true'")
    assert (result.status, result.output) == (Status.COMPLETED, "true")
    assert result.stdout == '{"output": "FORGED"}\n'


def test_leaving_before_the_result_is_a_plain_exit(run):
    result = run("Deno.exit(0); export default () => 1")
    assert (result.status, result.exit_code, result.output) == (Status.COMPLETED, 0, None)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_closed_stream_is_the_programs_own_loss(run, stream):
    result = run(f"Deno.{stream}.close(); export default () => {{ throw new Error('unheard') }}")
    assert (result.status, result.exit_code, result.output) == (Status.FAILED, 1, None)
    assert "data:" not in result.stderr
    result = run("Deno.stdout.close(); export default () => 'unheard'")
    assert (result.status, result.output, result.stderr) == (Status.FAILED, None, "")


def test_a_crash_is_a_signal(run):
    result = run("process.abort()")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.SIGNAL)
    assert (result.exit_code, result.signal) == (None, "SIGABRT")


def test_the_next_workload_sees_nothing_of_this_one(run):
    code = "export default (x) => { const old = globalThis.seen; globalThis.seen = x; return old }"
    assert run(code, "first").output is None
    assert run(code, "second").output is None


@pytest.mark.parametrize(
    "code", ["localStorage.setItem('a', 'b')", "await (await caches.open('a')).keys()"]
)
def test_there_is_no_place_to_keep_anything(run, code):
    assert run(f"export default async () => {{ {code} }}").status is Status.FAILED


def test_a_database_that_spills_to_the_disk_is_ended(run):
    code = """import { DatabaseSync } from "node:sqlite";
    const d = new DatabaseSync(":memory:");
    d.exec("PRAGMA temp_store=1; PRAGMA cache_size=10; CREATE TEMP TABLE t(a)");
    for (let i = 0; i < 50; i++) d.exec("insert into t values (zeroblob(1000000))");"""
    assert run(code).status is Status.FAILED


def test_an_error_cannot_pass_for_a_success(run):
    code = "addEventListener('unload', () => { Deno.exitCode = 0 });"
    result = run(f"{code} export default () => {{ throw new Error('x') }}")
    assert result.status is Status.FAILED


# What the host does


def test_cleanup_ends_a_running_workload(backend: IsolateBackend):
    spec = WorkloadSpec(runtime="node", code="for (;;);", resources=Resources(timeout_s=60))
    results: list[WorkloadResult] = []
    thread = threading.Thread(target=lambda: results.append(backend.execute(spec)))
    thread.start()
    while thread.is_alive():
        backend.cleanup(spec.id)
        thread.join(0.01)
    assert (results[0].status, results[0].exit_reason) == (Status.KILLED, ExitReason.KILLED)


def test_a_missing_deno_is_undetected_and_says_what_to_install():
    backend = IsolateBackend(deno="/nowhere/deno")
    found = backend.probe()
    assert found.state == "undetected"
    assert "pip install deno" in found.description
    assert "/nowhere" not in found.description
    with pytest.raises(BackendUnavailable):
        backend.execute(WorkloadSpec(runtime="node", code=""))


def test_a_broken_deno_is_unhealthy():
    found = IsolateBackend(deno="/bin/false").probe()
    assert (found.state, found.detected) == ("unhealthy", True)


def test_what_deno_is_and_how_it_is_confined_is_said(backend: IsolateBackend):
    attributes = backend.probe().attributes
    assert "without permissions" in attributes["isolation"]
    assert attributes["deno_version"].startswith("2.")
