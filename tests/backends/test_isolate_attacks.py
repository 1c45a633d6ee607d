"""What bounds a program on the isolate backend, and what it cannot do.

After each case the fixture `backend` runs an honest workload and looks for leftovers.
"""

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from backends_app.backends.isolate import IsolateBackend
from backends_app.workloads import ExitReason, Resources, Status, WorkloadSpec
from tests.backends.conftest import OUTPUT_BYTES, workers

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
def test_time_is_limited(run, code):
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
        "const a = []; for (;;) new Uint8Array(a[a.push(new SharedArrayBuffer(1e7)) - 1]).fill(1)",
        "const a = []; for (;;) a.push(Buffer.alloc(1e7, 1))",
        "const a = []; for (;;) a.push(structuredClone(new Uint8Array(1e7).fill(1)))",
        """const a = [];
        for (;;) {
            const memory = new WebAssembly.Memory({ initial: 160 });
            a.push(new Uint8Array(memory.buffer).fill(1));
        }""",
    ],
)
def test_memory_is_limited(run, code):
    result = run(code, mem_mb=128)
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.MEMORY_LIMIT)


def test_single_large_allocation_is_denied_by_the_kernel(run):
    """Before anybody could look at it: the program gets an error, as it would without memory."""
    for code in (
        "new Uint8Array(2 ** 33)",
        "new SharedArrayBuffer(2 ** 33)",
        "[1, 2, 3].map(() => new WebAssembly.Memory({ initial: 2 ** 15 }))",
    ):
        result = run(f"export default () => {{ {code} }}", mem_mb=128)
        assert (result.status, result.exit_code) == (Status.FAILED, 1)
        assert "RangeError" in result.stderr


def test_workers_are_available_and_limited(run):
    worker = "new Worker('data:text/javascript,for(;;);', { type: 'module' })"
    result = run(f"for (;;) {worker}", mem_mb=512)
    assert result.exit_reason in (ExitReason.MEMORY_LIMIT, ExitReason.PROCESS_LIMIT)
    code = """export default async (count: number) => {
        const source = "data:text/javascript,postMessage(2)";
        const answers = Array.from({ length: count }, () => new Promise((done) => {
            const worker = new Worker(source, { type: "module" });
            worker.onmessage = (event) => { done(event.data); worker.terminate() };
        }));
        return (await Promise.all(answers)).length;
    }"""
    assert run(code, 6).output == 6


@pytest.mark.parametrize("stream", ["log", "error"])
def test_endless_output_is_killed_and_its_head_and_tail_kept(run, stream):
    result = run(f"console.{stream}('head'); for (;;) console.{stream}('x'.repeat(1e4))")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.OUTPUT_LIMIT)
    text = result.stdout if stream == "log" else result.stderr
    assert (result.stdout_truncated, result.stderr_truncated) == (stream == "log", stream != "log")
    assert text.startswith("head\n")
    assert len(text) < OUTPUT_BYTES + 100


def test_long_output_is_cut_in_the_middle_and_the_program_goes_on(run):
    code = "console.log('head'); console.log('x'.repeat(1e5)); console.log('tail');"
    result = run(f"{code} export default () => 'done'")
    assert (result.status, result.output) == (Status.COMPLETED, "done")
    assert result.stdout_truncated
    assert result.stdout.startswith("head\n")
    assert result.stdout.endswith("tail\n")
    assert "bytes cut" in result.stdout


def test_output_over_its_cap_is_rejected(run):
    result = run(f"export default () => 'x'.repeat({OUTPUT_BYTES + 100})")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.OUTPUT_LIMIT)
    assert run(f"export default () => 'x'.repeat({OUTPUT_BYTES - 100})").status is Status.COMPLETED


# What it cannot do


@pytest.mark.parametrize(
    "code",
    [
        "Deno.readTextFileSync('/etc/passwd')",
        "(await import('node:fs')).readFileSync('/proc/self/environ')",
        "Deno.writeTextFileSync('x', '')",
        "new Deno.Command('id').outputSync()",
        "(await import('node:child_process')).execSync('id')",
        "Deno.dlopen('libc.so.6', {})",
        "await fetch('http://127.0.0.1:9/')",
        "await Deno.connect({hostname: '127.0.0.1', port: 9})",
        "Deno.listen({port: 0})",
        "Deno.kill(Deno.ppid, 'SIGKILL')",
        "await import('file:///etc/hostname')",
        "await import('https://example.org/x.js')",
        "await import('npm:left-pad')",
        "await import('jsr:@std/path')",
    ],
)
def test_outside_resources_are_unreachable(run, code):
    result = run(f"export default async () => {{ {code} }}")
    assert (result.status, result.exit_code) == (Status.FAILED, 1)
    assert "root:" not in result.stderr


def test_host_environment_name_and_users_are_hidden(run):
    code = """import os from 'os';
    export default () => ({
      environment: [Deno.env.toObject(), Deno.env.has("DENO_DIR"), {...process.env}],
      names: [Deno.hostname(), os.hostname(), os.release(), os.version(), Deno.osRelease()],
      users: [Deno.uid(), Deno.gid(), process.getuid(), process.getegid(), process.getgroups()],
      user: os.userInfo(),
      network: [os.networkInterfaces(), Deno.networkInterfaces()],
    })"""
    told = run(code).output
    assert told["environment"] == [{}, False, {}]
    assert told["names"] == ["vulcan", "vulcan", "6.1.0", "#1", "6.1.0"]
    assert told["users"] == [1000, 1000, 1000, 1000, [1000]]
    assert told["user"]["username"] == "workload"
    assert told["network"] == [{}, []]


def test_static_imports_reach_nothing(run):
    for source in ("file:///etc/hostname", "https://example.org/x.js", "npm:left-pad"):
        assert run(f"import x from '{source}'; export default () => 1").status is Status.FAILED


def test_process_gets_none_of_the_servers_environment(backend: IsolateBackend):
    spec = WorkloadSpec(runtime="node", code="for (;;);", resources=Resources(timeout_s=60))
    thread = threading.Thread(target=backend.run, args=[spec])
    thread.start()
    names: set[str] = set()
    while not names and thread.is_alive():
        for child in workers():
            with suppress(FileNotFoundError, ProcessLookupError):
                process = Path(f"/proc/{child}")
                if b"max-old-space-size" in (process / "cmdline").read_bytes():
                    pairs = (process / "environ").read_bytes().split(b"\0")
                    names = {pair.partition(b"=")[0].decode() for pair in pairs if pair}
    backend.kill(spec.id)
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
def test_patched_realm_cannot_forge_a_result(run, code):
    result = run(f"{code};\nexport default () => 'true'")
    assert (result.status, result.output) == (Status.COMPLETED, "true")


def test_patched_functions_never_see_the_marker(run):
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
      Array.prototype, String.prototype, Number.prototype, Bytes.prototype, typed,
      Promise.prototype, Buffer.prototype, TextEncoder.prototype, TextDecoder.prototype, JSON,
      Deno, Deno.stdout, Object.getPrototypeOf(Deno.stdout), Blob.prototype, RegExp.prototype,
      Promise, Buffer, Object,
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


@pytest.mark.parametrize(
    "listener",
    [
        "addEventListener('unload', () => SHOW)",
        "globalThis.onunload = () => SHOW",
        "(await import('node:process')).default.on('exit', () => SHOW)",
    ],
)
@pytest.mark.parametrize(
    "shown", ['console.log(\'{"output": "FORGED"}\')', "THROW", "Deno.exit(0)"]
)
def test_exit_listener_cannot_change_the_result(run, listener, shown):
    """Whatever it does there: one frame at the most, and nothing of it on stdout."""
    shown = shown.replace("THROW", "(() => { throw new Error('at the end') })()")
    result = run(f"{listener.replace('SHOW', shown)};\nexport default () => 'true'")
    assert result.output in ("true", None)
    assert result.stdout in ("", '{"output": "FORGED"}\n')
    assert result.exit_reason is ExitReason.EXITED
    if "FORGED" in shown:
        assert (result.status, result.output) == (Status.COMPLETED, "true")


def test_heap_snapshot_does_not_contain_the_marker(run):
    code = """import v8 from "node:v8";
    const mine = ["0123456789abcdef", "0123456789abcdee"].join("");
    export default async () => {
        let shown = "";
        for await (const part of v8.getHeapSnapshot()) shown += part;
        return [mine.length, shown.match(/"[0-9a-f]{32}[^"]*"/g)];
    }"""
    result = run(code)
    assert result.output == [32, ['"0123456789abcdef0123456789abcdee"']]


def test_programs_exit_code_is_reported_with_its_output(run):
    result = run("Deno.exitCode = 4; export default () => 1")
    assert (result.status, result.exit_code, result.output) == (Status.FAILED, 4, None)


def test_exit_before_the_result_is_a_plain_exit(run):
    result = run("Deno.exit(0); export default () => 1")
    assert (result.status, result.exit_code, result.output) == (Status.COMPLETED, 0, None)


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_to_a_closed_stream_is_lost(run, stream):
    result = run(f"Deno.{stream}.close(); export default () => {{ throw new Error('unheard') }}")
    assert (result.status, result.exit_code, result.output) == (Status.FAILED, 1, None)
    assert "data:" not in result.stderr
    result = run("Deno.stdout.close(); export default () => 'unheard'")
    assert (result.status, result.output, result.stderr) == (Status.FAILED, None, "")


def test_crash_is_reported_as_a_signal(run):
    result = run("process.abort()")
    assert (result.status, result.exit_reason) == (Status.FAILED, ExitReason.SIGNAL)
    assert (result.exit_code, result.signal) == (None, "SIGABRT")


def test_next_workload_sees_nothing_of_this_one(run):
    code = "export default (x) => { const old = globalThis.seen; globalThis.seen = x; return old }"
    assert run(code, "first").output is None
    assert run(code, "second").output is None


@pytest.mark.parametrize(
    "code", ["localStorage.setItem('a', 'b')", "await (await caches.open('a')).keys()"]
)
def test_nothing_can_be_stored(run, code):
    assert run(f"export default async () => {{ {code} }}").status is Status.FAILED


def test_database_that_spills_to_disk_is_killed(run):
    code = """import { DatabaseSync } from "node:sqlite";
    const d = new DatabaseSync(":memory:");
    d.exec("PRAGMA temp_store=1; PRAGMA cache_size=10; CREATE TEMP TABLE t(a)");
    for (let i = 0; i < 50; i++) d.exec("insert into t values (zeroblob(1000000))");"""
    assert run(code).status is Status.FAILED


def test_error_cannot_be_reported_as_success(run):
    code = "addEventListener('unload', () => { Deno.exitCode = 0 });"
    result = run(f"{code} export default () => {{ throw new Error('x') }}")
    assert result.status is Status.FAILED
