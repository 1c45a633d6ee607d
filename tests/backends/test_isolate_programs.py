"""Programs as people write and bundle them run on the isolate backend as with Node or Deno."""

import json
import os
import subprocess
import sys
from itertools import pairwise

import pytest

from backends_app.backends.isolate import IsolateBackend
from backends_app.sandbox import root
from backends_app.workloads import ExitReason, Status, WorkloadSpec
from tests.support.programs import ROOT

# What V8, Deno and the C library expect of a process


@pytest.mark.parametrize(
    "code",
    [
        "import path from 'node:path'; export default () => { if (path) return 1 }",
        "enum A { B = 1 }\nexport default () => { if (A.B) return A.B }",
        "import 'data:text/typescript,if (1) { let a: number }'; export default () => 1",
        """export default () => new Promise((done) => {
            const source = "data:text/typescript,if (1) { postMessage(1 as number) }";
            new Worker(source, { type: "module" }).onmessage = (event) => done(event.data);
        })""",
    ],
)
def test_deno_parser_finds_its_stack_bounds(run, code):
    result = run(code)
    assert (result.status, result.output) == (Status.COMPLETED, 1)


def test_prepared_maps_have_a_line_for_the_end_of_any_stack():
    end = 0x7FFC_1234_5000
    text = root.stack_maps(end)
    spans = [[int(part, 16) for part in line.split()[0].split("-")] for line in text.splitlines()]
    assert max(to for _, to in spans) == 1 << 47
    assert all(to - start == root.STACK_STEP for start, to in spans)
    assert all(earlier[0] == later[1] for earlier, later in pairwise(spans))
    assert any(start <= end - 1 < to for start, to in spans)
    assert len(text) < 1 << 20


WITHOUT_NAMESPACES = """
import errno, json
from tests.sandbox.escaped import COLUMN, be_somebody_else, without
from backends_app.sandbox import seccomp
from backends_app.backends.isolate import IsolateBackend
from backends_app.workloads import WorkloadSpec
be_somebody_else()
without({seccomp.DENIED_SYSCALLS["unshare"][COLUMN]: errno.EPERM}, prctl_seccomp=False)
backend = IsolateBackend()
code = "enum A { B = 1 }; export default () => { if (A.B) return A.B }"
result = backend.run(WorkloadSpec(runtime="node", code=code))
backend.close()
print(json.dumps([result.output, result.error]))
"""


def test_parser_finds_its_stack_bounds_without_a_private_root():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_NAMESPACES],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [1, ""]


def test_time_zones_and_locales_exist(run):
    code = """export default () => [
        new Intl.DateTimeFormat("de", { timeZone: "Asia/Tokyo", dateStyle: "full" }).format(0),
        (1234.5).toLocaleString("de-CH"), Intl.DateTimeFormat().resolvedOptions().timeZone,
    ]"""
    assert run(code).output == ["Donnerstag, 1. Januar 1970", "1’234.5", "UTC"]


# Modules


def test_built_in_modules_are_importable_by_both_names(run):
    code = """import fs, { readFileSync } from "fs";
    import * as path from "node:path";
    import { EventEmitter } from "events";
    import vm from "vm";
    import { createRequire } from "module";
    export default async () => [
      fs.readFileSync === readFileSync, (await import("path")).sep, path.default.sep,
      new EventEmitter().listenerCount("x"), vm.runInNewContext("1 + 1"),
      (await eval("import('os')")).EOL, typeof createRequire,
    ]"""
    assert run(code).output == [True, "/", "/", 0, 2, "\n", "function"]


def test_bundle_finds_its_file_and_creates_require(run):
    code = """import { createRequire as made } from "module"; const require = made(import.meta.url);
    import { fileURLToPath, pathToFileURL } from "url";
    const file = fileURLToPath(import.meta.url);
    let code;
    try { require("optional-peer") } catch (error) { code = error.code }
    export default () => ({
      main: [import.meta.main, process.argv[1] === file, process.argv.length],
      own: [file === import.meta.filename, require("path").dirname(file) === import.meta.dirname],
      require: [require("node:util").inspect({ a: 1 }), require.resolve("fs"), code],
    })"""
    assert run(code).output == {
        "main": [True, True, 2],
        "own": [True, True],
        "require": ["{ a: 1 }", "fs", "MODULE_NOT_FOUND"],
    }


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("const { join } = require('path'); module.exports = (x) => join('a', x)", "a/b"),
        ("exports.__esModule = true; exports.default = async (x) => x + 1", "b1"),
        ("module.exports = () => [this === exports, require.main === module]", [True, True]),
        ("var me = this; module.exports = () => [me === exports, __filename, __dirname].length", 3),
        (
            "#!/usr/bin/env node\nmodule.exports = async () => (await import('fs')).default === "
            "require('fs')",
            True,
        ),
        ("with ({ a: 1 }) { console.log(a) }", 1),
        (
            "console.log(JSON.stringify([typeof require, typeof module, 010]))",
            ["function", "object", 8],
        ),
    ],
)
def test_commonjs_runs(run, code, output):
    result = run(code, "b")
    assert (result.status, result.output) == (Status.COMPLETED, output)


def test_module_syntax_selects_a_module(run):
    """As Node decides it: a text with `require` is CommonJS unless it could not be."""
    for code in (
        "export default () => { const module = 1, exports = 2; return module + exports }",
        "const require = await 3; console.log(require)",
        "const exports = new URL(import.meta.url); console.log(exports.pathname.length - 9)",
    ):
        assert run(code).output == 3
    result = run("require('fs'); export default 1")
    assert result.error.startswith("ReferenceError: require is not defined")


@pytest.mark.parametrize("specifier", ["./other.js", "left-pad", "https://example.org/x", "#x"])
@pytest.mark.parametrize(
    "code",
    ["import x from 'MISSING'", "await import('MISSING')", "module.exports = require('MISSING')"],
)
def test_missing_module_is_named_in_the_error(run, specifier, code):
    result = run(code.replace("MISSING", specifier))
    assert (result.status, result.exit_code) == (Status.FAILED, 1)
    assert f"Cannot find module '{specifier}': a workload is one module" in result.error


# JavaScript is JavaScript


def test_valid_javascript_is_not_treated_as_typescript(run):
    code = """const count = (...given) => given.length;
    const [a, b, c, d] = [1, 2, 3, 4];
    function  shown( x ){ /* kept */ return x }
    export default () => [count(a < b, c > (d + 1)), shown.toString()]"""
    assert run(code).output == [2, "function  shown( x ){ /* kept */ return x }"]


@pytest.mark.parametrize(
    "code",
    [
        "interface X { a: number }\n\nexport default (x: X | null) => { null!.y }",
        "enum A { B }\n\nexport default (x: unknown) => { null!.y }",
        "type X = 1;\n/* é */\nexport default (x) => { null.y }",
        "'use strict';\n// a comment\nmodule.exports = (x: number) => { null.y }",
    ],
)
def test_line_numbers_are_unchanged(run, code):
    assert "(workload.ts:3:" in run(code).error


def test_full_typescript_runs(run):
    code = """import { Stats } from "node:fs"; // a type
    namespace Numbers { export const one = 1 }
    abstract class Base { constructor(protected readonly x: number) {} abstract get(): number }
    class Some extends Base { get() { return this.x as number } declare y: Stats }
    function twice(f: () => number, _: unknown) {
      return function (this: any) { return f.call(this) * 2 };
    }
    class Decorated { @twice two() { return 1 } }
    const tuple = <const>["a"];
    export default () => [Numbers.one, new Some(2).get(), new Decorated().two(), tuple.length,
      import.meta.filename]"""
    assert run(code).output == [1, 2, 2, 1, "/workload.ts"]


# The container around it


def test_environment_holds_only_the_programs_variables(run):
    code = """const before = [process.env.HOME, "PATH" in process.env, Deno.env.get("PATH")];
    process.env.A = 1;
    Deno.env.set("B", "2");
    export default () => [before.map(String), process.env.B, Deno.env.toObject(),
      delete process.env.A, { ...process.env }]"""
    assert run(code).output == [
        ["undefined", "false", "undefined"],
        "2",
        {"A": "1", "B": "2"},
        True,
        {"B": "2"},
    ]


def test_machine_has_few_devices(run):
    code = """import os from "os";
    export default () => [
      [os.cpus().length, os.availableParallelism(), navigator.hardwareConcurrency],
      [os.totalmem(), process.constrainedMemory(), Deno.systemMemoryInfo().total],
      [os.homedir(), os.tmpdir(), process.umask(), process.title, os.loadavg().length],
      process.memoryUsage().rss > 1e6 && os.freemem() > 1e6,
    ]"""
    assert run(code, mem_mb=256).output == [
        [1, 1, 1],
        [256 << 20] * 3,
        ["/", "/tmp", 0o022, "node", 3],
        True,
    ]


def test_denied_file_access_advises_no_flag(run):
    code = """import fs from "fs";
    const came = [];
    for (const attempt of [
      () => fs.readFileSync("/etc/passwd"), () => fs.promises.readFile("./package.json"),
      () => fs.mkdtempSync("/tmp/x"), () => Deno.stat("/x"), () => fetch("http://127.0.0.1:9999"),
      () => { new Worker("file:///x.js", { type: "module" }).onerror = (e) => e.preventDefault() },
    ]) {
      try { await attempt() } catch (error) { came.push([error.code, error.message, error.stack]) }
    }
    await new Promise((done) => setTimeout(done, 200));
    export default () => ({ codes: came.map(([code]) => code), told: JSON.stringify(came),
      exists: fs.existsSync("/etc/passwd"), stat: fs.statSync("/x", { throwIfNoEntry: false }) })"""
    result = run(code)
    assert result.output["codes"] == ["ENOENT", "ENOENT", "EROFS", "ENOENT", "EACCES"]
    assert (result.output["exists"], result.output.get("stat")) == (False, None)
    assert "Requires read access" in result.output["told"]
    assert "--allow" not in result.output["told"] + result.stderr


def test_stdin_can_be_opened_as_a_file(run):
    for read in (
        "require('fs').readFileSync('/dev/stdin', 'utf8')",
        "String(require('fs').readFileSync(0))",
        "Deno.readTextFileSync('/dev/stdin')",
    ):
        assert run(f"console.log(JSON.stringify([{read}, module.id]))", {"a": 1}).output == [
            '{"a":1}\n',
            ".",
        ]


def test_console_output_matches_node(run):
    code = """console.log({ a: "x" }, "s", new Map([["k", [1]]]));
    console.group("g"); console.info("a\\nb"); console.groupEnd();
    console.table([{ a: "x" }]); console.dir({ a: { b: { c: 1 } } }, { depth: 0 });
    console.log("%s %d %j", "a", 1, { b: 2 })"""
    assert run(code).stdout.splitlines() == [
        "{ a: 'x' } s Map(1) { 'k' => [ 1 ] }",
        "g",
        "  a",
        "  b",
        "┌─────────┬─────┐",
        "│ (index) │ a   │",
        "├─────────┼─────┤",
        "│ 0       │ 'x' │",
        "└─────────┴─────┘",
        "{ a: [Object] }",
        'a 1 {"b":2}',
    ]


# Errors and ends


@pytest.mark.parametrize(
    ("thrown", "shown"),
    [
        ("{ a: 1, b: ['c'] }", "{ a: 1, b: [ 'c' ] }"),
        ("[1, { a: 2 }]", "[ 1, { a: 2 } ]"),
        ("Symbol('x')", "Symbol(x)"),
        ("undefined", "undefined"),
        ("Object.assign(new Error('a'), { code: 'E' })", "code: 'E'"),
        ("new Error('a', { cause: new TypeError('b') })", "[cause]: TypeError: b"),
        ("new AggregateError([new Error('a'), 3], 'b')", "[errors]: ["),
        ("(await import('vm')).runInNewContext('new RangeError(\"far\")')", "RangeError: far"),
    ],
)
def test_thrown_value_is_shown(run, thrown, shown):
    for code in (f"throw {thrown}", f"export default async () => {{ throw {thrown} }}"):
        result = run(code)
        assert (result.status, result.exit_code) == (Status.FAILED, 1)
        assert shown in result.error
        assert shown in result.stderr
        assert "data:text" not in result.stderr


@pytest.mark.parametrize(
    ("listen", "fails", "heard"),
    [
        (
            "process.on('uncaughtException', (e, o) => say(e.message, o))",
            "throw new Error('x')",
            ["x", "uncaughtException"],
        ),
        (
            "process.on('uncaughtException', (e) => say(e.message))",
            "setTimeout(() => { throw new Error('x') })",
            ["x"],
        ),
        (
            "process.on('uncaughtException', (e, o) => say(e, o))",
            "Promise.reject(1)",
            [1, "unhandledRejection"],
        ),
        (
            "process.on('unhandledRejection', (e, p) => say(e, p instanceof Promise))",
            "Promise.reject(1)",
            [1, True],
        ),
        (
            "addEventListener('error', (e) => { e.preventDefault(); "
            "say(e.error.message, e.message) })",
            "setTimeout(() => { throw new Error('x') })",
            ["x", "Uncaught Error: x"],
        ),
        (
            "onerror = (e) => { e.preventDefault(); say(e.error) }",
            "setTimeout(() => { throw 7 })",
            [7],
        ),
        (
            "addEventListener('unhandledrejection', (e) => { e.preventDefault(); say(e.reason) })",
            "Promise.reject(1)",
            [1],
        ),
    ],
)
def test_handled_errors_are_not_failures(run, listen, fails, heard):
    code = f"""const say = (...given) => console.log(JSON.stringify(given));
    {listen};
    {fails}"""
    result = run(code)
    assert (result.status, result.output, result.stderr) == (Status.COMPLETED, heard, "")
    careless = run(f"addEventListener('error', () => {{}}); {fails}")
    assert (careless.status, careless.exit_code) == (Status.FAILED, 1)
    assert careless.error


def test_exit_listeners_receive_the_exit_code(run):
    listen = "process.on('exit', (code) => console.log('exit', code));"
    assert run(f"{listen} export default () => 5").stdout == "exit 0\n"
    assert run(f"{listen} process.exitCode = 3").stdout == "exit 3\n"
    result = run(f"{listen} export default () => {{ throw 1 }}")
    assert (result.stdout, result.exit_code) == ("exit 1\n", 1)
    result = run("process.on('exit', () => { process.exitCode = 9 }); export default () => 5")
    assert (result.exit_code, result.output) == (9, None)


def test_unreferenced_timers_do_not_delay_the_exit(run):
    code = """setTimeout(() => console.log("never"), 60_000).unref();
    setInterval(() => {}, 1000).unref(); console.log("2")"""
    assert (run(code).output, run(code).status) == (2, Status.COMPLETED)


@pytest.mark.parametrize(
    "ends",
    [
        "process.exit(256)",
        "Deno.exit(512)",
        "process.exitCode = 256",
        "process.exitCode = 256; process.exit()",
        "process.reallyExit(1024)",
    ],
)
def test_failing_exit_code_never_wraps_to_success(run, ends):
    assert run(ends).exit_code == 1
    assert run(f"export default () => {{ {ends} }}").exit_code == 1


def test_unread_input_is_reported(run):
    result = run("export const handler = (x) => x; export const b = 1", {"a": 1})
    assert (result.status, result.output) == (Status.COMPLETED, None)
    assert "no default export" in result.error
    assert result.error.endswith("it exports b, handler")
    result = run("console.log(1)", {"a": 1})
    assert (result.output, "did not read it from stdin" in result.error) == (1, True)
    for code in ("export default (x) => x", "for await (const _ of process.stdin); console.log(1)"):
        assert run(code, {"a": 1}).error == ""
    assert run("export const handler = (x) => x").error == ""
    assert run("process.exit(3)", {"a": 1}).error == ""


def test_pipe_into_stdout_leaves_it_open(run):
    for pipe in (
        "await new Response('a').body.pipeTo(Deno.stdout.writable)",
        "await (await import('stream/promises')).pipeline(['a'], process.stdout)",
    ):
        result = run(f"{pipe}; export default () => 'kept'")
        assert (result.stdout, result.output) == ("a", "kept")


def test_result_lost_to_a_closed_stdout_is_reported(backend: IsolateBackend, run):
    for close in ("Deno.stdout.close()", "(await import('fs')).closeSync(1)"):
        result = run(f"{close}; export default () => 'lost'")
        assert (result.status, result.exit_code, result.output) == (Status.FAILED, 1, None)
        assert "closed its stdout" in result.error
        assert result.stderr == ""
    heard: list[bytes] = []
    code = "console.error('said'); Deno.stdout.close(); export default () => 'lost'"
    spec = WorkloadSpec(runtime="node", code=code, on_output=lambda _, data: heard.append(data))
    assert backend.run(spec).stderr == "said\n" == b"".join(heard).decode()


@pytest.mark.parametrize(
    "patch",
    [
        "Object.prototype.extra = 1; Object.defineProperty(Object.prototype, 'get', {value: 1})",
        "Object.defineProperty(Object.prototype, 'then', {get() { throw 1 }})",
        "Array.prototype[Symbol.iterator] = Array.prototype.push = Array.prototype.map = null",
        "Object.defineProperty(Array.prototype, 0, {set() { throw 1 }})",
        "Promise.prototype.then = () => { throw 1 }",
        "globalThis.Promise = class { constructor() { throw 1 } }",
        "delete globalThis.Promise; delete globalThis.Event; delete globalThis.Error",
        "RegExp.prototype.exec = RegExp.prototype[Symbol.replace] = () => { throw 1 }",
        "String.prototype.replace = String.prototype.slice = String.prototype.padStart = null",
        "Event.prototype.preventDefault = Event.prototype.stopImmediatePropagation = null",
        "Object.freeze(Object.prototype); Object.freeze(Array.prototype); Object.freeze(Promise)",
        "for (const name of ['JSON', 'URL', 'Blob', 'TextEncoder', 'Uint8Array', 'console']) "
        "delete globalThis[name]",
    ],
)
def test_program_that_patched_its_realm_ends_normally(run, patch):
    result = run(f"{patch}; export default (x) => x.a", {"a": [1]})
    assert (result.status, result.output, result.stderr) == (Status.COMPLETED, [1], "")
    result = run(
        f"const Kind = TypeError; {patch}; export default () => {{ throw new Kind('mine') }}"
    )
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.EXITED)
    assert result.error.startswith("TypeError: mine")


def test_large_bundle_runs(run):
    """As esbuild writes them: a banner, helpers, many wrapped modules, one export at the end."""
    wrapped = "\n".join(
        f"var require_m{at} = __commonJS({{ 'm{at}.js'(exports, module) {{ module.exports = "
        f"{{ at: {at}, os: __require('os').EOL }} }} }});"
        for at in range(5000)
    )
    code = f"""import {{ createRequire as __made }} from "module";
const require = __made(import.meta.url);
var __require = /* @__PURE__ */ ((x) => typeof require !== "undefined" ? require : x)(function(x) {{
  throw Error('Dynamic require of "' + x + '" is not supported');
}});
var __commonJS = (cb, mod) => () => (
  mod || (0, cb[Object.keys(cb)[0]])((mod = {{ exports: {{}} }}).exports, mod), mod.exports);
{wrapped}
export {{ run as default }};
function run(at) {{ return [require_m4999().at, require_m7().os] }}
"""
    assert run(code).output == [4999, "\n"]


def test_program_receives_no_host_message(run):
    assert os.uname().nodename not in json.dumps(run("export default () => Deno.hostname()").output)


def test_bytes_that_are_not_utf8_set_the_encoding(run):
    code = "Deno.stdout.writeSync(new Uint8Array([65, 255, 10])); console.error('text')"
    result = run(code)
    assert (result.stdout_encoding, result.stderr_encoding) == ("utf-8-lossy", "utf-8")


def test_buffer_beyond_the_limit_is_an_error_of_the_program(run):
    result = run("export default () => new Float64Array(2 ** 30).length")
    assert (result.exit_reason, result.exit_code) == (ExitReason.EXITED, 1)
    assert result.error.startswith("RangeError: Array buffer allocation failed")
    caught = run("export default () => { try { new Float64Array(2 ** 30) } catch { return 1 } }")
    assert caught.output == 1
